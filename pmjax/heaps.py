"""How the C library keeps what a process frees, where it is glibc; elsewhere nothing happens."""

import contextlib
import ctypes

# Of glibc's malloc.h.
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
