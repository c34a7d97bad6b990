"""Several processes as one run: how they agree, wait, stop and end together.

JAX moves the arrays between hosts. Beside it every process keeps one plain connection to process 0,
over which JSON lines say what JAX cannot: which config a host has, that SIGTERM came, how far a
host is, and why it ended. A process that dies closes its connection, so the others know at once; a
host that is frozen, cut off or behind is named after a timeout. JAX's own watch ends a process
without a word that a user could use, and serves only as the second net.

`rendezvous.py` says how the processes are started and find each other.
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

from pmjax.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 300.0  # seconds, unless PMJAX_HOST_TIMEOUT says otherwise
BEAT = 1.0  # seconds between signs of life
LAST_WORDS = 2.0  # seconds that a failing process leaves the others to read why
AHEAD = 3  # dispatches; see `ProcessGroup.should_stop`
_LINE = 1 << 20  # bytes that a line may have


class Stopped(KeyboardInterrupt):
    """A signal to stop came; the state is saved. Not an error that others may catch."""


# The scheduler's warnings; those of SLURM are the user's choice (sbatch --signal=USR1@120).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """Which of how many processes this is, as the environment says it."""

    index: int = 0
    count: int = 1
    coordinator: str = ""
    detect: bool = False  # JAX finds out index and count
    local_devices: int = 0  # CPU devices to make (0: by the cores)
    timeout: float = TIMEOUT


class ProcessGroup:
    """The processes of a run; without arguments, one process alone, for which all this is free.

    As a context it ends the run on all hosts when one fails, and waits for all at the end.

    Attributes:
      index: of this process; 0 is the one that writes, says things and evaluates.
      count: of processes.
    """

    def __init__(self, where: ProcessSpec = ProcessSpec()):
        self.index, self.count = where.index, where.count
        self._timeout = where.timeout
        self._changed = threading.Condition()
        self._peers: dict[int, Connection] = {}
        self._values: dict[str, dict[int, Any]] = {}  # what the processes said, by occasion
        self._occasions = 0
        self._dispatched = 0
        self._behind: tuple[int, int] | None = None  # who, after how many dispatches
        self._behind_since = 0.0
        self._wanted: str | None = None  # who wants to stop
        self._stop_at: int | None = None
        self._working = False  # process 0, while the others wait
        self._acknowledged: set[int] = set()
        self._ending = threading.Lock()
        self._closed = False

    def all_gather_object(self, what: str, value: Any, *, patient: bool = False) -> list[Any]:
        """Returns every process's JSON value, once all have come here.

        Raises:
          UserError: if one does not come within the timeout, naming it. With `patient` only its
            end or its silence counts, for work that may take longer on one host.
        """
        if self.count == 1:
            return [value]
        occasion = self._occasion(what)
        if self.index:
            self._peers[0].send(kind="value", what=occasion, value=value)
            return self._answer(occasion)
        with self._changed:
            found = self._values.setdefault(occasion, {})
            found[0] = value
            self._changed.wait_for(
                lambda: len(found) == self.count, None if patient else self._timeout
            )
            late = sorted(set(range(self.count)) - set(found))
            if late:
                raise UserError(
                    f"{processes(late).capitalize()} did not come to {what} within "
                    f"{self._timeout:.0f} s (PMJAX_HOST_TIMEOUT)."
                )
            values = [found[i] for i in range(self.count)]
        self._tell_all(kind="answer", what=occasion, value=values)
        return values

    def run_on_primary(self, what: str, work: Callable[[], None]) -> None:
        """Lets process 0 do some work while the others wait, for as long as it gives signs of life.

        Raises:
          Stopped: on all, if the work was stopped.
        """
        if self.count == 1:
            self._pause(what)
            return work()
        occasion = self._occasion(what)
        if self.index:
            log.info("Waiting for process 0: %s.", what)
            with self.signals():
                stopped = self._answer(occasion)
            if stopped:
                raise Stopped(stopped)
            return None
        try:
            self._working = True
            with self.signals(steps=False):
                self._pause(what)
                work()
        except Stopped as stopped:
            self._tell_all(kind="answer", what=occasion, value=str(stopped))
            raise
        finally:
            self._working = False
        self._tell_all(kind="answer", what=occasion, value="")
        return None

    def _pause(self, what: str) -> None:
        """Stops before some work of process 0 if that is wanted."""
        if self._wanted:
            raise Stopped(f"Stopped by {self._wanted} before: {what}.")

    @contextmanager
    def signals(self, *, steps: bool = True) -> Iterator[None]:
        """Takes SIGTERM, SIGUSR1 and SIGUSR2 as the wish to stop, of all hosts, at a step.

        Args:
          steps: whether there are steps, in which Ctrl-C is such a wish too. If not, one process
            alone, and process 0 while others wait for its work, stop where the signal comes.
        """

        def handle(number, frame):
            name, again = signal.Signals(number).name, self._wanted is not None
            if self.index == 0:
                self._wanted = self._wanted or name
                if not (steps or again) and (self.count == 1 or self._working):
                    raise Stopped(f"Stopped by {name}; what was finished is kept.")
            else:
                # A handler may interrupt whoever holds the lock that sending needs.
                by = f"{name} on process {self.index}"
                say = dict(kind="stop", by=by)
                threading.Thread(target=self._peers[0].send, kwargs=say).start()

        numbers = (*SIGNALS, signal.SIGINT) if steps else SIGNALS
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def should_stop(self, *, together: bool) -> str | None:
        """Tells after a dispatch whether to stop now, and why.

        Args:
          together: whether the dispatch was one that all processes make; all then stop after the
            same one. Nobody asks the others on the way: process 0 names a dispatch far enough
            ahead, and waits until all have heard of it. Meanwhile they can be at most two ahead,
            as a loop reads what the dispatch before gave, which needs process 0's part.
        """
        if not together:
            return self._wanted
        self._dispatched += 1
        if self.index == 0 and self._wanted and self._stop_at is None:
            ahead = self._dispatched + AHEAD
            self._tell_all(kind="stop", by=self._wanted, at=ahead)
            with self._changed:
                self._changed.wait_for(lambda: len(self._acknowledged) == self.count - 1)
            self._stop_at = ahead
        due = self._stop_at is not None and self._dispatched >= self._stop_at
        return self._wanted if due else None

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.count == 1:
            return
        if error is None:
            self.all_gather_object("the end", None)
            self._closed = True
            for peer in self._peers.values():
                peer.send(kind="bye")
            return
        ended = f"process {self.index} ended: "
        if isinstance(error, UserError):
            self._end(f"Error: {error}", tell=f"{ended}{error}")
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._end("Interrupted.", tell=f"{ended}it was interrupted", status=130)
        # JAX fails where a peer has gone; who that was comes over the connection to it.
        time.sleep(2 * BEAT)
        shown = "".join(traceback.format_exception(error))
        self._end(shown, tell=f"{ended}{type(error).__name__}: {error}"[:2000], status=1)

    def _occasion(self, what: str) -> str:
        self._occasions += 1
        return f"{self._occasions} {what}"

    def _answer(self, occasion: str) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: 0 in self._values.get(occasion, {}))
            return self._values.pop(occasion)[0]

    def _tell_all(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def attach(self, peers: dict[int, "Connection"]) -> None:
        """Takes connections into use, one thread reading each."""
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
                    self._wanted, again = message["by"], self._wanted is not None
                    self._stop_at = message.get("at", self._stop_at)
                elif kind == "heard":
                    self._acknowledged.add(index)
                self._changed.notify_all()
            if kind == "stop" and self.index:
                peer.send(kind="heard")
            elif kind == "stop" and self._working and not again:
                self._wanted = None  # for the handler, which runs in the main thread
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "failed":
                self._end(f"Error: {message['why']}", tell=message["why"])
            if kind == "bye":
                return
        if not self._closed:
            self._lost(index, "has gone without a word: it was killed, or its host went down")

    def _watch(self) -> None:
        """Gives signs of life, and names who gives none or stays behind."""
        limit = f"{self._timeout:.0f} s (PMJAX_HOST_TIMEOUT)"
        while not self._closed:
            time.sleep(BEAT)
            self._tell_all(kind="beat", dispatched=self._dispatched)
            now = time.monotonic()
            for index, peer in self._peers.items():
                if now - peer.heard > self._timeout:
                    self._lost(index, f"has been silent for {limit}")
            straggler = self._straggler(now)
            if straggler is not None:
                self._lost(straggler, f"made no step for {limit}, and others wait for it")

    def _straggler(self, now: float) -> int | None:
        """Returns on process 0 who has been behind others for too long, at one and the same step.

        The time counts from when another got ahead: to compile for an hour is nobody's fault as
        long as all do.
        """
        if self.index:
            return None
        made = {0: self._dispatched} | {i: peer.dispatched for i, peer in self._peers.items()}
        last = min(made, key=made.get)
        behind = (last, made[last]) if made[last] < max(made.values()) else None
        if behind != self._behind:
            self._behind, self._behind_since = behind, now
        return last if behind and now - self._behind_since > self._timeout else None

    def _lost(self, index: int, what: str) -> None:
        why = (
            f"process {index} {what}. "
            f"The last checkpoint is good: run the same command again on all hosts."
        )
        self._end(f"Error: {why}", tell=why)

    def _end(self, shown: str, *, tell: str, status: int = 2) -> None:
        """Says why, here and to the others, and ends the process whatever it waits for."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is about to end the process
        sys.stdout.flush()
        print(f"\n{shown}", file=sys.stderr, flush=True)
        if self.index:  # whose log lines go to a file
            log.info(shown)
        self._tell_all(kind="failed", why=tell)
        if self.index == 0:
            time.sleep(LAST_WORDS)  # JAX kills the others as soon as this process has gone
        os._exit(status)


class Connection:
    """One JSON object a line, both ways, over a socket."""

    def __init__(self, raw: socket.socket):
        self._socket, self._lines, self._lock = raw, raw.makefile("rb"), threading.Lock()
        self.dispatched = 0
        self.heard = time.monotonic()

    def send(self, **message: Any) -> None:
        """Sends a message; whether the other side still lives is for its reader to notice."""
        with self._lock, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields messages until the other side is gone, or speaks otherwise."""
        with suppress(OSError, ValueError):
            while line := self._lines.readline(_LINE):
                self.heard = time.monotonic()
                yield json.loads(line)

    def receive(self, seconds: float) -> dict[str, Any]:
        """Returns the next message, or an empty one if none comes."""
        self._socket.settimeout(max(seconds, 0.1))
        message = next(self.messages(), {})
        self._socket.settimeout(None)
        return message if isinstance(message, dict) else {}


def processes(indices: list[int]) -> str:
    """Returns 'process 1' or 'processes 1, 2'."""
    return f"process{'es' * (len(indices) > 1)} {', '.join(map(str, indices))}"
