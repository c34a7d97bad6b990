"""A run is killed or asked to stop in the middle of what it does, and ends with the same bits."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from pmjax.distributed import maintenance
from pmjax.errors import UserError
from tests import growth, soak
from tests.small_run import ROOT, SMALL, run_command

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
            [
                sys.executable,
                "-m",
                "tests.killed_process",
                sent,
                moment,
                *SMALL,
                f"--workdir={workdir}",
            ],
            cwd=ROOT,
            env=os.environ | compiles,
            capture_output=True,
            text=True,
            timeout=600,
            start_new_session=True,  # maintenance ends a process group
        )
    done["last"] = run_command("main", *SMALL, f"--workdir={workdir}")
    return workdir, done


@pytest.mark.slow
def test_each_process_ended_at_its_moment_as_intended(chain):
    for (sent, moment), done in ((key, d) for key, d in chain[1].items() if key != "last"):
        expected = -signal.SIGKILL if sent == "SIGKILL" else 0
        assert done.returncode == expected, (sent, moment, done.stderr)


@pytest.mark.slow
def test_parameters_metrics_and_history_end_with_the_same_bits(chain, small_run):
    workdir, done = chain
    assert done["last"].returncode == 0, done["last"].stderr
    assert soak.results(workdir) == soak.results(small_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, message",
    [
        (("SIGUSR1", "step"), "stage1: stopped by SIGUSR1 after step"),
        (("maintenance", "step"), "Maintenance is announced (TERMINATE_ON_HOST_MAINTENANCE)"),
        (("SIGTERM", "evaluation"), "Stopped by SIGTERM; everything finished so far is saved."),
    ],
)
def test_a_stopped_run_says_what_is_saved_and_how_to_resume(chain, key, message):
    workdir, done = chain
    assert message in done[key].stderr
    assert f"python -m pmjax.main {SMALL[0]}" in done[key].stderr
    assert f"--workdir={workdir}" in done[key].stderr
    assert "Traceback" not in done[key].stderr


@pytest.mark.slow
def test_each_start_resumes_where_the_previous_one_stopped(chain):
    said = {key: done.stderr for key, done in chain[1].items()}
    assert "stage1: resuming at step" in said["SIGKILL", "checkpoint"]
    assert "stage1: resuming at step" in said["SIGTERM", "evaluation"]
    assert "stage1: already finished" in said["SIGKILL", "metrics"]
    assert "stage2: already finished" in said["SIGKILL", "metrics"]


@pytest.mark.slow
def test_no_unfinished_file_is_left(chain):
    left = [str(p) for p in chain[0].rglob("*") if p.suffix in (".part", ".tmp")]
    assert not left
    assert not list(chain[0].glob("checkpoints/*/*orbax-checkpoint-tmp*"))


class Measured(soak.Life):
    """A start of which only measurements are known, of the periods between its saves."""

    def __init__(self, *peaks, descriptors=None, phase=0, behind=0, anew=True):
        """Takes peaks of memory and descriptors of each period; the first sample, and the last."""
        self.killed_in = ""
        descriptors = descriptors or [9] * len(peaks)
        self.samples = [
            growth.Sample("stage 1", step, int(memory), files)
            for step, (peak, files) in enumerate(zip(peaks, descriptors, strict=True), -anew)
            for memory in (0.85 * peak, 0.92 * peak, peak, peak)
        ][phase : 4 * len(peaks) - behind]


def a_round(*lives):
    found = soak.Round(pathlib.Path(), lives)
    found.wrong = []
    return found


def peaks(*, percent, count=14):
    return [10**8 * (1 + percent / 100 * period) for period in range(count)]


STEADY, GROWING = Measured(*peaks(percent=0)), Measured(*peaks(percent=1))
GROWING_ON = Measured(*peaks(percent=1), anew=False)
LEAKING = Measured(*peaks(percent=0), descriptors=[*[9] * 9, *[10] * 5])


def verdict(*rounds, reference=STEADY):
    said = []
    return soak._verdict(reference, rounds, said.append), "\n".join(said)


@pytest.mark.parametrize(
    "rounds, reference, message",
    [
        ([a_round(STEADY), a_round(Measured(*[106 * 10**6] * 8))], STEADY, "changed by +6.0%"),
        ([a_round(STEADY, GROWING_ON)], STEADY, "1 starts that went on changed by +7.8%"),
        ([a_round(GROWING, GROWING)], STEADY, "3 starts that began anew changed by +7.8%"),
        ([], GROWING, "changed by +7.8% in the median (allowed: +5%; +7.8% to +7.8%)"),
        ([a_round(STEADY, LEAKING)], STEADY, "descriptors by at most +1"),
    ],
    ids=["rounds", "continued", "anew", "reference", "descriptors"],
)
def test_memory_and_descriptors_that_grow_are_named(rounds, reference, message):
    good, said = verdict(*rounds, reference=reference)
    assert not good and message in said


@pytest.mark.parametrize("behind", range(4))
@pytest.mark.parametrize("phase", range(4))
def test_a_leak_is_told_apart_from_the_effect_of_saves_wherever_measuring_starts_and_ends(
    phase, behind
):
    steady, leaking = (
        Measured(*peaks(percent=percent), phase=phase, behind=behind) for percent in (0, 1)
    )
    assert verdict(reference=steady)[0]
    assert not verdict(reference=leaking)[0]


def test_a_chance_step_of_one_start_of_several_is_reported_but_no_growth():
    stepped = Measured(*[10**8] * 7, *[106 * 10**6] * 7)
    good, said = verdict(a_round(STEADY, stepped))
    assert good and "+0.0% to +6.0%" in said


def test_one_period_that_is_higher_than_the_others_is_no_growth():
    assert verdict(reference=Measured(*peaks(percent=0)[1:], 12 * 10**7))[0]
    odd = [10**8] * 12
    odd[-2] = 12 * 10**7
    assert verdict(reference=Measured(*odd))[0]


def test_steady_or_shrinking_memory_passes():
    smaller = Measured(*[9 * 10**7] * 8)
    assert verdict(a_round(STEADY, smaller), a_round(smaller))[0]


def test_a_run_too_short_to_measure_reports_no_memory():
    short = [Measured(*[size] * 7) for size in (10**8, 10**8, 2 * 10**8)]
    good, said = verdict(*map(a_round, short[1:]), reference=short[0])
    assert good and "emory" not in said


def test_this_process_is_measured(tmp_path):
    for step in ("50", "100", "150.orbax-checkpoint-tmp"):
        (tmp_path / step).mkdir()
    (found,) = growth.measure(os.getpid(), tmp_path, phase="stage 1")
    assert (found.phase, found.saved) == ("stage 1", 100)
    assert found.memory > 10**7 and found.descriptors > 2
    assert not list(growth.measure(2**30, tmp_path, phase="stage 1"))  # there is none


def test_each_difference_is_named():
    wrong = a_round(STEADY)
    wrong.wrong = ["metrics.json"]
    assert "differs: metrics.json" in wrong.row()
    good, said = verdict(wrong, a_round(STEADY))
    assert not good and "1 of 2 rounds" in said


def test_an_address_for_maintenance_that_is_none_is_named():
    with pytest.raises(UserError, match="PMJAX_MAINTENANCE_URL='metadata' must start with"):
        maintenance.watch(environ={"PMJAX_MAINTENANCE_URL": "metadata"})


def test_a_host_without_an_answer_is_asked_again_and_reported_once(monkeypatch, caplog):
    monkeypatch.setattr(maintenance, "EVERY", 0.01)
    answers = iter([OSError("no route"), OSError("no route"), b"NONE", b"MIGRATE"])

    def urlopen(request, timeout):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(maintenance._direct, "open", urlopen)
    acted = []
    url = {"PMJAX_MAINTENANCE_URL": "http://there"}
    maintenance.watch(act=lambda: acted.append(1), environ=url).join(timeout=60)
    assert acted == [1]
    first, second = caplog.messages
    assert "no route" in first and "MIGRATE" in second
