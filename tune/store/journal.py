"""The memory of a search: one JSON object a line, appended and synced before anything acts on it.

tune/core/events.py has the events and their keys. myllm/training/run_artifacts.py reads some of them, too.
"""

import errno
import fcntl
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError
from tune.core.events import Event, from_json
from tune.store.old_formats import upgraded_event

FILE_NAME = "journal.jsonl"
BLOCK_BYTES = 2**16  # read at once where the end is looked for
BATCH = 1000  # lines parsed together: they share the strings of their keys, a quarter of the memory


def events_of(run_dir: Path) -> Iterator[Event]:
    """All events, in order. A last line that a crash cut short is left out. Raises InputError for any other damage."""
    path, before = run_dir / FILE_NAME, 0
    if not path.is_file():
        return
    with open(path, "rb") as file:
        while lines := list(itertools.islice(file, BATCH)):
            if not lines[-1].endswith(b"\n"):
                lines.pop()
            try:
                yield from map(_restored, json.loads(b"[" + b",".join(lines) + b"]"))
            except (ValueError, KeyError, TypeError, AttributeError):
                number = before + 1 + next(at for at, line in enumerate(lines) if not _is_event(line))
                raise InputError(f"{path}: line {number} is damaged; restore the file from a backup") from None
            before += len(lines)


def _restored(line: dict[str, Any]) -> Event:
    """Returns the event of a line of any version; a null in a report was NaN."""
    line = upgraded_event(line)
    if line["event"] == "report" and None in line.values():
        line |= {name: math.nan for name, value in line.items() if value is None}
    return from_json(line)


def read_journal(run_dir: Path) -> list[Event]:
    """The same as a list."""
    return list(events_of(run_dir))


def _is_event(line: bytes) -> bool:
    try:
        _restored(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line break."""
    end = path.stat().st_size
    with open(path, "rb") as file:
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


class Journal:
    """Appends events. On opening, a last line that a crash cut short is removed.

    Raises InputError where another process has the journal open: one search a folder. The lock goes with `close`
    or its process.
    """

    def __init__(self, run_dir: Path):
        path = run_dir / FILE_NAME
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open for the search's whole life)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{run_dir}: another search is running in this folder; wait for it, or stop it") from None
        self._size = _whole_lines(path)
        self._file.truncate(self._size)

    def close(self) -> None:
        """Lets another search have the folder."""
        self._file.close()

    def append(self, event: Event) -> Event:
        """Writes one event and returns it, its `time` set; once this returns it survives a crash.

        An infinite number is recorded as NaN, and NaN is written as null.

        Raises OSError where it can't be written, on a full disk for example; the journal is then as it was.
        """
        infinite = [name for name, value in event.to_json().items() if isinstance(value, float) and math.isinf(value)]
        event = replace(event, time=round(time.time(), 3), **dict.fromkeys(infinite, math.nan))
        written_as = {name: None if value != value else value for name, value in event.to_json().items()}  # JSON has no NaN
        line = (json.dumps(written_as) + "\n").encode()
        try:
            written = self._file.write(line)
            if written != len(line):  # a full disk takes a part first
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        return event
