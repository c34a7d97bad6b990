"""How the C library keeps what is freed, in a process of its own."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is not glibc")


def test_freed_memory_is_kept_until_it_is_returned():
    code = """
import resource
from pathlib import Path
from pmjax.distributed import host_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def use():
    blocks = [bytearray(b"1" * 2**20) for _ in range(200)]
    return bytearray(1000)  # after them in the heap

host_memory.keep_freed_memory()
before = resident()
kept = use()
after = resident()
host_memory.return_freed_memory()
print(after - before, resident() - before)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 180 * 2**20
    assert left < 20 * 2**20
