"""Disks that are full, for real: a tmpfs of a few MB, filled at the moment that a test names."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from pmjax import cli
from pmjax.datasets import loader
from tests.small_run import ROOT

RESULTS = ("autoencoder.msgpack", "embeddings.npy", "priors/latent_gan.msgpack")
# What a process needs to mount a file system that only it sees: as root, or as anybody.
NAMESPACES = (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"])


@functools.cache
def small_disk(scenario):
    """Returns what a scenario of small_disk.py has found."""
    trial = ["sh", "-c", "mount -t tmpfs none /mnt"]
    private = [n for n in NAMESPACES if not subprocess.run([*n, *trial]).returncode]
    if not private:
        pytest.skip("this system lets nobody mount a tmpfs")
    script = Path(__file__).with_name("small_disk.py")
    done = subprocess.run(
        [*private[0], sys.executable, script, scenario],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, message, newest",
    [
        (
            "checkpoint",
            "for the checkpoint of step 20 in .*it needs .* MB, and 0.0 MB are free",
            10,
        ),
        ("half a checkpoint", "for the .*checkpoint.* The checkpoint of step 30 is intact", 30),
        (
            "events",
            "for losses and metrics in .* 0.0 MB are free there. Checkpoints are intact",
            30,
        ),
        ("autoencoder", "for autoencoder.msgpack in .*run: 0.0 MB are free", 60),
        ("embeddings", "for embeddings.npy in .*run: 0.0 MB are free", 60),
        ("metrics", "in .*: 0.0 MB are free", 60),
        ("report", "in .*: 0.0 MB are free", 60),
    ],
)
def test_a_disk_that_is_full_ends_a_run_with_one_message(moment, message, newest):
    found = small_disk("run")[moment]
    last = found["said"].strip().splitlines()[-1]
    assert found["status"] == 2, found["said"]
    assert last.startswith("Error: No space left ") and "Free some space and run the same" in last
    assert re.search(message, last), last
    assert "Traceback" not in found["said"]
    assert found["newest"] == newest and not found["torn"]


@pytest.mark.slow
def test_with_space_freed_each_time_the_result_has_the_same_bits(small_run):
    end = small_disk("run")["end"]
    assert end["status"] == 0, end["said"]
    whole = {f: hashlib.sha256((small_run / f).read_bytes()).hexdigest() for f in RESULTS}
    assert end["digest"] == whole


@pytest.mark.slow
@pytest.mark.parametrize("case", ["digits None", "digits _describe", "swiss_roll _points"])
def test_a_cache_on_a_full_disk_is_an_error_and_built_once_there_is_space(case):
    found = small_disk("cache")[case]
    assert found["said"].startswith(f"UserError: No space left for data set '{case.split()[0]}'")
    assert "--config.data.cache_dir" in found["said"]
    assert ("are free" in found["said"]) == (
        case == "digits None"
    )  # checked before anything is written
    assert not found["left"]
    assert found["after"] == loader.load(case.split()[0], "train").fingerprint


COMPILE = """
import resource, sys
import jax
from pmjax import cli
cli.cache_compilations()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.numpy.ones(3)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), most))
jax.jit(lambda x: jax.numpy.sin(x).sum())(1.0)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info >= (3, 14) or find_spec("zstandard") is not None,
    reason="JAX compresses with zstd here, which is not checked",
)
def test_a_compiled_program_truncated_by_a_full_disk_is_compiled_again(tmp_path):
    said, sizes = [], []
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    for limit in (1000, 1 << 30, 1 << 30):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, str(limit)],
            cwd=ROOT,
            env=own | {"PMJAX_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
        sizes.append([p.stat().st_size for p in (tmp_path / "jax").glob("jit__lambda*-cache")])
    assert "Error writing persistent compilation cache entry" in said[0] and sizes[0] == [1000]
    assert "Error" not in said[1] + said[2]
    assert sizes[1] == sizes[2] and min(sizes[1]) > 1000


def test_compiled_programs_are_checked_once_and_those_of_zstd_never(tmp_path):
    def kept():
        return {path.name for path in tmp_path.glob("*-cache")}

    whole = zlib.compress(bytes(1000))
    contents = {"whole": whole, "cut": whole[:-1], "empty": b"", "zstd": b"\x28\xb5\x2f\xfd"}
    for name, content in contents.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    cli._delete_truncated(tmp_path)
    assert kept() == {"whole-cache", "zstd-cache"}
    (tmp_path / "whole-cache").write_bytes(whole[:-1])
    os.utime(tmp_path / "whole-cache", (0, 0))  # as if it had been there
    (tmp_path / "new-cache").write_bytes(whole[:-1])
    cli._delete_truncated(tmp_path)
    assert kept() == {"whole-cache", "zstd-cache"}
