"""Several processes: they compute what one does, agree, and end together and with a reason."""

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from pmjax.distributed import processes, rendezvous
from pmjax.distributed.compile import MODES
from pmjax.distributed.mesh import make_mesh, place_dataset
from pmjax.distributed.processes import Connection, ProcessGroup, ProcessSpec, Stopped
from pmjax.errors import UserError
from pmjax.reporting import history
from tests import soak
from tests.distributed import host_process
from tests.readme_example import import_example
from tests.small_run import ROOT, SMALL


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(*command, second=None, timeout=300, **env):
    """Starts two processes with two devices each; each writes to a pipe of its own.

    `second` is the command of process 1 if that is another.
    """
    common = {
        "PMJAX_COORDINATOR": f"127.0.0.1:{free_port()}",
        "PMJAX_NUM_PROCESSES": "2",
        "PMJAX_LOCAL_DEVICES": "2",
        "PMJAX_HOST_TIMEOUT": str(timeout),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=os.environ | common | {"PMJAX_PROCESS_ID": str(index)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, words in enumerate((command, second or command))
    ]


def finish(pair, *statuses):
    """Waits for the end with these statuses, 0 if there are none; returns what was written."""
    outputs = [process.communicate(timeout=600)[0] for process in pair]
    assert [process.returncode for process in pair] == [*(statuses or (0, 0))], "\n".join(outputs)
    return outputs


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=1e-6, err_msg=name)


# What two processes compute.


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """All metrics and leaves that one process gives on one device."""
    return host_process.fit(tmp_path_factory.mktemp("one"), mesh=make_mesh(1))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The directory in which two processes left what they have computed."""
    directory = tmp_path_factory.mktemp("two")
    host_process.fit(directory / "from_one", mesh=make_mesh(1), steps=host_process.KEPT)
    finish(start("tests/distributed/host_process.py", "layouts", directory))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("layout", ["divided", "streamed"])
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_each_with_its_own_rows_give_what_one_gives(mode, layout, index, one, two):
    assert_close(np.load(two / f"{mode}_{layout}_{index}.npz"), one)


@pytest.mark.parametrize("mode", MODES)
def test_a_divided_table_gives_the_same_batches_on_one_process(mode, one, tmp_path):
    mesh = make_mesh(4)
    budget = host_process.BUDGETS["divided"]
    table, divided = place_dataset(host_process.IMAGES, mesh, budget=budget)
    assert divided and {s.data.nbytes for s in table.addressable_shards} == {11 * 64}
    assert_close(host_process.fit(tmp_path, mode=mode, mesh=mesh, budget=budget), one)


@pytest.mark.slow
def test_two_processes_resume_a_checkpoint_of_one(one, two):
    found = np.load(two / "from_one_1.npz")
    steps = {name.split("/")[0] for name in found if name[0].isdigit()}
    assert steps == {str(step) for step in range(host_process.KEPT + 1, host_process.STEPS + 1)}
    assert_close(found, {name: one[name] for name in found})


@pytest.mark.slow
def test_what_two_processes_saved_one_restores_bit_for_bit(two):
    restored = host_process.fit(two / "jit_divided", mesh=make_mesh(1))
    saved = np.load(two / "jit_divided_0.npz")
    assert restored and not any(name[0].isdigit() for name in restored)  # no step was made
    for name, value in restored.items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)


# Ends that nobody wished for.

STALL = 10  # seconds, in which every process makes each of its steps even on a busy machine


@pytest.mark.slow
@pytest.mark.parametrize("stalled", [0, 1])
def test_a_stalled_process_is_named_within_the_timeout_and_both_resume(stalled, one, tmp_path):
    trouble = {"TROUBLE": "SIGSTOP", "TROUBLED": str(stalled)}
    pair = start("tests/distributed/host_process.py", "trouble", tmp_path, timeout=STALL, **trouble)
    output, _ = pair[1 - stalled].communicate(timeout=200)
    pair[stalled].kill()
    pair[stalled].communicate()
    assert pair[1 - stalled].returncode == 2, output
    assert f"process {stalled} has been silent for {STALL} s" in output
    assert "run the same command again" in output and "Traceback" not in output
    if stalled:
        finish(start("tests/distributed/host_process.py", "after_trouble", tmp_path))
        found = np.load(tmp_path / "end_0.npz")
        assert_close(found, {name: one[name] for name in found})
        assert f"{host_process.STEPS}/loss/critic" in found


@pytest.fixture
def pair(monkeypatch):
    """Two ends in one process, quick of pulse; an end is put in their queue instead of made."""
    monkeypatch.setattr(processes, "BEAT", 0.02)
    yield from ends_of_two(timeout=60)


@pytest.fixture
def impatient_pair(monkeypatch):
    """The same, for those who are waited for in vain."""
    monkeypatch.setattr(processes, "BEAT", 0.02)
    yield from ends_of_two(timeout=0.5)


def ends_of_two(timeout):
    both = [ProcessGroup(ProcessSpec(index=i, count=2, timeout=timeout)) for i in range(2)]
    for ends, raw in zip(both, socket.socketpair(), strict=True):
        ends.ended = queue.Queue()
        ends._end = lambda shown, ends=ends, **_: ends.ended.put(shown)
        ends.attach({1 - ends.index: Connection(raw)})
    yield both
    for ends in both:
        ends._closed = True


def wait_for_end(ends, reason):
    """Waits until a process would end for this reason; a busy machine may give others first."""
    while reason not in ends.ended.get(timeout=60):
        pass


def test_a_process_that_makes_no_step_is_named(impatient_pair):
    first, second = impatient_pair
    for _ in range(2):
        first.should_stop(spans_hosts=True)
    second.should_stop(spans_hosts=True)
    wait_for_end(first, "process 1 made no step")


def test_a_process_without_heartbeats_is_named(impatient_pair):
    first, second = impatient_pair
    second._closed = True  # ends its beats; the connection stays
    wait_for_end(first, "process 1 has been silent")


def test_the_timeout_of_a_slow_process_starts_when_another_gets_ahead():
    ends = ProcessGroup(ProcessSpec(index=0, count=3, timeout=10.0))
    ends._peers = {i: Connection(socket.socket()) for i in (1, 2)}

    def at(now, *made):
        ends._dispatched, ends._peers[1].dispatched, ends._peers[2].dispatched = made
        return ends._straggler(now)

    assert at(0, 5, 5, 5) is None
    assert at(100, 5, 5, 5) is None  # all compile
    assert at(101, 6, 5, 6) is None
    assert at(110, 6, 5, 6) is None
    assert at(112, 6, 5, 6) == 1
    assert at(113, 6, 6, 6) is None
    assert at(130, 6, 7, 7) is None
    assert at(141, 6, 7, 7) == 0


def test_a_process_that_does_not_reach_a_gather_is_named(impatient_pair):
    with pytest.raises(UserError, match="Process 1 did not reach the count"):
        impatient_pair[0].all_gather_object("the count", 3)


def test_all_processes_gather_all_values(pair):
    found = [None, None]

    def ask(index):
        found[index] = pair[index].all_gather_object("x", [index, "a"])

    assert run_together([lambda: ask(0), lambda: ask(1)]) == []
    assert found == [[[0, "a"], [1, "a"]]] * 2


def test_readme_example(pair, tmp_path, monkeypatch):
    module = import_example("pmjax.distributed", tmp_path, monkeypatch)
    module.require(ProcessGroup(), tmp_path, 1)
    found = iter([10, 1000])
    lock = threading.Lock()

    def usage(folder):
        with lock:
            return SimpleNamespace(free=next(found))

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    errors = run_together([partial(module.require, group, tmp_path, 100) for group in pair])
    assert len(errors) == 2 and len({str(error) for error in errors}) == 1
    assert "has less than 100 bytes free: process " in str(errors[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_stop_request_stops_all_after_the_same_step(pair, seed):
    rng = random.Random(seed)
    wishes, at = rng.randrange(2), rng.randrange(5, 20)
    made, stopped, changed = [0, 0], [None, None], threading.Condition()

    def loop(index):
        step = 0
        while stopped[index] is None and step < 1000:
            step += 1
            time.sleep(rng.random() / 500)
            with changed:  # what is read after a dispatch needs all to have made the one before
                made[index] = step
                changed.notify_all()
                assert changed.wait_for(lambda: min(made) >= made[index] - 1, timeout=60)
            if index == wishes and step == at:
                if index == 0:
                    pair[0]._stop_reason = "SIGTERM"
                else:
                    pair[1]._peers[0].send(kind="stop", by="SIGTERM on process 1")
            if pair[index].should_stop(spans_hosts=True):
                stopped[index] = step

    assert run_together([lambda: loop(0), lambda: loop(1)]) == []
    assert stopped[0] == stopped[1] and at < stopped[0] < 1000


def test_a_stop_request_ends_the_work_that_others_wait_for(pair):
    def evaluate():
        pair[1]._peers[0].send(kind="stop", by="SIGTERM on process 1")
        time.sleep(60)
        pytest.fail("it went on")

    with pytest.raises(Stopped, match="Stopped by SIGTERM"):
        pair[0].run_on_primary("evaluation", evaluate)
    assert "Stopped by SIGTERM" in pair[1]._answer("1 evaluation")


def test_a_stop_request_during_the_last_step_is_not_lost():
    alone = ProcessGroup()
    alone._stop_reason = "SIGTERM"
    with pytest.raises(Stopped, match="Stopped by SIGTERM before: evaluation"):
        alone.run_on_primary("evaluation", lambda: pytest.fail("it went on"))


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_lost_terminal_stops_a_run_unless_nohup_protects_it(handler):
    before = signal.signal(signal.SIGHUP, handler)
    alone = ProcessGroup()
    try:
        with alone.signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert alone._stop_reason == (None if handler is signal.SIG_IGN else "SIGHUP")


def test_a_second_signal_does_not_disturb_the_first():
    alone = ProcessGroup()
    with alone.signals(steps=False):
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert alone._stop_reason == "SIGUSR1"


def run_together(calls):
    errors = []

    def call(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return errors


# Connecting.


def connect(*specs, shared=None, timeout=60.0):
    """Connects processes; returns what they raise."""
    shared = shared or [{}] * len(specs)
    coordinator = f"127.0.0.1:{free_port()}"
    return run_together(
        [
            lambda i=i, n=n, f=f: rendezvous.connect(
                ProcessSpec(i, n, coordinator, timeout=timeout), f
            )
            for (i, n), f in zip(specs, shared, strict=True)
        ]
    )


def test_hosts_with_different_configs_name_the_keys():
    errors = connect(
        (0, 2), (1, 2), shared=[{"config.seed": 1, "a": (1,)}, {"config.seed": 2, "a": [1]}]
    )
    assert [type(error) for error in errors] == [UserError] * 2
    assert "config.seed: 1 on process 0, 2 on process 1" in str(errors[0])
    assert "a:" not in str(errors[0])


def test_hosts_that_agree_are_connected():
    assert connect((0, 3), (2, 3), (1, 3)) == []


def test_a_process_that_does_not_connect_is_named():
    errors = connect((0, 3), (2, 3), timeout=2.0)
    assert ["Process 1 did not connect" in str(error) for error in errors] == [True, True]


def test_a_process_zero_that_is_missing_is_named():
    (error,) = connect((1, 2), timeout=2.0)
    assert "Process 0 cannot be reached" in str(error)


@pytest.mark.parametrize("other", [(1, 3), (1, 4)], ids=["twice", "count"])
def test_wrong_numbers_of_processes_are_named(other):
    errors = connect((0, 3), (1, 3), other)
    assert ["started differently" in str(error) for error in errors] == [True] * 3


NAMES = ("PMJAX_COORDINATOR", "PMJAX_NUM_PROCESSES", "PMJAX_PROCESS_ID")


@pytest.mark.parametrize(
    "values, message",
    [
        (("a:1", "2", ""), "PMJAX_PROCESS_ID not"),
        (("", "", "0"), "PMJAX_COORDINATOR and PMJAX_NUM_PROCESSES not"),
        (("a", "2", "0"), "HOST:PORT"),
        (("[::1]:1", "2", "0"), "IPv4"),
        (("http://a:1", "2", "0"), "IPv4"),
        (("a:1", "two", "0"), "whole number"),
        (("a:1", "2", "2"), "below PMJAX_NUM_PROCESSES"),
    ],
)
def test_an_incomplete_environment_is_named(values, message):
    with pytest.raises(UserError, match=message):
        rendezvous.process_spec(dict(zip(NAMES, values, strict=True)))


def test_without_an_environment_there_is_one_process():
    assert rendezvous.process_spec({}) == ProcessSpec()


# The command.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Workdirs of two runs on two processes, the second interrupted, and what that one said.

    Process 1 of it gets SIGTERM in its first start and SIGKILL in its second. Both stages are
    evaluated on the way.
    """
    folder = tmp_path_factory.mktemp("interrupted")
    main = ("-m", "pmjax.main")

    def begin(name, second=main):
        args = (
            *SMALL, f"--workdir={folder / name}", "--config.log_every=1",
            "--config.eval.every=25", "--config.eval.during=latent",
            "--config.eval.stage2_every=25", "--config.eval.stage2_during=sliced_wasserstein",
        )  # fmt: skip
        return start(*main, *args, second=(*second, *args))

    finish(begin("whole"))
    stopped = finish(begin("run", ("-m", "tests.killed_process", "SIGTERM", "step")))
    left = {path.name for path in (folder / "run").iterdir()}
    killed = finish(
        begin("run", ("-m", "tests.killed_process", "SIGKILL", "step")), 2, -signal.SIGKILL
    )
    return folder, stopped, left, killed, finish(begin("run"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(interrupted):
    folder, outputs, left, _, _ = interrupted
    log = (folder / "run" / "logs" / "host-1.log").read_text()
    (stopped,) = [line for line in outputs[0].splitlines() if "stopped by" in line]
    assert "SIGTERM on process 1" in stopped
    assert stopped.split(" To resume")[0] in log
    assert "checkpoints" in left and "autoencoder.msgpack" not in left


@pytest.mark.slow
def test_when_one_process_is_killed_the_other_names_it_and_ends(interrupted):
    outputs = interrupted[3]
    assert "resuming at step" in outputs[0]
    assert "process 1 disappeared" in outputs[0]
    assert "Traceback" not in outputs[0]


@pytest.mark.slow
def test_two_processes_after_a_stop_and_a_kill_end_with_the_same_bits(interrupted):
    folder, *_, outputs = interrupted
    assert "resuming at step" in outputs[0]
    assert "Report:" in outputs[0] and "Report:" not in outputs[1]
    assert soak.results(folder / "run") == soak.results(folder / "whole")
    evaluations = [(row["stage"], row["step"]) for row in history.evaluations(folder / "run")]
    wanted = {"stage1": (25, 50, 60), "stage2": (30, 50, 60)}
    assert evaluations == [(stage, step) for stage, steps in wanted.items() for step in steps]
