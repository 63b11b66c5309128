"""The checkpoints of a search, in a folder or on any filesystem that pyarrow reads (s3://bucket/folder)."""

import json
import math
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from tune.core.trials import COMPLETED, PAUSED, REPLICATE, RUNNING, STOPPED, Trial, Trials

STATE_FILE = "state.pt"  # the built-in training's state in a checkpoint's folder
PLACE_FILE = "search_place.json"  # where in its training a trial of an own program stored a checkpoint, and its checksums
WORK = "work"  # folder below the storage root in which own programs run


def checksum_of(file: Any) -> int:
    """CRC-32 of a binary file."""
    found = 0
    while piece := file.read(2**20):
        found = zlib.crc32(piece, found)
    return found


def write_place(folder: Path, tokens: int, seconds: float) -> None:
    """Notes that the files in `folder` are a trial's state after `tokens`, in its budget's unit, and `seconds`."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != PLACE_FILE:
            with open(path, "rb") as file:
                sums[path.relative_to(folder).as_posix()] = checksum_of(file)
    text = json.dumps({"tokens_seen": tokens, "train_seconds": seconds, "checksums": sums})
    (folder / PLACE_FILE).write_text(text, encoding="utf-8")


def read_place(folder: Path) -> tuple[int, float]:
    """(tokens, seconds) that `write_place` noted in `folder`; zeros where it noted nothing."""
    path = folder / PLACE_FILE
    if not path.is_file():
        return 0, 0.0
    values = json.loads(path.read_text("utf-8"))
    return values["tokens_seen"], values["train_seconds"]


class Storage:
    """The checkpoints below `root`, a folder or a URI. They are named by their path relative to it."""

    def __init__(self, root: str):
        from pyarrow import fs  # here: a quarter of a second that --help need not wait for

        self.root = root
        if "://" in root:
            self.filesystem, self.path = fs.FileSystem.from_uri(root)
        else:
            self.filesystem, self.path = fs.LocalFileSystem(), root
        self.is_local = self.filesystem.type_name == "local"

    def absolute(self, relative: str) -> str:
        """The checkpoint's path on `filesystem`."""
        return f"{self.path}/{relative}"

    def fetch(self, relative: str, folder: Path) -> None:
        """Copies a checkpoint's files into `folder`. Raises OSError where they can't be read."""
        if self.is_local:
            shutil.copytree(self.absolute(relative), folder, dirs_exist_ok=True)
        else:
            from pyarrow import fs

            fs.copy_files(self.absolute(relative), str(folder), source_filesystem=self.filesystem)

    def damage(self, relative: str) -> str | None:
        """The fault of a checkpoint; None where it can be read, and its checksums hold."""
        try:
            if self.filesystem.get_file_info(f"{self.absolute(relative)}/{PLACE_FILE}").is_file:
                return self._changed_file(relative)
            with self.filesystem.open_input_file(f"{self.absolute(relative)}/{STATE_FILE}") as file:
                damaged = zipfile.ZipFile(file).testzip()
        except Exception as error:  # of all kinds, by the byte that is wrong
            return f"can't be read ({error})"
        return f"is damaged (checksum of {damaged})" if damaged else None

    def _changed_file(self, relative: str) -> str | None:
        """The fault of a checkpoint of an own program: a file that is not as it was when it was stored."""
        with self.filesystem.open_input_stream(f"{self.absolute(relative)}/{PLACE_FILE}") as file:
            sums = json.loads(file.read())["checksums"]
        for name, checksum in sums.items():
            with self.filesystem.open_input_stream(f"{self.absolute(relative)}/{name}") as file:
                if checksum_of(file) != checksum:
                    return f"is damaged (checksum of {name})"
        return None

    def delete(self, relative: str) -> None:
        """Deletes a checkpoint; one that is gone already is no error."""
        if self.is_local:
            shutil.rmtree(self.absolute(relative), ignore_errors=True)
        elif self.filesystem.get_file_info(self.absolute(relative)).type.name != "NotFound":
            self.filesystem.delete_dir(self.absolute(relative))

    def sweep(self, kept: set[str]) -> None:
        """Deletes the local checkpoints that are not in `kept`: a crash leaves some behind, or half-written."""
        if self.is_local:
            shutil.rmtree(Path(self.path) / WORK, ignore_errors=True)
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
