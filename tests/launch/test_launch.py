"""The launch scripts: what they would run, how they go on after a preemption, and their signals."""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.small_run import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
RUN = ["--config=configs/celeba.py", "--workdir=/mnt/it's here"]
POD = ["--name=pod", "--zone=us-west4-a", "--accelerator_type=v5litepod-16"]
POLL = "--poll=0.05"


def launch(script, *args, path=None, **env):
    found = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        env=os.environ | {"PATH": found} | env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def commands(done):
    """Returns the words of each printed command."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def remote(command):
    """Returns the shell command that a gcloud ssh command runs on the workers."""
    assert "--worker=all" in command
    return next(w for w in command if w.startswith("--command=")).removeprefix("--command=")


def executable(path, text):
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    done = subprocess.run([checker, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


BEFORE = {  # the script's own arguments
    "tpu_pod.sh": ["run", *POD, "--source=https://host/pmjax.git"],
    "gpu_slurm.sh": [],
    "local_hosts.sh": ["2", "--command=false"],
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "words",
    [["--workdir=gs://b/run"], ["--workdir", "s3://b/run"], ["--config.data.path=gs://b/images"]],
    ids=" ".join,
)
def test_urls_are_refused_before_anything_starts(script, words, tmp_path):
    executable(tmp_path / "gcloud", f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    executable(tmp_path / "sbatch", f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    args = [*BEFORE[script.name], "--", *RUN, *words]
    done = launch(script.name, *args, path=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "asked").exists()
    assert words[-1] in done.stderr and "gcsfuse" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_values_may_follow_their_flags_and_colons_are_no_urls(script):
    words = ["--config", "configs/digits.py:runlocal", "--workdir", "/mnt/run_12:30/x"]
    done = launch(script.name, *BEFORE[script.name], "--dry_run", "--", *words)
    assert done.returncode == 0 and "/mnt/run_12:30/x" in done.stdout, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_shows_an_example_and_every_script_is_executable(script):
    done = launch(script.name, "--help")
    assert done.returncode == 0 and f"launch/{script.name} " in done.stdout
    assert "--config=" in done.stdout and "--dry_run" in done.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    "script, args, message",
    [
        ("tpu_pod.sh", [], "a verb is missing"),
        ("tpu_pod.sh", ["runn"], "unknown verb 'runn'"),
        ("tpu_pod.sh", ["run"], "--name"),
        ("tpu_pod.sh", ["run", "--name=pod"], "--zone=ZONE is missing"),
        ("tpu_pod.sh", ["run", *POD[:2]], "--accelerator_type=TYPE is missing"),
        ("tpu_pod.sh", ["run", *POD[:2], "--accelerator_type=v5e-16"], "v5litepod-16"),
        ("tpu_pod.sh", ["run", *POD[:2], "--accelerator_type=a100"], "a version and a size"),
        ("tpu_pod.sh", ["run", *POD], "--config=FILE is missing"),
        ("tpu_pod.sh", ["run", *POD, "--", RUN[0]], "--workdir=DIR is missing"),
        ("tpu_pod.sh", ["run", *POD, "--spt"], "unknown option '--spt'"),
        ("gpu_slurm.sh", ["--nodes=two", "--", *RUN], "--nodes=two must be"),
        ("gpu_slurm.sh", ["--", RUN[0]], "--workdir=DIR is missing"),
        ("gpu_slurm.sh", ["--config=x"], "after --. See --help"),
        ("local_hosts.sh", [], "N, the number of hosts"),
        ("local_hosts.sh", ["0"], "N, the number of hosts"),
        ("local_hosts.sh", ["2", "--devices_per_host=x"], "must be a positive number"),
        ("local_hosts.sh", ["2", "--command=no_such_program -v"], "no command 'no_such_program'"),
    ],
)
def test_mistakes_end_with_one_message(script, args, message):
    done = launch(script, *args)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not done.stdout


@pytest.mark.parametrize(
    "script, args, tool",
    [("tpu_pod.sh", ["run", *POD, "--", *RUN], "gcloud"), ("gpu_slurm.sh", ["--", *RUN], "sbatch")],
)
def test_a_missing_tool_is_named(tmp_path, script, args, tool):
    for name in ("bash", "cat", "mktemp", "rm", "dirname"):
        (tmp_path / name).symlink_to(f"/bin/{name}" if name != "dirname" else "/usr/bin/dirname")
    done = launch(script, *args, PATH=str(tmp_path))
    assert done.returncode == 2
    assert f"there is no command '{tool}'" in done.stderr and "--dry_run" in done.stderr


def test_pod_dry_run_prints_all_steps_in_order_and_runs_none(tmp_path):
    executable(tmp_path / "gcloud", "#!/bin/sh\ntouch $0.was_run\n")
    args = ["run", *POD, "--spot", "--project=p", "--setup=mount /mnt", "--dry_run", "--", *RUN]
    done = launch("tpu_pod.sh", *args, path=tmp_path)
    printed = commands(done)
    assert not (tmp_path / "gcloud.was_run").exists()
    cloud = [words for words in printed if words[0] == "gcloud"]
    assert all({"--zone=us-west4-a", "--project=p"} <= set(words) for words in cloud)
    verbs = [words[4] for words in cloud]
    assert verbs[:3] == ["describe", "create", "ssh"] and verbs[-1] == "delete"
    create = cloud[1]
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    assert "--spot" in create and create[5] == "pod"
    steps = [remote(words) for words in cloud if words[4] == "ssh"]
    order = [next(i for i, s in enumerate(steps) if part in s) for part in
             ("mount /mnt", "tar -xzf", "pmjax[tpu]", "-m pmjax.main", "tail ")]  # fmt: skip
    assert order == sorted(order)
    tar = next(words for words in printed if words[0] == "tar")
    assert {"setup.py", "pmjax", "configs"} <= set(tar)
    assert all((ROOT / name).exists() for name in tar[tar.index("-C") + 2 :])
    assert "all workers share" in done.stderr


@pytest.mark.parametrize(
    "source, url, ref",
    [
        ("https://host.example/u/pmjax", "https://host.example/u/pmjax", None),
        ("https://host.example/u/pmjax@v1", "https://host.example/u/pmjax", "v1"),
        ("git@host.example:u/pmjax.git", "git@host.example:u/pmjax.git", None),
    ],
)
def test_pod_clones_a_source_that_is_given(source, url, ref):
    printed = commands(launch("tpu_pod.sh", "install", *POD, f"--source={source}", "--dry_run"))
    words = shlex.split(remote(printed[0]))
    assert words[words.index("clone") + 2] == url
    assert ("checkout" in words) == bool(ref) and (not ref or words[-1] == ref)
    assert not any(words[0] == "tar" or "scp" in words for words in printed)


def test_pod_queued_resource_is_created_for_the_node_and_deleted_with_it():
    args = [*POD, "--queued", "--spot", "--dry_run"]
    create = commands(launch("tpu_pod.sh", "create", *args))[-1]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--node-id=pod", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(create)
    delete = commands(launch("tpu_pod.sh", "delete", *args))[0]
    assert delete[3:6] == ["queued-resources", "delete", "pod"] and "--force" in delete


@pytest.fixture
def cloud(tmp_path):
    """A gcloud that keeps one slice; its ssh runs the commands here, on one worker.

    calls.txt: what was asked, in order. state: of the slice. train: what `python` does there.
    """
    home, path = tmp_path / "worker", tmp_path / "bin"
    path.mkdir()
    executable(
        path / "gcloud",
        f"""
        #!/bin/bash
        cd {tmp_path}
        verb=$4 command=
        for word in "$@"; do [[ $word == --command=* ]] && command=${{word#*=}}; done
        case $verb:$command in
          ssh:*tail*) name=follow ;;
          ssh:*status\\)*) name=status ;;
          ssh:*pmjax.main*) name=start ;;
          ssh:*pip*) name=install ;;
          ssh:*) name=unpack ;;
          *) name=$verb ;;
        esac
        [[ $name == describe || $name == status ]] || echo $name >> calls.txt
        case $name in
          describe) [ -f state ] && cat state || {{ echo "NOT_FOUND: no pod" >&2; exit 1; }} ;;
          create) [ ! -f refuse ] || {{ cat refuse >&2; rm refuse; exit 1; }}
            echo READY > state; mkdir {home} ;;
          delete) rm -r state {home} ;;
          scp) cp "$5" {home}/pmjax.tgz ;;
          install)
            mkdir -p {home}/pmjax-venv/bin; cp train {home}/pmjax-venv/bin/python ;;
          *) cd {home} && HOSTNAME=t1v-n-1-w-0 exec bash -c "$command" ;;
        esac
        """,
    )
    return tmp_path


def test_pod_resumes_by_itself_after_a_preemption(cloud):
    # The first start is preempted and, as pmjax.main does, saves and exits with 0; the second ends.
    executable(
        cloud / "train",
        f"""
        #!/bin/bash
        echo "arguments: $*"
        [ -f {cloud}/saved ] && echo "going on" && exit 0
        trap 'touch {cloud}/saved; echo saved; exit 0' TERM
        echo PREEMPTED > {cloud}/state
        kill -TERM $PPID
        kill -TERM $$
        """,
    )
    done = launch("tpu_pod.sh", "run", *POD, POLL, "--", *RUN, path=cloud / "bin")
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "unpack", "install", "start"]
    calls = (cloud / "calls.txt").read_text().split()
    calls = [call for call in calls if call != "follow"]  # which a preemption may forestall
    assert calls == [*once, "delete", *once]
    assert "[worker 0] arguments: -m pmjax.main " + " ".join(RUN) in done.stdout
    assert "[worker 0] going on" in done.stdout
    assert "PREEMPTED" in done.stderr and "training is done" in done.stderr


def test_pod_reuses_a_ready_slice_and_reports_a_failure(cloud):
    (cloud / "state").write_text("READY\n")
    (cloud / "worker").mkdir()
    executable(cloud / "train", "#!/bin/sh\necho 'Error: no such file'; exit 2\n")
    done = launch("tpu_pod.sh", "run", *POD, POLL, "--", *RUN, path=cloud / "bin")
    assert done.returncode == 1
    assert "failed (worker 0: 2)" in done.stderr and "no such file" in done.stdout
    assert "create" not in (cloud / "calls.txt").read_text()


@pytest.mark.parametrize(
    "refusal, status", [("There is no more capacity in the zone", 0), ("PERMISSION_DENIED", 2)]
)
def test_pod_waits_for_capacity_but_not_for_permission(cloud, refusal, status):
    (cloud / "refuse").write_text(refusal)
    done = launch("tpu_pod.sh", "create", *POD, POLL, path=cloud / "bin")
    assert done.returncode == status and refusal in done.stderr


def test_pod_start_leaves_a_process_that_status_sees_and_stop_ends(cloud):
    (cloud / "state").write_text("READY\n")
    (cloud / "worker" / "pmjax").mkdir(parents=True)
    (cloud / "worker" / "pmjax-venv" / "bin").mkdir(parents=True)
    executable(
        cloud / "worker" / "pmjax-venv" / "bin" / "python",
        "#!/bin/bash\ntrap 'exit 0' TERM\necho $PMJAX_DISTRIBUTED\nsleep 30 & wait\n",
    )

    def call(verb, *args):
        return launch("tpu_pod.sh", verb, *POD, *args, path=cloud / "bin").stdout

    def wait_for(text):
        return any(text in call("status") or time.sleep(0.02) for _ in range(200))

    assert "worker 0: none" in call("status")
    call("start", "--", *RUN)
    assert "worker 0: running" in call("status")
    log = cloud / "worker" / "pmjax-run" / "log"
    assert any("auto" in log.read_text() or time.sleep(0.02) for _ in range(200))
    call("stop")
    assert wait_for("worker 0: stopped")


def test_slurm_submits_one_process_a_gpu_and_dry_run_shows_it():
    args = ["--nodes=2", "--gpus_per_node=8", "--time=1:00:00", "--sbatch=--qos=low", "--dry_run"]
    submit, job = commands(launch("gpu_slurm.sh", *args, "--", *RUN))
    assert submit[0] == "sbatch" and "--qos=low" in submit and "--time=1:00:00" in submit
    assert {"--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8"} <= set(submit)
    assert submit[-2:] == RUN and job[-2:] == RUN
    assert "PMJAX_DISTRIBUTED=auto" in job and job[job.index("-m") + 1] == "pmjax.main"
    # jax.distributed gives process i its GPU i, which it must see.
    assert not any("bind" in word or "gpus-per-task" in word for word in [*submit, *job])


def slurm(path, state):
    """Makes commands of SLURM: one task, signalled through scancel; scontrol leaves 'requeued'."""
    executable(
        path / "srun",
        f"""
        #!/bin/bash
        while [[ $1 == --* ]]; do shift; done
        "$@" & echo $! > {path}/task; wait $!
        """,
    )
    executable(path / "scancel", f'#!/bin/bash\nkill "-${{1#*=}}" "$(cat {path}/task)"\n')
    executable(path / "squeue", f"#!/bin/bash\necho {state}\n")
    executable(path / "scontrol", f"#!/bin/bash\necho $* > {path}/requeued\n")


def start_job(path, task, state="RUNNING"):
    slurm(path, state)
    executable(path / "task.sh", task)
    return subprocess.Popen(
        ["bash", str(LAUNCH / "gpu_slurm.sh"), f"--python={path / 'task.sh'}", "--", *RUN],
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


SAVES = f"""#!{sys.executable}
import os, signal, sys
def save(number, frame):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print(os.environ["PMJAX_DISTRIBUTED"], flush=True)
signal.pause()
"""


@pytest.mark.parametrize("state, again", [("RUNNING", True), ("CANCELLED", False)])
def test_slurm_job_forwards_sigterm_and_queues_again_unless_cancelled(tmp_path, state, again):
    process = start_job(tmp_path, SAVES, state)
    assert process.stdout.readline() == "auto\n"
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "saved" in output
    assert (tmp_path / "requeued").exists() == again
    assert not again or (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_slurm_job_ends_with_the_status_of_its_processes(tmp_path):
    process = start_job(tmp_path, "#!/bin/bash\nexit 5\n")
    process.communicate(timeout=30)
    assert process.returncode == 5 and not (tmp_path / "requeued").exists()


def test_readme_example(tmp_path):
    (block,) = re.findall(r"```sh\n(.*?)```", (LAUNCH / "README.md").read_text(), re.DOTALL)
    executable(tmp_path / "python", """
        #!/bin/sh
        echo "$PMJAX_PROCESS_ID of $PMJAX_NUM_PROCESSES at $PMJAX_COORDINATOR: $*"
    """)  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", block, "example", *RUN],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{index} of 2 at 127.0.0.1:29500: -m pmjax.main {' '.join(RUN)}" for index in (0, 1)
    ]


def local(tmp_path, text, *args, hosts=3):
    (tmp_path / "host.py").write_text(textwrap.dedent(text))
    command = f"{sys.executable} {tmp_path / 'host.py'}"
    return ["local_hosts.sh", str(hosts), f"--command={command}", *args]


def test_local_hosts_prefix_each_line_and_set_the_contract(tmp_path):
    text = """
        import os, sys
        print(*(os.environ[f"PMJAX_{n}"] for n in ("NUM_PROCESSES", "LOCAL_DEVICES")), sys.argv[1:])
        print(os.environ["PMJAX_COORDINATOR"], os.environ["PMJAX_PROCESS_ID"], file=sys.stderr)
    """
    done = launch(*local(tmp_path, text, "--devices_per_host=4", "--", *RUN))
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 6
    for i in range(3):
        mine = [line.removeprefix(f"[{i}] ") for line in lines if line.startswith(f"[{i}] ")]
        assert f"3 4 {RUN}" in mine
        (where,) = set(mine) - {f"3 4 {RUN}"}
        host, index = where.split()
        assert host.startswith("127.0.0.1:") and index == str(i)
    assert len({line.split()[1] for line in lines if "127.0.0.1" in line}) == 1


def test_local_hosts_end_with_the_first_failure_and_end_the_others(tmp_path):
    text = """
        import os, sys, time
        if os.environ["PMJAX_PROCESS_ID"] == "1": sys.exit(7)
        time.sleep(60)
    """
    done = launch(*local(tmp_path, text))
    assert done.returncode == 7
    assert "process 1 ended with status 7" in done.stderr


def test_local_hosts_kill_processes_that_do_not_end(tmp_path):
    text = """
        import os, signal, sys, time
        from pathlib import Path
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        here = Path(__file__).parent
        (here / os.environ["PMJAX_PROCESS_ID"]).touch()
        if os.environ["PMJAX_PROCESS_ID"] == "1":
            while not all((here / name).exists() for name in "012"):
                time.sleep(0.01)
            sys.exit(7)
        time.sleep(60)
    """
    done = launch(*local(tmp_path, text, "--grace=1"))
    assert done.returncode == 7 and done.stdout.count("ready") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hosts_forward_signals_to_all(tmp_path, number):
    text = """
        import signal, sys, time
        def saved(number, frame):
            print("saved on", signal.Signals(number).name, flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, saved), signal.signal(signal.SIGINT, saved)
        print("ready", flush=True)
        time.sleep(60)
    """
    script, *args = local(tmp_path, text)
    # A suite started in the background ignores SIGINT, and bash traps no ignored signal.
    process = subprocess.Popen(
        ["env", f"--default-signal={number.name[3:]}", "bash", str(LAUNCH / script), *args],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        assert process.stdout.readline().endswith("ready\n")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == [f"[{i}] saved on {number.name}" for i in range(3)]


def test_local_hosts_are_one_cluster_of_jax(tmp_path):
    text = """
        import os, jax
        jax.config.update("jax_num_cpu_devices", int(os.environ["PMJAX_LOCAL_DEVICES"]))
        jax.distributed.initialize(
            os.environ["PMJAX_COORDINATOR"], int(os.environ["PMJAX_NUM_PROCESSES"]),
            int(os.environ["PMJAX_PROCESS_ID"]), initialization_timeout=300,
        )
        devices = jax.local_device_count(), jax.device_count()
        print(jax.process_index(), jax.process_count(), *devices)
    """
    done = launch(*local(tmp_path, text, "--devices_per_host=2", hosts=2))
    assert done.returncode == 0, done.stdout
    assert {"[0] 0 2 2 4", "[1] 1 2 2 4"} <= set(done.stdout.splitlines())
