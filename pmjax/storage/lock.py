"""A lock that one process holds, on any host, while others wait or are refused.

It is of an entry of the cache while that is made, and of a workdir while it is trained in.

The system's own lock (flock) reaches the processes of a host, ends with its owner, and on most
network file systems reaches other hosts too. Where it does not, a file that the owner creates and
touches every few seconds does: one that is no longer touched is of a dead owner.
"""

import contextlib
import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pmjax.errors import UserError

BEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which the owner on another host is dead
GRACE = 2.0  # seconds from taking the system's lock, at most, to the owner's file


@contextlib.contextmanager
def lock(entry: Path, what: str, *, refuse: str = "") -> Iterator[None]:
    """Holds the lock of an entry, after waiting, with a message, for whoever holds it.

    Args:
        entry: the path that is made under the lock; the files of the lock lie beside it.
        what: is made there, for the message.
        refuse: what to say behind the name of another that holds it, instead of waiting.

    Raises:
        UserError: if another lives that holds it, and `refuse` is given.
    """
    owner = entry.with_name(f".{entry.name}.owner")
    with contextlib.ExitStack() as stack:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(entry.with_name(f".{entry.name}.lock").open("w"))
        except OSError as e:
            raise UserError(
                f"Cannot write to the cache {entry.parent}: {e.strerror}. Set cache_dir or the "
                "variable PMJAX_CACHE to a directory of yours."
            ) from e
        alone = _flock(file, owner, what, refuse)
        me = _claim(owner, what, alone, refuse)
        stack.callback(_remove, owner, me)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(owner, stop), daemon=True)
        beat.start()
        stack.callback(beat.join)
        stack.callback(stop.set)
        yield


def _flock(file, owner: Path, what: str, refuse: str) -> bool:
    """Takes the system's lock, and tells whether the file system has such locks."""
    until = time.monotonic() + GRACE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            other = _read(owner)
        except OSError:
            return False
        here = other.get("host") == platform.node()
        alive = here and _alive(other.get("pid"))
        if alive or time.monotonic() > until:
            break
        time.sleep(0.05)  # its file is still to come, and may be that of a dead one before it
    other = {} if here and not alive else other
    if refuse:
        raise UserError(f"{_name(other)} {refuse}")
    _tell(other, what)
    fcntl.flock(file, fcntl.LOCK_EX)
    return True


def _claim(owner: Path, what: str, alone: bool, refuse: str) -> dict:
    """Creates the owner's file, once it is not there or of a dead owner, and returns what is in it.

    One on another host is dead after `STALE` seconds without a sign of life: a run that goes on
    elsewhere after its host was taken away is not refused, but waits so long.
    """
    me = {"host": platform.node(), "pid": os.getpid()}
    told = False
    seen, since = None, time.monotonic()
    while True:
        try:
            _create(owner, me)
            return me
        except FileExistsError:
            other = _read(owner)
        if other.get("host") == me["host"] and (alone or not _alive(other.get("pid"))):
            _remove(owner, other)  # it would hold the system's lock if it lived
            continue
        if refuse and other.get("host") == me["host"]:
            raise UserError(f"{_name(other)} {refuse}")
        with contextlib.suppress(FileNotFoundError):
            if (beat := owner.stat().st_mtime_ns) != seen:
                if refuse and seen is not None:
                    raise UserError(f"{_name(other)} {refuse}")
                seen, since = beat, time.monotonic()
        empty = alone and not other  # by a full disk or a power cut
        limit = GRACE if empty else STALE
        if time.monotonic() - since > limit:
            print(f"{_name(other)} no longer {_does(what, refuse)}: taking over.", file=sys.stderr)
            _remove(owner, other)
            continue
        if not (told or empty):
            _tell(other, what, refuse)
            told = True
        time.sleep(min(1.0, limit / 4))


def _create(owner: Path, content: dict) -> None:
    """Makes the owner's file, which is never seen half-written; it must not be there."""
    if owner.exists():
        raise FileExistsError(owner)
    part = _aside(owner)
    try:
        part.write_text(json.dumps(content))
        _link(part, owner)
    finally:
        part.unlink(missing_ok=True)


def _remove(owner: Path, content: dict) -> None:
    """Removes the owner's file if this is what it holds: another may just have taken over."""
    aside = _aside(owner)
    with contextlib.suppress(FileNotFoundError):
        owner.rename(aside)  # which one of several can do
        if _read(aside) != content:
            with contextlib.suppress(FileExistsError):
                _link(aside, owner)
        aside.unlink()


def _aside(owner: Path) -> Path:
    return owner.with_name(f"{owner.name}.{secrets.token_hex(4)}")


def _link(file: Path, owner: Path) -> None:
    """Gives a file the owner's name too, or raises FileExistsError."""
    try:
        os.link(file, owner)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with owner.open("x") as new:
            new.write(file.read_text())


def _beat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _read(owner: Path) -> dict:
    """Returns host and pid of an owner, or nothing if it is just coming or going."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := json.loads(owner.read_text()), dict):
            return content
    return {}


def _alive(pid) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def _name(owner: dict) -> str:
    return f"Process {owner['pid']} on {owner['host']}" if owner else "Another process"


def _does(what: str, refuse: str) -> str:
    return f"uses {what}" if refuse else f"prepares {what}"


def _tell(owner: dict, what: str, refuse: str = "") -> None:
    wait = f"waiting up to {STALE:.0f} s for a sign of life" if refuse else "waiting for it"
    print(f"{_name(owner)} {_does(what, refuse)}: {wait}.", file=sys.stderr, flush=True)
