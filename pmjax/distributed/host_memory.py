"""Memory of the host: how much is free, and what the C library does with freed memory.

Our own code, because libraries such as psutil report the machine's memory: in a container, the
limit of its control group decides when a process is killed.
"""

import contextlib
import ctypes
from pathlib import Path

# Limit, usage, and the part of the usage that is reclaimable file cache, in versions 2 and 1 of
# control groups.
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory() -> int | None:
    """Returns the bytes of memory that this process may still allocate, None if unknown."""
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
    """Returns an entry of the memory.stat next to a file, 0 if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = used.with_name("memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)[name])
    return 0


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory(*, one_arena: bool = False) -> None:
    """Keeps freed memory in the process, for reuse.

    By default, the temporaries of each step are returned to the kernel and allocated again page by
    page: a fifth of the time of a step with small convolutions.

    Args:
      one_arena: also keep temporaries above 64 MB, which do not fit into a thread's own arena. Call
        it before threads start. Not for training, where threads would wait for each other.
    """
    options = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)]
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in [*options, (_M_ARENA_MAX, 1)] if one_arena else options:
            mallopt(option, value)


def return_freed_memory() -> None:
    """Returns the memory that this process has freed to the kernel, once.

    Occasional work, such as a save, leaves holes in its threads' heaps. Without this, memory grows
    until all heaps are as large as the largest.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
