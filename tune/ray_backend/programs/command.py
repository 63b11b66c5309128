"""A command as a training program: it reports in its output, and saves into its own folder whenever it likes."""

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from myllm.system.errors import one_line
from myllm.system.files import ROOT
from tune.config.function import Reports, Train
from tune.config.spec import ProgramSearch
from tune.config.template import fill
from tune.ray_backend.programs.process import Process, Seen, pattern_parser
from tune.ray_backend.programs.reports import NoReportError, ProgramError
from tune.store.checkpoints import PLACE_FILE, read_place

PENDING = "search_reports.json"  # in a checkpoint: reports that were read and not passed on when it was copied
SETTLE_SECONDS = 0.3  # in which no file of a whole checkpoint changes; as long as it has taken so far, if that is longer
END_SECONDS = 30.0  # that a program gets after its last report, to end by itself
WAIT_SECONDS = 0.05  # between two looks

Files = dict[str, tuple[int, int, int]]
"""path below the program's folder -> (inode, time of the last change in ns, bytes)"""


class CheckpointFiles:
    """The files below a program's folder that make its checkpoint."""

    def __init__(self, folder: Path, patterns: tuple[str, ...]):
        self.folder, self.patterns = folder, patterns

    def matches(self) -> list[Path]:
        """The files and folders of the newest checkpoint: of each pattern with a * the newest match."""
        if not self.patterns:
            return list(self.folder.iterdir())
        found = []
        for pattern in self.patterns:
            paths = sorted(self.folder.glob(pattern), key=_modified)
            found += paths[-1:] if "*" in pattern else paths
        return found

    def look(self) -> Files:
        """All files of the newest checkpoint, as they are now."""
        found: Files = {}
        for path in self.matches():
            for file in path.rglob("*") if path.is_dir() else [path]:
                if (status := _status(file)) and file.is_file():
                    found[str(file.relative_to(self.folder))] = status
        return found

    def copy(self, target: Path) -> bool:
        """Replaces what is in `target` by the checkpoint, and deletes older ones; False where a file changed meanwhile."""
        before = self.look()
        shutil.rmtree(target)
        target.mkdir()
        try:
            for name in before:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.folder / name, target / name)
        except FileNotFoundError:
            return False
        if self.look() != before:
            return False
        newest = self.matches()
        for pattern in self.patterns:
            for path in self.folder.glob(pattern):
                if "*" in pattern and path not in newest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return True

    def step(self, otherwise: int) -> int:
        """The last number in the name of the newest match of a pattern with a *; `otherwise` where there is none."""
        for pattern, path in zip(self.patterns, self.matches(), strict=False):
            if "*" in pattern and (numbers := re.findall(r"\d+", path.stem)):
                return int(numbers[-1])
        return otherwise


def _modified(path: Path) -> int:
    status = _status(path)
    return status[1] if status else 0


def _status(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def command_program(search: ProgramSearch, threads: int, gpus: float, output: str) -> Train:
    """The contract's function for a command. What it prints is added to the file `output`."""

    def train(settings: dict[str, Any], budget: int, folder: Path, resume: bool) -> Reports:
        run = folder.with_name("run")
        if resume:
            shutil.copytree(folder, run, ignore=shutil.ignore_patterns(PENDING, PLACE_FILE))
        else:
            run.mkdir()
        segment = CommandSegment(search, settings, budget, folder, run, resume, threads, gpus, output)
        return segment.reports()

    return train


class CommandSegment:
    """A segment of a trial that a command trains."""

    def __init__(
        self,
        search: ProgramSearch,
        settings: dict[str, Any],
        budget: int,
        folder: Path,
        run: Path,
        resume: bool,
        threads: int,
        gpus: float,
        output: str,
    ):
        self.search, self.budget, self.folder, self.run = search, budget, folder, run
        options = search.options
        self.files = CheckpointFiles(run, options.checkpoint)
        self.at_start = self.files.look()
        self.saves_first: bool | None = None  # True if the program saves before it reports; None before its first report
        self.pending = json.loads((folder / PENDING).read_text()) if resume and (folder / PENDING).exists() else []
        words, values = search.command_line(settings, str(run), gpus), search.values(settings)
        step, self.seconds_before = 0, 0.0
        if resume:
            tokens, self.seconds_before = read_place(folder)
            step = self.files.step(tokens // search.step_tokens(settings))
            resume_values = values | {"folder": str(run), "step": step}
            words += [fill(word, resume_values) for word in shlex.split(options.resume_args or "")]
        self.process = Process(
            words,
            search.program.folder,
            environment(threads),
            pattern_parser(options.report, step, values["report_every"]),
            output,
            self.files.look,
            run / options.report_file if options.report_file else None,
        )
        self.queue: list[Seen] = []  # reports that were read while a checkpoint was waited for

    def reports(self) -> Reports:
        """Yields the program's reports, and copies its newest checkpoint when it is told to save."""
        step, options = 0, self.search.options
        try:
            for report in self.pending:
                if (yield report) == "save":
                    yield None  # the folder has the checkpoint that the report came with
            while seen := self._next():
                if self.saves_first is None:
                    self.saves_first = bool(seen.files) and seen.files != self.at_start
                step = seen.report["step"] if isinstance(seen.report["step"], int) else step
                if (yield self._timed(seen)) == "save":
                    self._save(seen)
                    yield None
            self.process.check()
            if not self.process.has_reported and not self.pending:
                raise NoReportError(self.process.no_report(options.report))
        finally:
            self.process.stop(END_SECONDS if step + 1 >= self.budget else 0.0)

    def _timed(self, seen: Seen) -> dict[str, Any]:
        """A report with the seconds that the trial has trained, over all segments."""
        return seen.report | {"train_seconds": self.seconds_before + seen.seconds}

    def _next(self) -> Seen | None:
        """The next report; None where the program has ended. Raises ProgramError where none comes for too long."""
        if self.queue:
            return self.queue.pop(0)
        options = self.search.options
        limit = options.stall_timeout
        while not self.process.ended.is_set() or not self.process.reports.empty():
            if seen := self.process.next(1.0):
                return seen
            if time.monotonic() - self.process.heard > limit and not self.process.ended.is_set():
                late = f"nothing for {limit:g} s (--stall_timeout)"
                if not self.process.has_reported:
                    raise NoReportError(f"{late}; {self.process.no_report(options.report)}")
                tail = one_line(self.process.tail[-1])[:80] if self.process.tail else "nothing"
                raise ProgramError(f"no report: {late}; the last line of its output: {tail}")
        return self.process.next(1.0)

    def _save(self, at: Seen) -> None:
        """Copies the checkpoint of the report `at` into the folder once it is whole.

        That is the first one after the report, or, of a program that saves before it reports, the one that is there.
        Where none has come by the next report, an older one must do.
        """
        before = self.files.look() if self.saves_first else at.files
        whole = self.saves_first or False
        while not whole and not self.queue and not self.process.ended.is_set():
            whole = self.files.look() != before
            if seen := self.process.next(WAIT_SECONDS):
                self.queue.append(seen)
        begun = time.monotonic()
        while not self._is_settled(time.monotonic() - begun) or not self.files.copy(self.folder):
            if seen := self.process.next(WAIT_SECONDS):
                self.queue.append(seen)
                begun = time.monotonic()  # of the next checkpoint
        while seen := self.process.next(0.0):
            self.queue.append(seen)
        if self.queue and any(self.folder.iterdir()):
            (self.folder / PENDING).write_text(json.dumps([self._timed(seen) for seen in self.queue]))

    def _is_settled(self, taken: float) -> bool:
        """True if nothing changes in the checkpoint, and no process of the program has it open, for as long as its files
        have `taken` until now (seconds), and SETTLE_SECONDS at least: between two of them a slow program may pause.
        """
        before = self.files.look()
        if not self.process.ended.is_set():
            time.sleep(max(SETTLE_SECONDS, taken))
        return self.files.look() == before and not any(self._open_files())

    def _open_files(self) -> Iterator[str]:
        """Yields the checkpoint's files that the program has open."""
        try:
            for process in psutil.Process(self.process.process.pid).children(recursive=True):
                for file in process.open_files():
                    if getattr(file, "mode", "r") != "r" and Path(file.path).is_relative_to(self.run):
                        name = str(Path(file.path).relative_to(self.run))
                        if name in self.files.look():
                            yield name
        except psutil.Error:
            return


def environment(threads: int) -> dict[str, str]:
    """The variables of a program: the user's own, unbuffered output, and the cores of its trial."""
    found = dict(os.environ) | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    path = [folder for folder in found.get("PYTHONPATH", "").split(os.pathsep) if folder and folder != str(ROOT)]
    found["PYTHONPATH"] = os.pathsep.join(path)
    return found if path else {name: value for name, value in found.items() if name != "PYTHONPATH"}
