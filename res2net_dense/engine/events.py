"""TensorBoard's events, written at once: `SummaryWriter` has a thread, whose errors are tracebacks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """A new file of events in a folder.

    Args:
        folder: where TensorBoard looks.
        first_step: events of this step and later ones in other files of the folder are hidden; a resumed run
            writes them again.

    Raises:
        OSError: as `add`, the file cannot be written.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        # takes a second to import
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        self.path = folder / f"events.out.tfevents.{now:010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._event = Event
        self._file = open(self.path, "ab")  # noqa: SIM115  # closed in close
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=first_step, session_log=start))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the values of a step."""
        from torch.utils.tensorboard.summary import scalar

        make: Callable[[str, float], Any] = scalar

        for name, value in scalars.items():
            self._write(self._event(wall_time=time.time(), step=step, summary=make(name, value)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
