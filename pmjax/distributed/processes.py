"""Several processes as one run: they agree, wait for each other, stop and end together.

JAX moves arrays between hosts. In addition, every process has one TCP connection to process 0, for
JSON lines with what JAX does not transport: the config, signals, progress and the reason of a
failure. A process that dies closes its connection, so the others learn it at once. A host that is
frozen, disconnected or too slow is named after a timeout. JAX's own heartbeat ends a process
without a helpful message; it is only the second line of defense.

`rendezvous.py` starts and connects the processes.
"""

import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pmjax import errors
from pmjax.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 300.0  # seconds, unless PMJAX_HOST_TIMEOUT says otherwise
BEAT = 1.0  # seconds between heartbeats
FAILURE_NOTICE_SECONDS = 2.0  # in which the others read why process 0 failed
AHEAD = 3  # dispatches from the decision to stop to the last one; see `should_stop`
_LINE = 1 << 20  # bytes of a line at most


class Stopped(KeyboardInterrupt):
    """A signal stopped the run, and its state is saved. `except Exception` does not catch it."""


# Schedulers warn by these; SLURM by the one that the user chooses (sbatch --signal=USR1@120).
# A closed terminal sends SIGHUP, which nohup makes a process ignore.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """Which of how many processes this is, according to the environment."""

    index: int = 0
    count: int = 1
    coordinator: str = ""
    detect: bool = False  # JAX determines index and count
    local_devices: int = 0  # CPU devices of this process (0: as the config says)
    timeout: float = TIMEOUT


class ProcessGroup:
    """The processes of a run; without arguments, a single process, for which nothing is sent.

    As a context manager it ends the run on all hosts when one fails, and waits for all at the end.
    `index` is that of this process, of `count`; process 0 writes, reports and evaluates.
    """

    def __init__(self, spec: ProcessSpec = ProcessSpec()):
        self.index, self.count = spec.index, spec.count
        self._timeout = spec.timeout
        self._changed = threading.Condition()
        self._peers: dict[int, Connection] = {}
        self._values: dict[str, dict[int, Any]] = {}  # by call, then by process
        self._calls = 0
        self._dispatched = 0
        self._slowest: tuple[int, int] | None = None  # process behind others, its dispatches
        self._slowest_since = 0.0
        self._stop_reason: str | None = None
        self._stop_at: int | None = None  # dispatch after which all stop
        self._working = False  # whether this is process 0 and the others wait
        self._acknowledged: set[int] = set()
        self._ending = threading.Lock()
        self._closed = False

    def all_gather_object(self, what: str, value: Any, *, no_timeout: bool = False) -> list[Any]:
        """Returns every process's JSON value of something, once all have called this.

        With `no_timeout`, it waits for as long as all processes live. `what` is for messages.

        Raises:
          UserError: if a process does not call this within the timeout; names it.
        """
        if self.count == 1:
            return [value]
        call = self._name_call(what)
        if self.index:
            self._peers[0].send(kind="value", what=call, value=value)
            return self._answer(call)
        with self._changed:
            found = self._values.setdefault(call, {})
            found[0] = value
            timeout = None if no_timeout else self._timeout
            self._changed.wait_for(lambda: len(found) == self.count, timeout)
            if late := sorted(set(range(self.count)) - set(found)):
                raise UserError(
                    f"{processes(late).capitalize()} did not reach {what} within "
                    f"{self._timeout:.0f} s (PMJAX_HOST_TIMEOUT)."
                )
            values = [found[i] for i in range(self.count)]
        self._send_all(kind="answer", what=call, value=values)
        return values

    def run_on_primary(self, what: str, work: Callable[[], object]) -> None:
        """Runs some work on process 0 while the others wait, for as long as process 0 lives.

        Raises:
          Stopped: on all processes, if a signal stopped the work.
        """
        if self.count == 1:
            self._pause(what)
            work()
            return
        call = self._name_call(what)
        if self.index:
            log.info("Waiting for process 0: %s.", what)
            with self.signals():
                stopped = self._answer(call)
            if stopped:
                raise Stopped(stopped)
            return
        try:
            self._working = True
            with self.signals(steps=False):
                self._pause(what)
                work()
        except Stopped as stopped:
            self._send_all(kind="answer", what=call, value=str(stopped))
            raise
        finally:
            self._working = False
        self._send_all(kind="answer", what=call, value="")

    def _pause(self, what: str) -> None:
        """Stops before some work of process 0 if a signal came."""
        if self._stop_reason:
            raise Stopped(f"Stopped by {self._stop_reason} before: {what}.")

    @contextmanager
    def signals(self, *, steps: bool = True) -> Iterator[None]:
        """Handles `SIGNALS`: all processes stop after the same step.

        Args:
          steps: whether the block makes steps; Ctrl-C then stops after one, too. Without steps, a
            signal stops a single process, and process 0 while others wait for it, at once.
        """

        def handle(number, frame):
            name, again = signal.Signals(number).name, self._stop_reason is not None
            if self.index == 0:
                self._stop_reason = self._stop_reason or name
                if not (steps or again) and (self.count == 1 or self._working):
                    raise Stopped(f"Stopped by {name}; everything finished so far is saved.")
            else:
                # In a thread, as the handler may interrupt a holder of the lock that sending takes.
                message = dict(kind="stop", by=f"{name} on process {self.index}")
                threading.Thread(target=self._peers[0].send, kwargs=message).start()

        numbers = [*SIGNALS, signal.SIGINT] if steps else [*SIGNALS]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def should_stop(self, *, spans_hosts: bool) -> str | None:
        """Returns after a dispatch the reason to stop now, or None.

        All processes stop after the same dispatch, without an exchange at every one: process 0
        announces a dispatch `AHEAD` of its own, and waits until all have acknowledged it. Meanwhile
        the others are at most two dispatches further, because the loop reads the metrics of the
        previous dispatch, to which process 0 contributes. Without `together`, only this
        process makes the dispatch.
        """
        if not spans_hosts:
            return self._stop_reason
        self._dispatched += 1
        if self.index == 0 and self._stop_reason and self._stop_at is None:
            ahead = self._dispatched + AHEAD
            self._send_all(kind="stop", by=self._stop_reason, at=ahead)
            with self._changed:
                self._changed.wait_for(lambda: len(self._acknowledged) == self.count - 1)
            self._stop_at = ahead
        due = self._stop_at is not None and self._dispatched >= self._stop_at
        return self._stop_reason if due else None

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.count == 1:
            return
        if error is None:
            self.all_gather_object("the end", None)
            self._closed = True
            self._send_all(kind="bye")
            return
        ended = f"process {self.index} ended: "
        if isinstance(error, UserError):
            self._end(f"Error: {error}", why=f"{ended}{error}")
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._end("Interrupted.", why=f"{ended}it was interrupted", status=130)
        # JAX also fails here if another process died; `_listen` then names that process first.
        time.sleep(2 * BEAT)
        shown = "".join(traceback.format_exception(error))
        self._end(shown, why=f"{ended}{type(error).__name__}: {error}"[:2000], status=1)

    def _name_call(self, what: str) -> str:
        self._calls += 1
        return f"{self._calls} {what}"

    def _answer(self, call: str) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: 0 in self._values.get(call, {}))
            return self._values.pop(call)[0]

    def _send_all(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def attach(self, peers: dict[int, "Connection"]) -> None:
        """Starts to use connections, each read by a thread."""
        self._peers = peers
        for index, peer in peers.items():
            threading.Thread(target=self._listen, args=(index, peer), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _listen(self, index: int, peer: "Connection") -> None:
        for message in peer.messages():
            kind = message["kind"]
            with self._changed:
                if kind in ("value", "answer"):
                    self._values.setdefault(message["what"], {})[index] = message["value"]
                elif kind == "beat":
                    peer.dispatched = message["dispatched"]
                elif kind == "stop":
                    again = self._stop_reason is not None
                    self._stop_reason = message["by"]
                    self._stop_at = message.get("at", self._stop_at)
                elif kind == "acknowledged":
                    self._acknowledged.add(index)
                self._changed.notify_all()
            if kind == "stop" and self.index:
                peer.send(kind="acknowledged")
            elif kind == "stop" and self._working and not again:
                self._stop_reason = None  # the handler, which runs in the main thread, sets it
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "failed":
                self._end(f"Error: {message['why']}", why=message["why"])
            if kind == "bye":
                return
        if not self._closed:
            self._lost(index, "disappeared: it was killed, or its host went down")

    def _watch(self) -> None:
        """Sends heartbeats, and ends the run if a process is silent or too slow."""
        limit = f"{self._timeout:.0f} s (PMJAX_HOST_TIMEOUT)"
        while not self._closed:
            time.sleep(BEAT)
            self._send_all(kind="beat", dispatched=self._dispatched)
            now = time.monotonic()
            for index, peer in self._peers.items():
                if now - peer.last_heard > self._timeout:
                    self._lost(index, f"has been silent for {limit}")
            if (straggler := self._straggler(now)) is not None:
                self._lost(straggler, f"made no step for {limit} while the others wait for it")

    def _straggler(self, now: float) -> int | None:
        """Returns, on process 0, the process that has been behind at the same step for too long.

        The time counts from when another process got ahead: all may take long to compile.
        """
        if self.index:
            return None
        made = {0: self._dispatched} | {i: peer.dispatched for i, peer in self._peers.items()}
        last = min(made, key=lambda index: made[index])
        slowest = (last, made[last]) if made[last] < max(made.values()) else None
        if slowest != self._slowest:
            self._slowest, self._slowest_since = slowest, now
        return last if slowest and now - self._slowest_since > self._timeout else None

    def _lost(self, index: int, what: str) -> None:
        intact = "The last checkpoint is intact: run the same command again on all hosts."
        why = f"process {index} {what}. {intact}"
        self._end(f"Error: {why}", why=why)

    def _end(self, shown: str, *, why: str, status: int = 2) -> None:
        """Reports the reason here and to the others, and ends the process, which may be waiting."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending the process
        sys.stdout.flush()
        print(f"\n{errors.printable(shown)}", file=sys.stderr, flush=True)
        if self.index:  # whose log lines go to a file
            log.info(shown)
        self._send_all(kind="failed", why=why)
        if self.index == 0:
            time.sleep(
                FAILURE_NOTICE_SECONDS
            )  # JAX kills the others as soon as this process is gone
        os._exit(status)


class Connection:
    """JSON objects over a socket in both directions, one per line."""

    def __init__(self, raw: socket.socket):
        self._socket, self._lines, self._lock = raw, raw.makefile("rb"), threading.Lock()
        self.dispatched = 0
        self.last_heard = time.monotonic()

    def send(self, **message: Any) -> None:
        """Sends a message; an error is ignored, as the reader notices when the peer is gone."""
        with self._lock, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields messages until the peer is gone or sends something else."""
        with suppress(OSError, ValueError):
            while line := self._lines.readline(_LINE):
                self.last_heard = time.monotonic()
                yield json.loads(line)

    def receive(self, seconds: float) -> dict[str, Any]:
        """Returns the next message, or {} if none arrives in time."""
        self._socket.settimeout(max(seconds, 0.1))
        message = next(self.messages(), {})
        self._socket.settimeout(None)
        return message if isinstance(message, dict) else {}


def processes(indices: list[int]) -> str:
    """Returns 'process 1' or 'processes 1, 2'."""
    return f"process{'es' * (len(indices) > 1)} {', '.join(map(str, indices))}"
