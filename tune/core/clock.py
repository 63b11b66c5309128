"""The time of a search: seconds of all its sessions, from their events, and what is left of a --time_budget."""

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT, RecordedReport

MEASURED_REPORTS = 8  # after which the speed is known well enough to plan by; the first ones are slow
RECENT_REPORTS = 128  # by which it is judged: a machine that others use too changes its pace
ENDING_SECONDS = 1.26  # from a search's last report to its summary; measured, the median of experiments/overhead.py
OVERRUN = 1.05  # of its time, within which what runs then may still end


class SearchClock:
    """Wall-clock seconds of all sessions, each from its command's beginning to its last event, however it ended.

    Those of an audit, from its first trial until the rule does something again, are not those of the search.
    """

    def __init__(self, events: Iterable[dict[str, Any]] = ()):
        self.search = self.audit = self.starting = self.last = 0.0
        """`starting` is that part of `search` which sessions took until their first trial; `last` is when the last event
        came, seconds since 1970"""
        self.auditing = self._starts = False
        for event in events:
            self.see(event)

    def see(self, event: dict[str, Any]) -> None:
        """Takes one more event in."""
        begins = event["event"] == "session"
        passed = event.get("startup_seconds", 0.0) if begins else max(0.0, event["time"] - self.last) if self.last else 0.0
        self.last = event["time"]
        if self.auditing:
            self.audit += passed
        else:
            self.search += passed
            self.starting += passed * (begins or self._starts)
        self._starts = begins
        if event["event"] in ("trial", "resume"):
            self.auditing = event.get("source") == AUDIT


def search_seconds(events: Iterable[dict[str, Any]]) -> float:
    """All of them together."""
    spent = SearchClock(events)
    return spent.search + spent.audit


class TimeBudget:
    """The clock of a search that has so many seconds, all sessions together; without them it has no end.

    Seconds count as tokens at a worker's pace, evaluations included: that of the slower quarter of the recent reports, as
    the best configurations often have small batches.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self.paces: deque[float] = deque(maxlen=RECENT_REPORTS)  # tokens a second

    def see(self, before: RecordedReport | None, report: dict[str, Any]) -> None:
        """Takes a trial's report in, and the one before it."""
        tokens, seconds = (report[name] - getattr(before, name, 0) for name in ("tokens_seen", "train_seconds"))
        if seconds > 0:
            self.paces.append(tokens / seconds)

    def read(self, passed: float, starting: float) -> Clock:
        """The clock after `passed` seconds, of which `starting` went by before there was anything to train: a rule that
        shared them out, too, would explore too little in a short search.
        """
        if self.seconds is not None and passed >= self.seconds:
            return Clock(0.0, 0.0)
        if self.seconds is None or len(self.paces) < MEASURED_REPORTS:
            return Clock(0.0)
        pace = statistics.quantiles(self.paces, n=4)[0]
        return Clock(max(0.0, passed - starting) * pace, max(0.0, self.seconds - passed) * pace)

    def is_late(self, passed: float) -> bool:
        """Whether what still runs after `passed` seconds has had its time to end, too."""
        return self.seconds is not None and passed > OVERRUN * self.seconds
