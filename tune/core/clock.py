"""The time of a search: the seconds of its sessions, and the rest of a --time_budget."""

import statistics
from collections import deque
from collections.abc import Iterable

from tune.core.events import Event, Reported, SessionStarted, TrialResumed, TrialStarted
from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT

MEASURED_REPORTS = 8  # reports after which the pace is known; the first ones are slow
RECENT_REPORTS = 128  # reports that the pace is computed from; a shared machine changes its pace
ENDING_SECONDS = 1.26  # from a search's last report to its summary; measured, the median of experiments/overhead.py
OVERRUN = 1.05  # share of the time budget after which running segments are late


class SearchClock:
    """Wall-clock seconds of all sessions, each from its command's beginning to its last event.

    An audit's seconds count apart: from its first trial until the rule begins or resumes another one.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self.search = self.audit = self.starting = self.last = 0.0
        """seconds, of which `starting` is the part of `search` before each session's first trial; `last` is the time of the
        last event, in seconds since 1970"""
        self.auditing = self._starts = False
        for event in events:
            self.see(event)

    def see(self, event: Event) -> None:
        """Takes one more event in."""
        begins = isinstance(event, SessionStarted)
        if isinstance(event, SessionStarted):
            passed = event.startup_seconds
        else:
            passed = max(0.0, event.time - self.last) if self.last else 0.0
        self.last = event.time
        if self.auditing:
            self.audit += passed
        else:
            self.search += passed
            self.starting += passed * (begins or self._starts)
        self._starts = begins
        if isinstance(event, TrialStarted):
            self.auditing = event.source == AUDIT
        elif isinstance(event, TrialResumed):
            self.auditing = False


def search_seconds(events: Iterable[Event]) -> float:
    """Wall-clock seconds of all sessions, audits included."""
    spent = SearchClock(events)
    return spent.search + spent.audit


class TimeBudget:
    """The clock of a search that has `seconds` in all its sessions; None: no end. Seconds become tokens at a worker's
    pace, evaluations included: the lower quartile of recent reports, as the best configurations often have small batches.

    A ladder's trials differ in size, so its `pace` is 1: the clock stays in seconds.
    """

    def __init__(self, seconds: float | None, pace: float | None = None):
        self.seconds, self.pace = seconds, pace
        self.paces: deque[float] = deque(maxlen=RECENT_REPORTS)  # tokens a second

    def see(self, before: Reported | None, report: Reported, slots: int = 1) -> None:
        """Takes in a trial's report, the report before it, and the slots that trained in between."""
        tokens, seconds = (getattr(report, name) - getattr(before, name, 0) for name in ("position", "train_seconds"))
        if seconds > 0:
            self.paces.append(tokens / seconds / slots)

    @property
    def seconds_per_token(self) -> float:
        """The median of recent reports, of a trial in one slot; 0 before the first report."""
        return statistics.median(1 / pace for pace in self.paces) if self.paces else 0.0

    def read(self, passed: float, starting: float) -> Clock:
        """The clock after `passed` seconds, of which `starting` went by before the first trials began.

        The clock leaves `starting` out: a rule that shared it would explore too little in a short search.
        """
        if self.seconds is not None and passed >= self.seconds:
            return Clock(0.0, 0.0)
        if self.seconds is None or (self.pace is None and len(self.paces) < MEASURED_REPORTS):
            return Clock(0.0)
        pace = self.pace or statistics.quantiles(self.paces, n=4)[0]
        return Clock(max(0.0, passed - starting) * pace, max(0.0, self.seconds - passed) * pace)

    def is_late(self, passed: float) -> bool:
        """True if segments that still run after `passed` seconds must be ended."""
        return self.seconds is not None and passed > OVERRUN * self.seconds
