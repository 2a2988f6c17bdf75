"""A log for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from titans_jax import files


class Board:
    """Writes scalars by step into a folder, at once; raises OSError where it cannot.

    tensorboardX' SummaryWriter leaves that to a thread, which a full disk ends; a run then waits for it for ever.
    """

    def __init__(self, folder: Path, *, step: int | None = None) -> None:
        """step: the last one of an earlier log in the folder that counts."""
        self._folder = folder
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            if step is not None:
                self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append values by name."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        with files.naming(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()

    def close(self) -> None:
        """Close the file."""
        with files.naming(self._folder):
            self._events.close()
