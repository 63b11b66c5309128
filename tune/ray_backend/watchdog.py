"""No silent wait: a search in which nothing starts or reports ends, and says why by what Ray has written into its logs."""

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
LOGS = ("worker-*.err", "raylet.err", "gcs_server.err", "*agent.err", "*agent.log", "gcs_server.out", "raylet.out")
SIGNS = [
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
"""lines of a log that name a cause, those that say most first: a shell, the loader, Python, Ray's end, C++, Ray's errors"""


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
    """What the logs in a folder of Ray's name as the first cause: the line, and the file that has it."""
    texts = {}
    for pattern in LOGS:
        for path in sorted(logs.glob(pattern)):
            texts[path] = path.read_text(errors="replace")
    for sign in SIGNS:
        for path, text in texts.items():
            if found := sign.search(text):
                return f"{one_line(found[1])[:300]} ({path})"
    return None


def because(logs: Path | None) -> str:
    """The end of a sentence: the cause in `logs`, or where to look for it."""
    if logs is None or not logs.is_dir():
        return "Ray's logs are on its own machines, below /tmp/ray/session_latest/logs"
    return cause(logs) or f"Ray's logs name no cause: {logs}"


def why_not_started(error: Exception, since: float) -> str:
    """Why Ray did not start: by the logs that it has begun after `since` (seconds, UNIX), or by its own error."""
    for folder in ray_folder().glob(f"session_*_{os.getpid()}"):
        if folder.stat().st_mtime >= since - 1 and (found := cause(folder / "logs")):
            return found
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[0])[:300]


def working_seconds() -> float:
    """CPU seconds that the processes which train on this machine have used by now."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "".join(process.cmdline()[:1]).startswith("ray::"):
                total += sum(process.cpu_times()[:2])
    return total


class Watchdog:
    """Counts the seconds in which no trial has started or reported, and ends the search after `patience` of them.

    A trial that trains may report rarely: where one runs, its process must also have used no CPU time to speak of in the
    second half of these seconds. Processes on other machines can't be looked at; there the user is told every `patience`
    seconds, also where the cluster has no room.
    """

    def __init__(self, patience: float, logs: Path | None, dead: Callable[[], list[str]], room: Callable[[], str] | None):
        self.patience, self.logs = patience, logs
        self.dead = dead
        """names of Ray's own processes on this machine that have ended"""
        self.room = room
        """of a cluster that others use too: what it lacks for one more trial, empty where nothing; None: our own"""
        self.running: set[str] = set()
        """trials whose process has started"""
        self.last = self.last_check = time.monotonic()
        self.seen()

    def seen(self) -> None:
        """Something has happened."""
        self.waited = 0.0
        self.used: float | None = None

    def started(self, trial_id: str) -> None:
        """A trial's process has started, or reported."""
        self.running.add(trial_id)
        self.seen()

    def ended(self, trial_id: str) -> None:
        """A trial has ended, well or badly."""
        self.running.discard(trial_id)
        self.seen()

    def look(self) -> None:
        """Raises RunError where one of Ray's processes has ended, or nothing has happened for too long."""
        now = time.monotonic()
        self.waited += min(now - self.last, LONGEST_TICK)
        self.last = now
        if now - self.last_check < CHECK_SECONDS:
            return
        self.last_check = now
        if dead := self.dead():
            raise RunError(f"Ray's {dead[0]} has ended: {because(self.logs)}")
        if self.running and not self.room and self.used is None and self.waited > self.patience / 2:
            self.used = working_seconds()
        if self.waited < self.patience:
            return
        what = f"no trial has {'reported' if self.running else 'started'} for {self.waited:.0f} s"
        if self.room is not None and (self.running or self.room()):
            warn(f"{what}; {'' if self.running else self.room() + '; '}waiting")
        elif not self.running:
            raise RunError(f"{what}: {because(self.logs)}")
        elif working_seconds() - (self.used or 0.0) < IDLE_SHARE * self.patience / 2:
            raise RunError(f"{what}, and none has computed: {because(self.logs)}")
        self.seen()
