"""Writes the event files that TensorBoard reads."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from tune.core.events import Reported
from tune.monitor.trackers.base import finite_metrics


def import_without_torch() -> None:
    """Imports tensorboardX, which imports torch where it is installed: 2.0 to 3.0 s, and 0.24 s without it.

    Nothing here needs torch. None in `sys.modules` is Python's documented mark of a module that can't be imported.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # the stubs do not know the mark
    try:
        import tensorboardX  # noqa: F401
    finally:
        if hidden:
            del sys.modules["torch"]


class TensorBoard:
    """A Tracker that writes tensorboard/TRIAL below the run's folder, one file a segment: `tensorboard --logdir RUN`.

    A file is open while its trial runs. Its first record makes TensorBoard drop reports that the segment repeats.
    """

    def __init__(self, run_dir: Path):
        import_without_torch()  # in the caller's thread: other threads may import torch later
        from tensorboardX import RecordWriter

        self.folder = run_dir / "tensorboard"
        self.files: dict[str, RecordWriter] = {}

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event as Record

        step, seconds = event.tokens_seen, event.time
        with contextlib.suppress(OSError):  # the journal reports a full disk
            if trial_id not in self.files:
                self._open(trial_id, config, step)
            file = self.files[trial_id]
            for name, value in finite_metrics(event).items():
                record = Record(wall_time=seconds, step=step, summary=summary.scalar(name, value))
                file.write(record.SerializeToString())
            file.flush()

    def end(self, trial_id: str, status: str) -> None:
        if trial_id in self.files:
            with contextlib.suppress(OSError):
                self.files.pop(trial_id).close()

    def _open(self, trial_id: str, config: dict[str, Any], step: int) -> None:
        """Begins a file: the trial's hyper-parameters, and a mark that reports from `step` on replace earlier ones."""
        from tensorboardX import RecordWriter, summary
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.proto.event_pb2 import SessionLog

        folder = self.folder / trial_id
        folder.mkdir(parents=True, exist_ok=True)
        now, values = time.time(), {name: value for name, value in config.items() if value is not None}
        file = self.files[trial_id] = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.search"))
        records = [
            Record(wall_time=now, file_version="brain.Event:2"),
            Record(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)),
            *(Record(wall_time=now, summary=part) for part in summary.hparams(values, {"val_loss": 0.0})[:2]),
        ]
        for record in records:
            file.write(record.SerializeToString())
