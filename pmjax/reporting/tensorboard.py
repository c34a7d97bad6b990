"""TensorBoard's event files."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class TensorBoard:
    """Writes events/STAGE/ of a workdir.

    Our own use of `EventsWriter`: tensorboardX's `SummaryWriter` writes in a thread, and if a full
    disk kills that thread, training hangs.
    """

    def __init__(self, workdir: Path):
        self._folder = workdir / "events"
        self._resumed_at: dict[str, int] = {}
        self._writers: dict[str, EventsWriter] = {}

    def resume(self, stage: str, step: int) -> None:
        """Lets TensorBoard drop the events of a stage after this step: a killed run wrote them."""
        self._resumed_at[stage] = step

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends an event for each value; all are on disk when this returns."""
        if stage not in self._writers:
            self._writers[stage] = self._open(stage)
        writer = self._writers[stage]
        for name, value in values.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            writer.write_event(event)
        writer.flush()

    def close(self) -> None:
        """Closes the files."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _open(self, stage: str) -> EventsWriter:
        folder = self._folder / stage
        # tensorboardX names files by the second. A number keeps a quick restart from overwriting.
        older = len(list(folder.glob("*.tfevents.*")))
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"), f".{older}")
        if older:  # TensorBoard ignores what older files hold from this step on
            purge = self._resumed_at.get(stage, -1) + 1
            writer.write_event(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))
        return writer
