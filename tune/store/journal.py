"""The memory of a search: one JSON object a line, appended and synced before anything acts on it.

tune/core/events.py has the events and their keys. myllm/training/run_artifacts.py reads some of them, too.
"""

import errno
import fcntl
import json
import math
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError
from tune.core.events import Event, from_json

FILE_NAME = "journal.jsonl"
OLD_EVENTS = {"pruned": "checkpoints_deleted", "lost": "worker_lost"}
OLD_KEYS = {"before": "startup_seconds", "kind": "source", "of": "parent_id", "until": "segment_end_tokens"}
OLD_SOURCES = {"drawn": "sampled", "proposed": "suggested", "repeat": "replicate"}


def events_of(run_dir: Path) -> Iterator[Event]:
    """All events, in order. A last line that a crash cut short is left out. Raises InputError for any other damage."""
    path = run_dir / FILE_NAME
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = _restored(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path}: line {number} is damaged; restore the file from a backup") from None
            yield event


def read_journal(run_dir: Path) -> list[Event]:
    """The list of `events_of`."""
    return list(events_of(run_dir))


def _restored(line: dict[str, Any]) -> Event:
    """Returns the event of a line of any version. A null in a report was NaN."""
    line = {OLD_KEYS.get(key, key): value for key, value in line.items()}
    line["event"] = OLD_EVENTS.get(line["event"], line["event"])
    if "source" in line:
        line["source"] = OLD_SOURCES.get(line["source"], line["source"])
    if line["event"] == "report":
        line = {
            "lr" if name == "learning_rate" else name: math.nan if value is None else value for name, value in line.items()
        }
    return from_json(line)


def is_running(run_dir: Path) -> bool:
    """True if a process of this machine, or of one that shares the folder, runs the search of a run folder."""
    try:
        with open(run_dir / FILE_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Journal:
    """Appends events. On opening, a last line that a crash cut short is removed. Raises InputError where another process
    has the journal open: one search a folder, until `close` or the end of its process.
    """

    def __init__(self, run_dir: Path):
        self._file = open(run_dir / FILE_NAME, "a+b", buffering=0)  # noqa: SIM115 (open for the search's whole life)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{run_dir}: another search is running in this folder; wait for it, or stop it") from None
        self._size = self._file.seek(0, os.SEEK_END)
        if self._size:
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
                self._size = contents.rfind(b"\n") + 1
        self._file.truncate(self._size)

    def close(self) -> None:
        """Lets another search have the folder."""
        self._file.close()

    def append(self, event: Event) -> Event:
        """Writes one event, its `time` set, and returns it; once this returns it survives a crash. NaN and infinite
        numbers are written as null. Raises OSError where it can't be written; the journal is then as it was.
        """
        infinite = [name for name, value in event.to_json().items() if isinstance(value, float) and math.isinf(value)]
        event = replace(event, time=round(time.time(), 3), **dict.fromkeys(infinite, math.nan))
        written_as = {name: None if value != value else value for name, value in event.to_json().items()}  # JSON has no NaN
        line = (json.dumps(written_as) + "\n").encode()
        try:
            if self._file.write(line) != len(line):  # a full disk takes a part first
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        return event
