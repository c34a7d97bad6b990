"""A run is killed or asked to stop in the middle of what it does, and ends with the same bits."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, run_command

from pmjax import maintenance, soak
from pmjax.errors import UserError

# One workdir goes through all of these.
CHAIN = (
    ("SIGKILL", "compilation"),
    ("SIGUSR1", "step"),
    ("maintenance", "step"),
    ("SIGKILL", "checkpoint"),
    ("SIGTERM", "evaluation"),
    ("SIGKILL", "metrics"),
    ("SIGKILL", "report"),
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The workdir, and {what was done when: the process}."""
    workdir, done = tmp_path_factory.mktemp("chain") / "run", {}
    for sent, moment in CHAIN:
        compiles = {"JAX_ENABLE_COMPILATION_CACHE": "0"} if moment == "compilation" else {}
        done[sent, moment] = subprocess.run(
            [sys.executable, "-m", "tests._killed", sent, moment, *SMALL, f"--workdir={workdir}"],
            cwd=ROOT,
            env=os.environ | compiles,
            capture_output=True,
            text=True,
            timeout=600,
            start_new_session=True,  # maintenance ends a process group
        )
    done["last"] = run_command("main", *SMALL, f"--workdir={workdir}")
    return workdir, done


def test_each_of_these_moments_was_hit(chain):
    for (sent, moment), done in ((key, d) for key, d in chain[1].items() if key != "last"):
        expected = -signal.SIGKILL if sent == "SIGKILL" else 0
        assert done.returncode == expected, (sent, moment, done.stderr)


def test_after_all_that_parameters_metrics_and_history_are_the_same_bits(chain, small_run):
    workdir, done = chain
    assert done["last"].returncode == 0, done["last"].stderr
    assert soak.results(workdir) == soak.results(small_run)


@pytest.mark.parametrize(
    "key, told",
    [
        (("SIGUSR1", "step"), "stage1: stopped by SIGUSR1 after step"),
        (("maintenance", "step"), "Maintenance is announced (TERMINATE_ON_HOST_MAINTENANCE)"),
        (("SIGTERM", "evaluation"), "Stopped by SIGTERM; what was finished is kept."),
    ],
)
def test_who_is_asked_to_stop_says_what_is_kept_and_how_to_go_on(chain, key, told):
    workdir, done = chain
    assert told in done[key].stderr
    assert f"python -m pmjax.main {SMALL[0]}" in done[key].stderr
    assert f"--workdir={workdir}" in done[key].stderr
    assert "Traceback" not in done[key].stderr


def test_each_start_goes_on_where_the_one_before_was(chain):
    said = {key: done.stderr for key, done in chain[1].items()}
    assert "stage1: going on from step" in said["SIGKILL", "checkpoint"]
    assert "stage1: going on from step" in said["SIGTERM", "evaluation"]
    assert "stage1: finished before" in said["SIGKILL", "metrics"]
    assert "stage2: finished before" in said["SIGKILL", "metrics"]


def test_nothing_unfinished_is_left(chain):
    left = [str(p) for p in chain[0].rglob("*") if p.suffix in (".part", ".tmp")]
    assert not left
    assert not list(chain[0].glob("checkpoints/*/*orbax-checkpoint-tmp*"))


class Measured(soak.Life):
    """A start of which only measurements are known."""

    def __init__(self, *memory, descriptors=None):
        self.killed_in = ""
        descriptors = descriptors or [9] * len(memory)
        self.samples = [("stage 1", *pair) for pair in zip(memory, descriptors, strict=True)]


def a_round(*lives):
    found = soak.Round(pathlib.Path(), lives)
    found.wrong = []
    return found


STEADY, GROWING = Measured(*[10**8] * 20), Measured(*range(10**8, 14 * 10**7, 10**6))
LEAKING = Measured(*[10**8] * 20, descriptors=[*[9] * 15, *[10] * 5])


def verdict(*rounds, reference=STEADY):
    said = []
    return soak._verdict(reference, rounds, said.append), "\n".join(said)


@pytest.mark.parametrize(
    "rounds, reference, told",
    [
        ([a_round(STEADY), a_round(Measured(*[106 * 10**6] * 20))], STEADY, "changed by +6.0%"),
        ([a_round(STEADY, GROWING)], STEADY, "grew by at most 17.5% (allowed: 5%)"),
        ([], GROWING, "grew by at most 17.5%"),
        ([a_round(STEADY, LEAKING)], STEADY, "descriptors by +1, in 3 starts"),
    ],
    ids=["rounds", "start", "reference", "descriptors"],
)
def test_memory_and_descriptors_that_grow_are_named(rounds, reference, told):
    good, said = verdict(*rounds, reference=reference)
    assert not good and told in said


def test_what_is_steady_or_shrinks_is_as_it_has_to_be():
    smaller = Measured(*[9 * 10**7] * 20)
    assert verdict(a_round(STEADY, smaller), a_round(smaller))[0]


def test_what_was_too_short_to_tell_says_nothing_of_memory():
    short = [Measured(*[size] * 19) for size in (10**8, 10**8, 2 * 10**8)]
    good, said = verdict(*map(a_round, short[1:]), reference=short[0])
    assert good and "emory" not in said


def test_what_differs_is_named():
    wrong = a_round(STEADY)
    wrong.wrong = ["metrics.json"]
    assert "differs: metrics.json" in wrong.row()
    good, said = verdict(wrong, a_round(STEADY))
    assert not good and "1 of 2 rounds" in said


def test_an_address_for_maintenance_that_is_none_is_named():
    with pytest.raises(UserError, match="PMJAX_MAINTENANCE_URL='metadata' must be"):
        maintenance.watch(print, environ={"PMJAX_MAINTENANCE_URL": "metadata"})


def test_a_host_that_announces_nothing_is_asked_again_and_said_once(monkeypatch):
    monkeypatch.setattr(maintenance, "EVERY", 0.01)
    answers = iter([OSError("no route"), OSError("no route"), b"NONE", b"MIGRATE"])

    def urlopen(request, timeout):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(maintenance._direct, "open", urlopen)
    said, acted = [], []
    url = {"PMJAX_MAINTENANCE_URL": "http://there"}
    maintenance.watch(said.append, act=lambda: acted.append(1), environ=url).join(timeout=60)
    assert acted == [1] and len(said) == 2
    assert "no route" in said[0] and "MIGRATE" in said[1]
