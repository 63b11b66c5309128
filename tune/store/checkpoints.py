"""The checkpoints of a search, in a folder or on any filesystem that pyarrow reads (s3://bucket/folder)."""

import contextlib
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tune.core.trials import COMPLETED, PAUSED, REPLICATE, RUNNING, STOPPED, Trial, Trials

STATE_FILE = "state.pt"  # the training state in a checkpoint's folder


class Storage:
    """The checkpoints below `root`, a folder or a URI. They are named by their path relative to it."""

    def __init__(self, root: str):
        import pyarrow.fs  # here: a quarter of a second that --help need not wait for

        self.root = root
        if "://" in root:
            self.filesystem, self.path = pyarrow.fs.FileSystem.from_uri(root)
        else:
            self.filesystem, self.path = pyarrow.fs.LocalFileSystem(), root
        self.is_local = self.filesystem.type_name == "local"

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
        with self.filesystem.open_input_stream(stored) as source, tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            yield Path(copy.name)

    def damage(self, relative: str) -> str | None:
        """The fault of a checkpoint; None where it can be read, and its checksums hold."""
        try:
            with self.filesystem.open_input_file(f"{self.absolute(relative)}/{STATE_FILE}") as file:
                damaged = zipfile.ZipFile(file).testzip()
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
        """Deletes the local checkpoints that are not in `kept`: a crash leaves some behind, or half-written."""
        if self.is_local:
            for folder in Path(self.path).glob("session_*/*/checkpoint_*"):
                if str(folder.relative_to(self.path)) not in kept:
                    shutil.rmtree(folder, ignore_errors=True)


def worth_keeping(trials: Trials, trial: Trial, may_audit: bool = False) -> set[int]:
    """The tokens_seen of the checkpoints of a trial that are kept: of a running trial the last two, in case the newer is
    damaged, and the best; of a completed one the last and the best; of a paused one the last, while it is in the better
    half at its rung; of one that `may_audit`, the last; of a ladder's completed ones, none. A trial without checkpoints
    begins anew if it goes on.
    """
    stored = sorted(trial.checkpoints)
    if trial.status == COMPLETED and "budget_tokens" in trial.config:
        return set()  # a ladder's levels go nowhere from their end
    if stored and trial.status in (RUNNING, COMPLETED):
        best = min(stored, key=lambda tokens: trial.losses.get(tokens, math.inf))
        return {best, *stored[-1 if trial.status == COMPLETED else -2 :]}
    waits = may_audit and trial.status in (PAUSED, STOPPED)
    if trial.status == PAUSED and not waits:
        rivals = trials.ranked_at(trial.tokens)
        better_half = rivals[: math.ceil(len(rivals) / 2)]
        waits = trial.source == REPLICATE or trial is trials.baseline or trial in better_half
    return set(stored[-1:]) if waits else set()
