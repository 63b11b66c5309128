"""Shows a search while it runs: a screen on a terminal, a line a minute anywhere else."""

import contextlib
import dataclasses
import importlib
import io
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live

from tune.config.spec import SearchSpec
from tune.core.clock import ENDING_SECONDS
from tune.core.coordinator import Coordinator
from tune.core.trials import Trial
from tune.estimate.forecast import Forecast, measured_throughput, simulate_rest
from tune.monitor.screen import View, line, render
from tune.store.journal import read_journal

NOTEBOOK_WIDTH, NOTEBOOK_LINES = 100, 24  # characters of the screen in a notebook
SCREEN_SECONDS, LOG_SECONDS = 0.5, 60.0  # between two refreshes, on a terminal and in a log
FORECAST_SECONDS = 5.0  # between two forecasts, at least
FORECAST_SHARE = 0.03  # largest share of the time that forecasts take


class Terminal(Console):
    """A terminal with its present size, whatever COLUMNS says.

    The cursor stays visible: a process that is killed could not bring it back.
    """

    @property
    def size(self) -> ConsoleDimensions:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            columns, lines = os.get_terminal_size(self.file.fileno())
            if columns and lines:
                return ConsoleDimensions(columns, lines)
        return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def show_cursor(self, show: bool = True) -> bool:
        return False


class NotebookDisplay:
    """The screen of a search as one output of a notebook's cell, drawn anew at each refresh."""

    def __init__(self, draw: Callable[[], RenderableType]):
        display: Any = importlib.import_module("IPython.display")
        self.draw, self.html = draw, display.HTML
        self.handle = display.display(self.html(""), display_id=True)

    def refresh(self) -> None:
        """Draws the screen."""
        console = Console(record=True, file=io.StringIO(), width=NOTEBOOK_WIDTH, force_jupyter=False)
        console.print(self.draw())
        text = console.export_html(inline_styles=True, code_format="<pre style='line-height: 1.2'>{code}</pre>")
        self.handle.update(self.html(text))

    def stop(self) -> None:
        """Clears the output."""
        self.handle.update(self.html(""))


class Progress:
    """Shows the state of a search whenever `show()` is called and a refresh is due. A context manager."""

    def __init__(
        self, run_dir: Path, search: SearchSpec, coordinator: Coordinator, seconds_before: float, slots: Mapping[str, int]
    ):
        """`seconds_before` are the wall-clock seconds of earlier sessions; `slots` holds those of each running trial."""
        self.run_dir, self.search, self.coordinator, self.trials = run_dir, search, coordinator, coordinator.trials
        self.slots = slots
        self.workers: list[Trial | None] = [None] * self.trials.workers
        self.opened = time.monotonic() - seconds_before
        self.trained_before, self.segments, self.first_segment = self._trained(), 0, 0.0
        self.first_report: tuple[float, float, int] | None = None
        """when the first report came, the seconds trained by then, the segments begun by then"""
        self.forecast: Forecast | None = None
        self.last = -math.inf
        self.console = Terminal(stderr=True)
        self.live: Live | NotebookDisplay | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Progress":
        if self.console.is_jupyter:
            self.live = NotebookDisplay(self._screen)
        elif self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(
                console=self.console,
                get_renderable=self._screen,
                auto_refresh=False,  # refreshed by the thread that changes the trials
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
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
        """Shows the state of the search where the last refresh is long enough ago."""
        now = time.monotonic()
        self._assign_workers(now)
        if now - self.last < (SCREEN_SECONDS if self.live else LOG_SECONDS):
            return
        self.last = now
        if self.live:
            self.live.refresh()
        else:
            print(line(self.view()), file=sys.stderr, flush=True)

    def view(self) -> View:
        """The state of the search now."""
        now, share = time.monotonic(), None
        if self.first_segment and now - self.first_segment > 1:
            share = min(1.0, (self._trained() - self.trained_before) / (len(self.workers) * (now - self.first_segment)))
        return View(
            name=self.search.options.name or "",
            trials=self.trials,
            rung_tokens=self.coordinator.scheduler.rung_tokens,
            workers=self._lines(),
            seconds=now - self.opened,
            forecast=self.forecast,
            training_share=share or None,
            unit=self.search.unit,
            note=self._stage() if self.first_segment else "starting",
        )

    def _lines(self) -> list[Trial | None]:
        """The trial of each worker's line. A trial that has taken idle slots stands on their lines as well."""
        joined = [t for t in self.workers if t for _ in range(1, self.slots.get(t.trial_id, 1))]
        return [trial or (joined.pop() if joined else None) for trial in self.workers]

    def _stage(self) -> str:
        """The level that a ladder runs now; empty for other searches."""
        if not self.search.ladder:
            return ""
        from tune.ladder.runs import stage  # here: scipy takes long

        return stage(self.search.ladder, self.trials)

    def _screen(self) -> RenderableType:
        size = (NOTEBOOK_WIDTH, NOTEBOOK_LINES) if self.console.is_jupyter else self.console.size
        return render(self.view(), *size) if self.live else ""  # nothing is left behind

    def _assign_workers(self, now: float) -> None:
        """Each trial keeps its worker's line; a new trial takes the first free line."""
        active = self.coordinator.active
        self.workers = [trial if trial and trial.trial_id in active else None for trial in self.workers]
        for trial_id in sorted(active - {trial.trial_id for trial in self.workers if trial}):
            if None in self.workers:
                self.workers[self.workers.index(None)] = self.trials.by_id[trial_id]
                self.segments += 1
        self.first_segment = self.first_segment or (now if active else 0.0)
        if self.first_report is None and (trained := self._trained()) > self.trained_before:
            self.first_report = now, trained, self.segments

    def _trained(self) -> float:
        """Seconds of training and evaluating that all trials have reported, for each of a trial's slots."""
        return sum(trial.slot_seconds for trial in self.trials.by_id.values())

    def _keep_forecasting(self) -> None:
        """Forecasts the end from the journal, again and again, in a thread of its own: the trials must not wait."""
        pause = FORECAST_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self._forecast()
            except Exception:  # a search goes on without a forecast
                logging.getLogger("tune").exception("no forecast")
            pause = max(FORECAST_SECONDS, (time.monotonic() - began) / FORECAST_SHARE)

    def _forecast(self) -> None:
        if self.first_report is None:
            return
        began, trained, segments = self.first_report  # Ray's start slowed down whatever came before
        now, events = time.monotonic(), read_journal(self.run_dir)
        idle = len(self.workers) * (now - began) - (self._trained() - trained)
        throughput = measured_throughput(events, per_segment=max(0.0, idle) / max(1, self.segments - segments))
        if throughput:
            found = simulate_rest(self.search, events, throughput, len(self.workers), now - self.opened)
            self.forecast = dataclasses.replace(found, seconds=found.seconds + ENDING_SECONDS)
