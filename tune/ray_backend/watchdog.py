"""Ends a search in which nothing starts or reports, with the cause that Ray's logs name."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from myllm.system.errors import RunError, one_line, warn

CHECK_SECONDS = 1.0  # between looks at Ray's own processes
LONGEST_TICK = 5.0  # seconds that one look may count: a stopped process or a sleeping machine has not waited
IDLE_SHARE = 0.01  # of a core: a process that trains uses more, one that hangs uses less
LOGS = ("worker-*.err", "raylet.err", "gcs_server.err", "*agent.err", "*agent.log", "gcs_server.out", "raylet.out")
ERROR_PATTERNS = (
    r"^bash: line \d+: (.+)$",
    r"^.*(error while loading shared libraries: .+)$",
    r"^((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?:: .*\S.*)?)$",
    r"^\[.*? C \d+ \d+\](?: \(\w+\))? ([\w.]+:\d+: .+)$",
    r"^ *what\(\): +(.+)$",
    r"^\[.*? E \d+ \d+\](?: \(\w+\))? [\w.]+:\d+: (.+)$",
)
"""lines of a log that name a cause, the most telling first: a shell, the loader, Python, Ray's end, C++, Ray's errors"""


def cause(logs: Path) -> str | None:
    """The first cause that Ray's logs in a folder name: the line, and the file that has it. None where they name none."""
    texts = {path: path.read_text("utf-8", errors="replace") for name in LOGS for path in sorted(logs.glob(name))}
    for pattern in ERROR_PATTERNS:
        for path, text in texts.items():
            if found := re.search(pattern, text, re.MULTILINE):
                return f"{one_line(found[1])[:300]} ({path})"
    return None


def because(logs: Path) -> str:
    """The end of an error message: the cause in `logs`, or that they name none."""
    return cause(logs) or f"Ray's logs name no cause: {logs}"


def why_not_started(error: Exception, since: float, sessions: Path) -> str:
    """The reason why Ray did not start: from logs in `sessions` begun after `since` (seconds since 1970), or its error."""
    for folder in sessions.glob(f"session_*_{os.getpid()}"):
        if folder.stat().st_mtime >= since - 1 and (found := cause(folder / "logs")):
            return found
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[0])[:300]


def working_seconds() -> float:
    """CPU seconds that the training processes of this machine, and the programs that they run, have used by now."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "".join(process.cmdline()[:1]).startswith("ray::"):
                total += sum(process.cpu_times()[:2])
                total += sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return total


def ray_processes() -> dict[psutil.Process, str]:
    """Ray's own processes that this process has started, with their names; none where it joined a cluster."""
    return {
        process: process.name() for process in psutil.Process().children() if process.name() in ("raylet", "gcs_server")
    }


def _has_ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


class Watchdog:
    """Ends the search after `stall_timeout` seconds in which no trial has started or reported, and none has computed.

    Processes on other machines can't be seen, and a shared cluster may have no room: there the user is warned instead.
    """

    def __init__(
        self,
        stall_timeout: float,
        logs: Path,
        processes: dict[psutil.Process, str],
        signs: Callable[[], tuple[frozenset[str], int]],
        shared: bool,
    ):
        self.stall_timeout, self.logs, self.processes, self.shared = stall_timeout, logs, processes, shared
        self.signs = signs  # returns the ids of the segments that run, and a number that grows with each report and end
        self.last = time.monotonic()
        self._begin(signs())

    def _begin(self, signs: tuple[frozenset[str], int]) -> None:
        """Counts anew from these `signs` on."""
        self.seen, self.waited = signs, 0.0
        self.used: float | None = None

    def check(self) -> None:
        """Raises RunError where one of Ray's processes has ended, or nothing has happened for too long."""
        passed = time.monotonic() - self.last
        if passed < CHECK_SECONDS:
            return
        self.last += passed
        self.waited += min(passed, LONGEST_TICK)
        if dead := next((name for process, name in self.processes.items() if _has_ended(process)), None):
            raise RunError(f"Ray's {dead} has ended: {because(self.logs)}")
        if (signs := self.signs()) != self.seen:
            self._begin(signs)
        running = bool(signs[0])
        if running and not self.shared and self.used is None and self.waited > self.stall_timeout / 2:
            self.used = working_seconds()
        if self.waited < self.stall_timeout:
            return
        what = f"no trial has {'reported' if running else 'started'} for {self.waited:.0f} s"
        if self.shared:
            warn(f"{what}; waiting (`ray status` says what the cluster has free)")
        elif not running:
            raise RunError(f"{what}: {because(self.logs)}")
        elif working_seconds() - (self.used or 0.0) < IDLE_SHARE * self.stall_timeout / 2:
            raise RunError(f"{what}, and none has computed: {because(self.logs)}")
        self._begin(signs)
