"""Disks that are full, for real: a tmpfs of a few MB, filled at the moment that a test names."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pmjax import datasets

RESULTS = ("autoencoder.msgpack", "embeddings.npy", "priors/latent_gan.msgpack")
# What a process needs to mount a file system that only it sees: as root, or as anybody.
NAMESPACES = (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"])


@functools.cache
def small_disk(scenario):
    """Returns what a scenario of _small_disk.py has found."""
    trial = ["sh", "-c", "mount -t tmpfs none /mnt"]
    private = [n for n in NAMESPACES if not subprocess.run([*n, *trial]).returncode]
    if not private:
        pytest.skip("this system lets nobody mount a tmpfs")
    script = Path(__file__).with_name("_small_disk.py")
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


@pytest.mark.parametrize(
    "moment, message, newest",
    [
        (
            "checkpoint",
            "for the checkpoint of step 20 in .*it takes .* MB, and 0.0 MB are free",
            10,
        ),
        ("half a checkpoint", "for the .*checkpoint.* The checkpoint of step 30 is good", 30),
        ("events", "for losses and metrics in .* 0.0 MB are free there. Checkpoints are kept", 30),
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
    assert last.startswith("Error: No space left ") and "Make room, and run the same" in last
    assert re.search(message, last), last
    assert "Traceback" not in found["said"]
    assert found["newest"] == newest and not found["torn"]


def test_after_space_is_made_each_time_the_result_has_the_same_bits(small_run):
    end = small_disk("run")["end"]
    assert end["status"] == 0, end["said"]
    whole = {f: hashlib.sha256((small_run / f).read_bytes()).hexdigest() for f in RESULTS}
    assert end["digest"] == whole


@pytest.mark.parametrize("case", ["digits None", "digits _about", "swiss_roll _points"])
def test_a_cache_on_a_full_disk_is_told_and_made_when_there_is_space(case):
    found = small_disk("cache")[case]
    assert found["said"].startswith(f"UserError: No space left for data set '{case.split()[0]}'")
    assert "--config.data.cache_dir" in found["said"]
    assert ("are free" in found["said"]) == (case == "digits None")  # told before anything is done
    assert not found["left"]
    assert found["after"] == datasets.load(case.split()[0], "train").fingerprint
