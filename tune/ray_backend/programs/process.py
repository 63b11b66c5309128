"""A running command: its output, its reports, and its end."""

import contextlib
import errno
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from myllm.system.errors import one_line
from tune.ray_backend.programs.reports import ProgramError
from tune.ray_backend.programs.supervise import SUPERVISOR

STOP_SECONDS = 10  # between SIGTERM and SIGKILL
TAIL_LINES = 40  # of the output, that an error shows
LONGEST_LINE = 2**20  # bytes
POLL_SECONDS = 0.05  # between two looks at a file of reports
Parse = Callable[[str], dict[str, Any] | None]
"""line of the output -> the report that it is, or None"""
EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt)\b.*")


class ProgramLostError(Exception):
    """A signal ended a training program: its trial may go on from its last checkpoint."""


@dataclass(frozen=True)
class Seen:
    """A report as it was read."""

    report: dict[str, Any]
    seconds: float  # since the command began
    files: Any  # what `look` returned then


class Process:
    """A command with its reports as they come. `look` is called at each report, to know the checkpoint of that time."""

    def __init__(
        self,
        command: list[str],
        folder: str,
        environment: dict[str, str],
        parse: Parse,
        output: str,
        look: Callable[[], Any],
        report_file: Path | None = None,
    ):
        """Starts the command in `folder`. Raises ProgramError where the folder or the program is not there."""
        self.parse, self.look, self.report_file = parse, look, report_file
        self.begun, self.reports = time.monotonic(), queue.SimpleQueue[Seen]()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.lines = 0  # of the output
        self.has_reported = False
        self.heard = time.monotonic()  # when the last report came
        self.ended = threading.Event()
        self.fault: BaseException | None = None
        words = [sys.executable, str(SUPERVISOR), str(STOP_SECONDS), *command]
        if not Path(folder).is_dir():
            raise ProgramError(f"{folder}, where the search was started, is no folder on this machine; all must see it")
        self.process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.log: BinaryIO | None = None
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            self.log = open(output, "ab", buffering=0)  # noqa: SIM115 (closed by `stop`)
        self.threads = [threading.Thread(target=self._read, daemon=True)]
        self.threads += [threading.Thread(target=self._follow, daemon=True)] if report_file else []
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        """Keeps the output, and takes its reports, until the command has ended."""
        assert self.process.stdout is not None
        rest = b""
        try:
            while piece := os.read(self.process.stdout.fileno(), 65536):
                if self.log:
                    self.log.write(piece)
                *lines, rest = re.split(rb"[\r\n]+", rest + piece)
                rest = rest[-LONGEST_LINE:]
                for line in lines:
                    self._line(line, is_report=self.report_file is None)
            self._line(rest, is_report=self.report_file is None)
        except Exception as error:  # of the disk, of the pattern; raised in the training thread
            self.fault = error
        self.process.wait()
        self.ended.set()

    def _follow(self) -> None:
        """Takes the reports that are added to the file of reports, until the command has ended."""
        assert self.report_file is not None
        at, rest, last = self.report_file.stat().st_size if self.report_file.exists() else 0, b"", False
        while not last:
            last = self.ended.wait(POLL_SECONDS)
            with contextlib.suppress(FileNotFoundError), open(self.report_file, "rb") as file:
                at = min(at, os.fstat(file.fileno()).st_size)  # the program wrote the file anew
                file.seek(at)
                piece = file.read()
                at += len(piece)
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._line(line, is_report=True, is_output=False)

    def _line(self, line: bytes, is_report: bool, is_output: bool = True) -> None:
        text = line.decode("utf-8", errors="replace").rstrip()
        if not text:
            return
        if is_output:
            self.tail.append(text)
            self.lines += 1
        report = self.parse(text) if is_report else None
        if report is not None:
            self.has_reported = True
            self.heard = time.monotonic()
            self.reports.put(Seen(report, self.heard - self.begun, self.look()))

    def next(self, seconds: float) -> Seen | None:
        """The next report; None where none comes within `seconds`, or the command has ended."""
        end = time.monotonic() + seconds
        while True:
            over = self.ended.is_set() and not (self.report_file and self.threads[-1].is_alive())
            with contextlib.suppress(queue.Empty):
                return self.reports.get(timeout=0 if over else POLL_SECONDS)
            if over or time.monotonic() > end:
                return None

    def check(self) -> None:
        """Raises what went wrong with a command that has ended: ProgramLostError, ProgramError, or OSError of the disk."""
        if self.fault:
            raise self.fault
        code, tail = self.process.returncode, "".join(f"  {line}\n" for line in self.tail)
        if code == 0:
            return
        if any("No space left on device" in line for line in self.tail):
            raise OSError(errno.ENOSPC, "No space left on device")
        said = next((line for line in reversed(self.tail) if EXCEPTION.match(line)), self.tail[-1] if self.tail else "")
        if code < 0:
            raise ProgramLostError(f"{signal.Signals(-code).name} ended the program; its output ends:\n{tail}")
        raise ProgramError(f"its output ends:\n{tail}ProgramError: exit code {code}: {said}")

    def no_report(self, pattern: str | None) -> str:
        """What was looked for in vain, in one line."""
        fits = "fits --report" if pattern else 'is JSON with "step" and "val_loss"; --report says how to read others'
        if self.report_file is not None:
            name = self.report_file.name
            return f"no line of --report_file {name} {fits}" if self.report_file.exists() else f"there is no file {name}"
        if not self.tail:
            return "the program has printed nothing"
        return f"of {self.lines} lines of output like {one_line(telling_line(self.tail))[:80]!r} none {fits}"

    def stop(self, patience: float = 0.0) -> None:
        """Ends the command and all of its processes: SIGTERM after `patience` seconds, SIGKILL STOP_SECONDS later."""
        self.ended.wait(patience)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        for thread in self.threads:
            thread.join()
        if self.log:
            self.log.close()


def pattern_parser(pattern: str | None, begin: int = 0, every: int = 1) -> Parse:
    """A function that takes the report out of a line, None of other lines: by a regular expression, or as JSON.

    Where the pattern has no group for the step, reports come each `every` steps after the step `begin`.
    """
    if pattern is None:
        return json_report
    compiled = re.compile(pattern)
    steps = itertools.count(begin + every, every)

    def parse(line: str) -> dict[str, Any] | None:
        found = compiled.search(line)
        if found is None:
            return None
        groups = {name: text for name, text in found.groupdict().items() if text is not None}
        values: dict[str, Any] = {name: _number(text) for name, text in groups.items()}
        if "step" not in compiled.groupindex:
            return values | {"step": next(steps)}
        return values | {"step": int(values["step"])} if isinstance(values.get("step"), float) else None

    return parse


def names_loss(line: str) -> bool:
    """True if a line has the word loss and a number."""
    return "loss" in line.lower() and re.search(r"\d", line) is not None


def telling_line(lines: Sequence[str]) -> str:
    """The last of the lines that names a loss, or else the last one."""
    return next((line for line in reversed(lines) if names_loss(line)), lines[-1])


def json_report(line: str) -> dict[str, Any] | None:
    """The report that a JSON line is; None of other lines, and of JSON without step and loss."""
    if not line.startswith("{"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or "step" not in values or not {"val_loss", "loss"} & values.keys():
        return None
    return {name: float("nan") if value is None else value for name, value in values.items()}


def _number(text: str) -> Any:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text
