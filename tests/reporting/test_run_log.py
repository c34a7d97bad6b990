import io
import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pmjax.errors import UserError
from pmjax.reporting import console, history, run_log
from pmjax.reporting.run_log import RunLog
from tests.readme_example import import_example


def write_rows(workdir, stages):
    writer = RunLog(workdir, stream=io.StringIO())
    for stage, steps in stages.items():
        for step in steps:
            writer.scalars(stage, step, {"loss/a": np.float32(step)})
    writer.close()


def steps_of(workdir, stage):
    return [row["step"] for row in history.read(workdir) if row["stage"] == stage]


def test_each_row_is_on_disk_before_the_next_step(tmp_path):
    writer = RunLog(tmp_path, stream=io.StringIO())
    writer.scalars("stage1", 5, {"recon": np.float32(0.5)})
    line = (tmp_path / "history.jsonl").read_text()
    writer.close()
    assert json.loads(line) == {"stage": "stage1", "step": 5, "values": {"recon": 0.5}}


def test_resuming_drops_only_what_the_stage_wrote_beyond_its_checkpoint(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20, 30], "stage2": [10, 20, 30]})
    writer = RunLog(tmp_path, stream=io.StringIO())
    writer.resume("stage2", 20)
    writer.scalars("stage2", 25, {"loss/a": 1.0})
    writer.close()
    assert steps_of(tmp_path, "stage1") == [10, 20, 30]
    assert steps_of(tmp_path, "stage2") == [10, 20, 25]


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_dropped_and_the_next_row_starts_a_new_one(tmp_path, cut):
    write_rows(tmp_path, {"stage1": [10, 20]})
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    write_rows(tmp_path, {"stage1": [30]})
    assert steps_of(tmp_path, "stage1") == ([10, 20, 30] if cut == 1 else [10, 30])
    assert len(path.read_text().splitlines()) == len(history.read(tmp_path))


def test_values_that_are_not_finite_are_null_in_the_history(tmp_path):
    writer = RunLog(tmp_path, stream=io.StringIO())
    writer.scalars("stage1", 1, {"a": float("nan"), "b": float("inf")})
    writer.close()
    assert history.read(tmp_path)[0]["values"] == {"a": None, "b": None}


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workdir .*file/run.*--workdir"):
        RunLog(tmp_path / "file" / "run")


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """Reads TensorBoard's record format: length, its checksum, an Event, its checksum."""
    stream = io.BytesIO(path.read_bytes())
    while head := stream.read(8):
        (length,) = struct.unpack("<Q", head)
        assert struct.unpack("<I", stream.read(4))[0] == masked_crc(head)
        data = stream.read(length)
        assert struct.unpack("<I", stream.read(4))[0] == masked_crc(data)
        yield Event.FromString(data)


def test_events_hold_what_was_logged(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20], "stage2": [5]})
    found = {}
    for stage in ("stage1", "stage2"):
        (path,) = (tmp_path / "events" / stage).iterdir()
        found[stage] = [
            (event.step, value.tag, value.simple_value)
            for event in read_events(path)
            for value in event.summary.value
        ]
    assert found["stage1"] == [(10, "loss/a", 10.0), (20, "loss/a", 20.0)]
    assert found["stage2"] == [(5, "loss/a", 5.0)]


def test_events_of_a_resumed_run_overrule_the_older_ones_from_the_next_step_on(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20, 30]})
    writer = RunLog(tmp_path, stream=io.StringIO())
    writer.resume("stage1", 20)
    writer.scalars("stage1", 30, {"loss/a": -1.0})
    writer.close()
    older, newer = sorted((tmp_path / "events" / "stage1").iterdir(), key=lambda path: path.suffix)
    starts = [e.step for e in read_events(newer) if e.session_log.status == SessionLog.START]
    assert starts == [21]
    assert [e.step for e in read_events(older) if e.summary.value] == [10, 20, 30]


def test_closing_twice_is_the_same_as_once(tmp_path):
    stream = io.StringIO()
    writer = RunLog(tmp_path, stream=stream)
    writer.scalars("stage1", 1, {"a": 1.0})
    writer.close()
    writer.close()
    assert stream.getvalue() == ""


def test_other_processes_append_values_and_log_lines_to_their_file(tmp_path):
    for step in (10, 20):
        writer = RunLog(tmp_path, process=1)
        writer.resume("stage1", step)
        writer.scalars("stage1", step + 5, {"loss/a": np.float32(0.5), "loss/b": 2})
        writer.status("stage1", step + 5, 100, {})
        writer.close()
        console.setup()
    lines = (tmp_path / "logs" / "host-1.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "stage1: from step 10.",
        "stage1  15  loss/a 0.5  loss/b 2",
        "stage1: from step 20.",
        "stage1  25  loss/a 0.5  loss/b 2",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_readme_example(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    module = import_example("pmjax.reporting", tmp_path / "code", monkeypatch)
    monkeypatch.setattr(run_log, "LOGGERS", (*run_log.LOGGERS, module.CsvFile))
    write_rows(tmp_path, {"stage1": [10, 20, 30]})
    writer = RunLog(tmp_path)
    writer.resume("stage1", 20)
    writer.scalars("stage1", 25, {"loss/a": 0.5})
    writer.close()
    written = (tmp_path / "csv" / "stage1.csv").read_text().splitlines()
    assert written == ["10,loss/a,10.0", "20,loss/a,20.0", "25,loss/a,0.5"]
    assert steps_of(tmp_path, "stage1") == [10, 20, 25]
