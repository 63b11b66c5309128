"""Where a search's checkpoints lie: a local or shared folder, or any filesystem that pyarrow reads (s3://bucket/folder)."""

import contextlib
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tune.core.trials import BASELINE_TRIAL, COMPLETED, PAUSED, REPLICATE, RUNNING, STOPPED, Trial, Trials

STATE_FILE = "state.pt"
"""name of the training state inside a checkpoint's folder"""


class Storage:
    """The checkpoints below `root`, a folder or a URI. They are named by their path relative to it."""

    def __init__(self, root: str):
        import pyarrow.fs  # here: a quarter of a second that --help need not wait for

        self.root = root
        if "://" in root:
            self.filesystem, self.path = pyarrow.fs.FileSystem.from_uri(root)
        else:
            self.filesystem, self.path = pyarrow.fs.LocalFileSystem(), root

    @property
    def is_local(self) -> bool:
        """Whether the operating system itself reaches the files."""
        return bool(self.filesystem.type_name == "local")

    def absolute(self, relative: str) -> str:
        """The checkpoint's path on `filesystem`."""
        return f"{self.path}/{relative}"

    @contextlib.contextmanager
    def state_file(self, relative: str) -> Iterator[Path]:
        """Within it, a file of this machine with a checkpoint's training state. Raises OSError where it can't be read."""
        stored = f"{self.absolute(relative)}/{STATE_FILE}"
        if self.is_local:
            yield Path(stored)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / STATE_FILE
            with self.filesystem.open_input_stream(stored) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target)
            yield copy

    def damage(self, relative: str) -> str | None:
        """What is wrong with a checkpoint, or None: it is there, whole, and its checksums hold."""
        try:
            with (
                self.filesystem.open_input_file(f"{self.absolute(relative)}/{STATE_FILE}") as file,
                zipfile.ZipFile(file) as archive,
            ):
                damaged = archive.testzip()
        except FileNotFoundError:
            return "is missing"
        except Exception as error:  # of all kinds, by the byte that is wrong
            return f"can't be read ({error})"
        return f"is damaged (checksum of {damaged})" if damaged else None

    def delete(self, relative: str) -> None:
        """Deletes a checkpoint; one that is gone already is no error."""
        if self.is_local:
            shutil.rmtree(self.absolute(relative), ignore_errors=True)
        elif self.filesystem.get_file_info(self.absolute(relative)).type.name != "NotFound":
            self.filesystem.delete_dir(self.absolute(relative))

    def sweep(self, kept: set[str]) -> None:
        """Deletes the local checkpoints that are not in `kept`: half-written ones, and those that a crash left behind."""
        if self.is_local:
            for folder in Path(self.path).glob("session_*/*/checkpoint_*"):
                if str(folder.relative_to(self.path)) not in kept:
                    shutil.rmtree(folder, ignore_errors=True)


def worth_keeping(trials: Trials, trial: Trial, may_audit: bool = False) -> set[int]:
    """The checkpoints of a trial, by tokens_seen, that are worth their room.

    Of a trial that runs the last two (the older in case the newer is damaged) and the best; of a completed one the last and
    the best; of one that waits at a rung the last, while it is among the better half of those that came there; of one left
    behind that `may_audit`, the last. Of others none: one that goes on all the same begins anew.
    """
    stored = sorted(trial.checkpoints)
    if stored and may_audit and trial.status in (PAUSED, STOPPED):
        return {stored[-1]}
    if not stored or trial.status not in (RUNNING, COMPLETED, PAUSED):
        return set()
    if trial.status == PAUSED:
        rivals = trials.ranked_at(trial.tokens)
        spared = trial.source == REPLICATE or trial.trial_id == BASELINE_TRIAL
        waits = spared or rivals.index(trial) < math.ceil(len(rivals) / 2)
        return {stored[-1]} if waits else set()
    best = min(stored, key=lambda tokens: trial.losses.get(tokens, math.inf))
    return {best, *stored[-1 if trial.status == COMPLETED else -2 :]}
