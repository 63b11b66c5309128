"""Turns the reports of a program of the user's own into those of its search: each report point once."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, Protocol

from tune.config.spec import ProgramSearch
from tune.core.events import REPORTED


class ProgramError(Exception):
    """A training program did what it must not. The message is one line, behind lines of its output where there are any."""


class NoReportError(ProgramError):
    """No report could be read of a training program: what says where its reports are may be wrong."""


class Segment(Protocol):
    """The reports of a segment, and the seconds that its program has trained so far."""

    seconds: float

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


class ReportPoints:
    """The report points of one segment of a trial.

    A report counts for the last report point at or before its step. The steps of a program that counts from 0 end one
    early: a report one step before a point counts for the point, unless reports come closer than points.
    """

    def __init__(
        self, search: ProgramSearch, settings: dict[str, Any], rungs: tuple[int, ...], tokens: int, seconds: float
    ):
        """The segment goes on from `tokens`, after `seconds` of training."""
        self.search, self.rungs, self.step_tokens = search, rungs, search.step_tokens(settings)
        self.tokens, self.seconds = tokens, seconds
        self.last_step = -search.budget_tokens
        self.last: dict[str, Any] | None = None  # the newest report that counted for no point

    def of(self, segment: Segment) -> Iterator[dict[str, Any]]:
        """Yields what the search takes of a segment's reports. Raises ProgramError as `metrics` and `end` do."""
        for report in segment:
            found = self.metrics(report, report.get("train_seconds", segment.seconds))
            if found:
                yield found
                if found["diverged"] or self.tokens >= self.search.budget_tokens:
                    return
        if last := self.end(segment.seconds):
            yield last

    def metrics(self, report: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """What the search takes of a report after `seconds` of training; None: its point has been reported.

        Raises ProgramError for a report without step or loss, and where a rung has been passed without a report.
        """
        step, loss = report.get("step"), report.get("val_loss", report.get("loss"))
        if not isinstance(step, int) or not isinstance(loss, Real):
            raise ProgramError(f'it reports {report}; a report has a whole "step" and a number "val_loss"')
        distance, budget = self.search.report_tokens, self.search.budget_tokens
        sparse = 2 * (step - self.last_step) * self.step_tokens > distance
        self.last_step = step
        tokens = min(budget, (step + (sparse and distance > self.step_tokens)) * self.step_tokens // distance * distance)
        diverged = not math.isfinite(loss)
        if diverged and tokens <= self.tokens:
            tokens = self.tokens + self.step_tokens
        if tokens <= self.tokens:
            self.last = report if (step + 1) * self.step_tokens >= budget else None
            return None
        return self._counted(report, step, tokens, float(loss), diverged, seconds)

    def end(self, seconds: float) -> dict[str, Any] | None:
        """The report of the end, where the newest report was one step before it; None where the end was reported.

        Raises ProgramError where the program ended too early.
        """
        budget, unit = self.search.budget_tokens, self.search.unit
        if self.tokens >= budget:
            return None
        if self.last is None:
            raise ProgramError(
                f"it ended after its report at {self.tokens:,} of {budget:,} {unit}; its last report must be at the end"
            )
        loss = float(self.last.get("val_loss", self.last.get("loss", math.nan)))
        return self._counted(self.last, self.last["step"], budget, loss, not math.isfinite(loss), seconds)

    def _counted(
        self, report: dict[str, Any], step: int, tokens: int, loss: float, diverged: bool, seconds: float
    ) -> dict[str, Any]:
        if passed := next((rung for rung in self.rungs if self.tokens < rung < tokens), None):
            every = self.search.report_tokens // self.step_tokens
            if not diverged:
                raise ProgramError(
                    f"it reports step {step} and has not reported {passed // self.step_tokens}, where trials are compared; "
                    f"it must report every {every} steps, or --report_every say how often it does"
                )
        speed = (tokens - self.tokens) / max(1e-9, seconds - self.seconds)
        self.tokens, self.seconds, self.last = tokens, seconds, None
        known = {name: float(report[name]) for name in REPORTED if isinstance(report.get(name), Real)}
        own = {"step": step, "tokens_seen": tokens, "val_loss": loss, "diverged": diverged}
        return dict.fromkeys(REPORTED, math.nan) | known | own | {"train_seconds": seconds, "tok_per_sec": speed}
