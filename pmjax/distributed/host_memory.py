"""Memory of this host: how much is free, and how the C library reuses what a process frees."""

import contextlib
import ctypes
from pathlib import Path

# A container's limit, what of it is used, and what of that is files that the system gives up for
# the asking, of both versions of control groups.
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory() -> int | None:
    """Returns the bytes of memory that this process may still take, where the system says it."""
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]))
    for limit, used, files in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            most, taken = (int((_CGROUP / name).read_text()) for name in (limit, used))
            free.append(most - max(0, taken - _cached(_CGROUP / used, files)))
    return max(0, min(free)) if free else None


def _cached(used: Path, name: str) -> int:
    """Returns a number of the memory.stat beside a file, 0 if it is not there."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = used.with_name("memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)[name])
    return 0


# Of glibc's host_memory.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory(*, one_arena: bool = False) -> None:
    """Lets this process keep what it frees.

    It would hand the temporaries of each step back to the kernel, and get them again page by page:
    a fifth of the time of a step of small convolutions. `one_arena`, before there are threads, does
    so for temporaries above 64 MB, too, which do not fit into a thread's own arena; it is not for
    training, whose threads would wait for each other (a step of digits took 1.4 times as long).
    """
    options = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)]
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in [*options, (_M_ARENA_MAX, 1)] if one_arena else options:
            mallopt(option, value)


def return_freed_memory() -> None:
    """Gives back to the kernel, once, what this process has freed.

    What happens now and then, such as a save, leaves holes in the heaps of its threads; they would
    take more memory each time until all heaps have the size of the largest.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
