"""The interface of a tracker, and the thread that feeds one from the journal's events.

Ray's own callbacks would open a run for each segment. A trial here has several segments and one run.
"""

import math
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tune.core.events import REPORTED, Event, Reported, SessionEnded, TrialFailed, TrialStarted, WorkerLost
from tune.core.trials import CONTINUE, PAUSE, Trial

METRICS = tuple(name for name in REPORTED if name not in ("step", "tokens_seen", "diverged"))
CLOSE_SECONDS = 60.0  # wait at the end of a search for a slow server


def finite_metrics(event: Reported) -> dict[str, float]:
    """The METRICS of a report that are finite numbers."""
    return {name: float(getattr(event, name)) for name in METRICS if math.isfinite(getattr(event, name))}


class Tracker(Protocol):
    """A place that shows the runs of a search, one run a trial. One thread makes all calls."""

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        """Records one report of a trial; opens the trial's run where it is not open."""

    def end(self, trial_id: str, status: str) -> None:
        """Closes the trial's run: the trial has ended, or it pauses. A later report opens the run again."""


class BackgroundLogger:
    """Feeds a Tracker from a thread: a slow or lost server does not delay the search.

    A report that the server refuses is missing there. The next report is tried again. The first failure is printed.
    """

    def __init__(self, label: str, make: Callable[[], Tracker], trials: Mapping[str, Trial]):
        """`label` names the tracker in warnings; `make` connects to its server, and may raise any exception."""
        self.label, self.make = label, make
        self.configs = {trial_id: trial.config for trial_id, trial in trials.items()}
        self.running: set[str] = set()
        self.tracker: Tracker | None = None
        self.warned = self.failing = self.closing = False
        self.queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def __call__(self, event: Event) -> None:
        """Takes one event of the journal."""
        if isinstance(event, TrialStarted):
            self.configs[event.trial_id] = event.config
        else:
            self.queue.put(event)

    def close(self) -> None:
        """Waits until the tracker has all events. Gives up after CLOSE_SECONDS, or when a server fails."""
        self.closing = True
        self.queue.put(None)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self._warn(f"not all was taken {CLOSE_SECONDS:.0f} s after the end")

    def _work(self) -> None:
        event: Event | None = Event()  # connects at once, so that an unreachable server is named early
        while event is not None and not (self.failing and self.closing):
            try:
                self.tracker = self.tracker or self.make()
                self._pass_on(self.tracker, event)
                self.failing = False
            except Exception as error:
                self.failing = True
                self._warn(" ".join(str(error).split())[:200])
            event = self.queue.get()

    def _warn(self, reason: str) -> None:
        if not self.warned:
            print(f"warning: {self.label}: {reason}; the search goes on, what fails is missing there", file=sys.stderr)
        self.warned = True

    def _pass_on(self, tracker: Tracker, event: Event) -> None:
        match event:
            case Reported(trial_id=trial_id):
                self.running.add(trial_id)
                tracker.report(trial_id, self.configs[trial_id], event)
                if event.diverged or event.decision != CONTINUE:
                    self.running.discard(trial_id)
                    paused = event.decision == PAUSE
                    tracker.end(trial_id, "diverged" if event.diverged else "paused" if paused else "ended")
            case TrialFailed(trial_id=trial_id):
                self.running.discard(trial_id)
                tracker.end(trial_id, "failed")
            case WorkerLost(trial_id=trial_id) if trial_id in self.running:
                self.running.discard(trial_id)
                tracker.end(trial_id, "paused")
            case SessionEnded():
                while self.running:
                    tracker.end(self.running.pop(), "paused")
