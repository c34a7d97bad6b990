"""A lock that one process holds, on any host, while others wait or are rejected.

It protects an entry of the cache while that is prepared, and a workdir during training.

The system's lock (flock) holds between the processes of a host, ends with its owner, and on most
network file systems holds between hosts. On the others, a file replaces it that the owner creates
and touches every few seconds: if the file is no longer touched, its owner is dead.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pmjax.errors import UserError

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between heartbeats
STALE = 60.0  # seconds without a heartbeat after which an owner on another host is dead
GRACE = 2.0  # seconds, at most, from the system's lock to the owner's file


@contextlib.contextmanager
def lock(entry: Path, what: str, *, refuse: str = "") -> Iterator[None]:
    """Holds the lock of an entry; waits, with a message, while another process holds it.

    Args:
      entry: path that the lock protects; the lock's files are next to it.
      what: the thing locked, for messages.
      refuse: instead of waiting, this follows the other owner's name in a `UserError`.
    """
    owner = entry.with_name(f".{entry.name}.owner")
    with contextlib.ExitStack() as stack:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(entry.with_name(f".{entry.name}.lock").open("w"))
        except OSError as e:
            raise UserError(
                f"Cannot create the lock of {what}, {e.filename}: {e.strerror}. Use a "
                "directory that you can write; cache_dir or the variable PMJAX_CACHE names that of "
                "the cache."
            ) from e
        locked = _flock(file, owner, what, refuse)
        me = _claim(owner, what, locked, refuse)
        stack.callback(_remove, owner, me)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(owner, stop), daemon=True)
        beat.start()
        stack.callback(beat.join)
        stack.callback(stop.set)
        yield


def _flock(file: IO[str], owner: Path, what: str, refuse: str) -> bool:
    """Takes the system's lock; returns whether the file system has such locks."""
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
        time.sleep(0.05)  # the owner has yet to write its file; this one may be an earlier owner's
    other = {} if here and not alive else other
    if refuse:
        raise UserError(f"{_name(other)} {refuse}")
    _log_wait(other, what)
    fcntl.flock(file, fcntl.LOCK_EX)
    return True


def _claim(owner: Path, what: str, locked: bool, refuse: str) -> dict[str, Any]:
    """Creates the owner's file, once there is none or its owner is dead; returns its content.

    An owner on another host is dead after `STALE` seconds without a heartbeat: a run that resumes
    elsewhere, after its host was preempted, waits so long and is not rejected.
    """
    me = {"host": platform.node(), "pid": os.getpid()}
    logged = False
    seen, since = None, time.monotonic()
    while True:
        try:
            _create(owner, me)
            return me
        except FileExistsError:
            other = _read(owner)
        if other.get("host") == me["host"] and (locked or not _alive(other.get("pid"))):
            _remove(owner, other)  # a living owner would hold the system's lock
            continue
        if refuse and other.get("host") == me["host"]:
            raise UserError(f"{_name(other)} {refuse}")
        with contextlib.suppress(FileNotFoundError):
            if (beat := owner.stat().st_mtime_ns) != seen:
                if refuse and seen is not None:
                    raise UserError(f"{_name(other)} {refuse}")
                seen, since = beat, time.monotonic()
        empty = locked and not other  # after a full disk or a power cut
        limit = GRACE if empty else STALE
        if time.monotonic() - since > limit:
            log.warning("%s no longer %s: taking over.", _name(other), _does(what, refuse))
            _remove(owner, other)
            continue
        if not (logged or empty):
            _log_wait(other, what, refuse)
            logged = True
        time.sleep(min(1.0, limit / 4))


def _create(owner: Path, content: dict[str, Any]) -> None:
    """Creates the owner's file completely; raises FileExistsError if there is one."""
    if owner.exists():
        raise FileExistsError(owner)
    part = _aside(owner)
    try:
        part.write_text(json.dumps(content))
        _link(part, owner)
    finally:
        part.unlink(missing_ok=True)


def _remove(owner: Path, content: dict[str, Any]) -> None:
    """Removes the owner's file if it has this content: another may just have taken over."""
    aside = _aside(owner)
    with contextlib.suppress(FileNotFoundError):
        owner.rename(aside)  # only one of several processes succeeds
        if _read(aside) != content:
            with contextlib.suppress(FileExistsError):
                _link(aside, owner)
        aside.unlink()


def _aside(owner: Path) -> Path:
    return owner.with_name(f"{owner.name}.{secrets.token_hex(4)}")


def _link(file: Path, owner: Path) -> None:
    """Links a file to the owner's name, or raises FileExistsError."""
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


def _read(owner: Path) -> dict[str, Any]:
    """Returns host and pid of an owner, {} if its file is just being created or removed."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := json.loads(owner.read_text()), dict):
            return content
    return {}


def _alive(pid: Any) -> bool:
    with contextlib.suppress(PermissionError):  # a process of another user
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, TypeError):
            return False
    return True


def _name(owner: dict[str, Any]) -> str:
    return f"Process {owner['pid']} on {owner['host']}" if owner else "Another process"


def _does(what: str, refuse: str) -> str:
    return f"uses {what}" if refuse else f"prepares {what}"


def _log_wait(owner: dict[str, Any], what: str, refuse: str = "") -> None:
    wait = f"waiting up to {STALE:.0f} s for a heartbeat" if refuse else "waiting for it"
    log.warning("%s %s: %s.", _name(owner), _does(what, refuse), wait)
