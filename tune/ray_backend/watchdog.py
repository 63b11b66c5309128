"""Ends a search in which nothing starts or reports, with the cause that Ray's logs name."""

import contextlib
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from myllm.system.errors import InputError, RunError, one_line, warn

LEAST_ADDRESS_SPACE = 4 * 2**30  # bytes; with 3 GiB Ray 2.60 aborts where it maps its object store, with 4 it works
CHECK_SECONDS = 1.0  # between looks at Ray's own processes
LONGEST_TICK = 5.0  # seconds that one look may count: a stopped process or a sleeping machine has not waited
IDLE_SHARE = 0.01  # of a core: what trains uses more, what hangs uses less
RAY_PROCESSES = ("raylet", "gcs_server")
LOGS = ("worker-*.err", "raylet.err", "gcs_server.err", "*agent.err", "*agent.log", "gcs_server.out", "raylet.out")
ERROR_PATTERNS = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^bash: line \d+: (.+)$",
        r"^.*(error while loading shared libraries: .+)$",
        r"^((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?:: .*\S.*)?)$",
        r"^\[.*? C \d+ \d+\](?: \(\w+\))? ([\w.]+:\d+: .+)$",
        r"^ *what\(\): +(.+)$",
        r"^\[.*? E \d+ \d+\](?: \(\w+\))? [\w.]+:\d+: (.+)$",
    )
]
"""lines of a log that name a cause, the most telling first: a shell, the loader, Python, Ray's end, C++, Ray's errors"""


def ray_folder() -> Path:
    """Where Ray on this machine alone keeps its logs and sockets. Raises InputError where there is no such place."""
    usual = "/tmp" if sys.platform == "darwin" else None  # the Mac's own folder has too long a name for sockets
    try:
        return Path(os.path.realpath(os.environ.get("RAY_TMPDIR") or usual or tempfile.gettempdir())) / "ray"
    except FileNotFoundError:
        raise InputError("no folder for temporary files can be written, which Ray needs; set TMPDIR") from None


def check_address_space() -> None:
    """Raises RunError where this process may not have the address space that Ray needs."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise RunError(
            f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), and Ray needs"
            f" {LEAST_ADDRESS_SPACE // 2**30}; raise it with: ulimit -v unlimited"
        )


def cause(logs: Path) -> str | None:
    """The first cause that Ray's logs in a folder name: the line, and the file that has it. None where they name none."""
    texts = {}
    for name in LOGS:
        for path in sorted(logs.glob(name)):
            texts[path] = path.read_text("utf-8", errors="replace")
    for pattern in ERROR_PATTERNS:
        for path, text in texts.items():
            if found := pattern.search(text):
                return f"{one_line(found[1])[:300]} ({path})"
    return None


def because(logs: Path | None) -> str:
    """The end of an error message: the cause in `logs`, or where to look for it."""
    if logs is None or not logs.is_dir():
        return "Ray's logs are on its own machines, below /tmp/ray/session_latest/logs"
    return cause(logs) or f"Ray's logs name no cause: {logs}"


def why_not_started(error: Exception, since: float) -> str:
    """The reason why Ray did not start: from logs begun after `since` (seconds since 1970), or else from its error."""
    for folder in ray_folder().glob(f"session_*_{os.getpid()}"):
        if folder.stat().st_mtime >= since - 1 and (found := cause(folder / "logs")):
            return found
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[0])[:300]


def working_seconds() -> float:
    """CPU seconds that the training processes of this machine have used by now."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "".join(process.cmdline()[:1]).startswith("ray::"):
                total += sum(process.cpu_times()[:2])
    return total


def ray_processes() -> list[psutil.Process]:
    """Ray's own processes that this process has started; none where it joined a cluster."""
    return [process for process in psutil.Process().children() if _name(process) in RAY_PROCESSES]


def _name(process: psutil.Process) -> str:
    """The process' name; empty where the process is gone."""
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _has_ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


class Watchdog:
    """Counts the seconds in which no trial has started or reported, and ends the search after `stall_timeout` of them.

    A trial that trains may report rarely. So where one runs, its process must also have used almost no CPU time in the
    second half of these seconds. Processes on other machines can't be seen. There the user is warned every `stall_timeout`
    seconds instead, also where the cluster has no room.
    """

    def __init__(
        self,
        stall_timeout: float,
        logs: Path | None,
        processes: list[psutil.Process],
        room: Callable[[], str] | None,
    ):
        self.stall_timeout, self.logs = stall_timeout, logs
        self.processes = {process: _name(process) for process in processes}
        """Ray's own processes on this machine, with their names"""
        self.room = room
        """says what a shared cluster lacks for one more trial, or nothing; None: the Ray of this machine alone"""
        self.running: set[str] = set()
        """segments whose process has started"""
        self.last = self.last_check = time.monotonic()
        self.seen()

    def seen(self) -> None:
        """Begins to count anew."""
        self.waited = 0.0
        self.used: float | None = None

    def started(self, trial_id: str) -> None:
        """A segment's process has started, or reported."""
        self.running.add(trial_id)
        self.seen()

    def ended(self, trial_id: str) -> None:
        """A segment has ended, well or badly."""
        self.running.discard(trial_id)
        self.seen()

    def check(self) -> None:
        """Raises RunError where one of Ray's processes has ended, or nothing has happened for too long."""
        now = time.monotonic()
        self.waited += min(now - self.last, LONGEST_TICK)
        self.last = now
        if now - self.last_check < CHECK_SECONDS:
            return
        self.last_check = now
        if dead := next((name for process, name in self.processes.items() if _has_ended(process)), None):
            raise RunError(f"Ray's {dead} has ended: {because(self.logs)}")
        if self.running and not self.room and self.used is None and self.waited > self.stall_timeout / 2:
            self.used = working_seconds()
        if self.waited < self.stall_timeout:
            return
        what = f"no trial has {'reported' if self.running else 'started'} for {self.waited:.0f} s"
        if self.room is not None and (self.running or self.room()):
            warn(f"{what}; {'' if self.running else self.room() + '; '}waiting")
        elif not self.running:
            raise RunError(f"{what}: {because(self.logs)}")
        elif working_seconds() - (self.used or 0.0) < IDLE_SHARE * self.stall_timeout / 2:
            raise RunError(f"{what}, and none has computed: {because(self.logs)}")
        self.seen()
