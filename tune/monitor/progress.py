"""Shows a search while it runs: a screen on a terminal, a line a minute anywhere else."""

import contextlib
import dataclasses
import logging
import math
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live

from tune.core.trials import Trial
from tune.estimate.forecast import Forecast, measured_pace, simulate_rest
from tune.monitor.screen import View, line, render
from tune.store.journal import read_journal

if TYPE_CHECKING:
    from tune.ray_backend.session import Session

SCREEN_SECONDS, LOG_SECONDS = 0.5, 60.0  # between two looks, on a terminal and in a log
FORECAST_SECONDS, FORECAST_SHARE = 5.0, 0.03  # between two forecasts at least, and of the time that they may take
ENDING_SECONDS = 4.0  # from the last report to the summary


class Terminal(Console):
    """A terminal whose cursor stays: a process that is killed could not bring it back. Its size is the one that it has
    now, whatever COLUMNS says.
    """

    @property
    def size(self) -> ConsoleDimensions:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            columns, lines = os.get_terminal_size(self.file.fileno())
            if columns and lines:
                return ConsoleDimensions(columns, lines)
        return super().size

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Progress:
    """Within it, `show()` shows how the trials of a session stand, where that is due."""

    def __init__(self, session: "Session"):
        self.session, self.search, self.trials = session, session.search, session.trials
        self.slots: list[Trial | None] = [None] * session.workers
        self.rung_tokens = session.search.scheduler().rung_tokens
        self.began = time.monotonic()
        self.trained_before, self.segments = self._trained(), 0
        self.first_segment: float | None = None
        self.first_report: tuple[float, float, int] | None = None
        """when it came, seconds trained by then, segments begun by then"""
        self.outlook: Forecast | None = None
        self.note = "starting"
        self.last = -math.inf
        self.console = Terminal(stderr=True)
        self.live: Live | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(
                console=self.console,
                get_renderable=self._screen,
                auto_refresh=False,  # by the thread that changes the trials, not beside it
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )
            self.live.start(refresh=True)
        threading.Thread(target=self._keep_forecasting, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        if self.live:
            live, self.live = self.live, None
            live.stop()

    def show(self) -> None:
        """Shows how things stand, where the last look is long enough ago."""
        now = time.monotonic()
        self._assign_slots(now)
        if now - self.last < (SCREEN_SECONDS if self.live else LOG_SECONDS):
            return
        self.last = now
        if self.live:
            self.live.refresh()
        else:
            print(line(self.view()), file=sys.stderr, flush=True)

    def view(self) -> View:
        """What there is to see now."""
        now, share = time.monotonic(), None
        if self.first_segment is not None and now - self.first_segment > 1:
            share = min(1.0, (self._trained() - self.trained_before) / (len(self.slots) * (now - self.first_segment)))
        return View(
            name=self.search.options.name or "",
            trials=self.trials,
            rung_tokens=self.rung_tokens,
            slots=self.slots,
            seconds=self.seconds,
            outlook=self.outlook,
            training_share=share or None,
            note=self.note,
        )

    @property
    def seconds(self) -> float:
        """Of the search so far, all sessions together."""
        return self.session.seconds_before + time.monotonic() - self.began

    def _screen(self) -> RenderableType:
        return render(self.view(), *self.console.size) if self.live else ""  # nothing is left behind

    def _assign_slots(self, now: float) -> None:
        """Each trial keeps the slot that it took; a new one takes the first that is free."""
        active = {id(trial): trial for trial in self.session.active()}
        self.slots = [trial if id(trial) in active else None for trial in self.slots]
        held = {id(trial) for trial in self.slots if trial}
        for key, trial in active.items():
            if key not in held and None in self.slots:
                self.slots[self.slots.index(None)] = trial
                self.segments += 1
        if active and self.first_segment is None:
            self.first_segment, self.note = now, ""
        if self.first_report is None and (trained := self._trained()) > self.trained_before:
            self.first_report = now, trained, self.segments

    def _trained(self) -> float:
        """Seconds of training and evaluating, over all trials, that have been reported."""
        return sum(trial.train_seconds for trial in self.trials.by_id.values())

    def _keep_forecasting(self) -> None:
        """Plays the search on from its journal, again and again: beside the trials, whose thread must not wait for it."""
        pause = FORECAST_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self._forecast()
            except Exception:  # a search does not end because nobody knows when it will
                logging.getLogger("tune").exception("no forecast")
            pause = max(FORECAST_SECONDS, (time.monotonic() - began) / FORECAST_SHARE)

    def _forecast(self) -> None:
        if self.first_report is None:
            return
        began, trained, segments = self.first_report  # what came before was slowed down by Ray's start
        idle = len(self.slots) * (time.monotonic() - began) - (self._trained() - trained)
        events = read_journal(self.session.run_dir)
        pace = measured_pace(events, per_segment=max(0.0, idle) / max(1, self.segments - segments))
        if pace:
            outlook = simulate_rest(self.search, events, pace, len(self.slots), self.seconds)
            self.outlook = dataclasses.replace(outlook, seconds=outlook.seconds + ENDING_SECONDS)
