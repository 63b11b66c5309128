"""A search as Python sees it: its answer, tables and figures."""

import base64
import dataclasses
import html
import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError
from tune.analysis.response_surface import ResponseSurface
from tune.analysis.results import RunTables, load, run_tables
from tune.core.events import Event
from tune.core.trials import Trials
from tune.reporting.figures import figures
from tune.reporting.figures.base import Figure, draw_png
from tune.reporting.summarize import summarize
from tune.reporting.summary import Summary
from tune.reporting.summary_text import summary_text

SHOWN = ("curves", "parameters")  # figures of a run in a notebook


@dataclass(frozen=True)
class Run(RunTables):
    """A search with its tables `trials`, `history` and `leaderboard`. A notebook shows its summary and figures."""

    folder: Path
    """the run's folder"""
    summary: Summary
    """best, baseline, gain, confidence and the next commands, as summary.json has them"""
    _trials: Trials = dataclasses.field(repr=False)
    _events: list[Event] = dataclasses.field(repr=False)

    @property
    def best_config(self) -> dict[str, Any]:
        """The hyper-parameters of the best configuration; empty where no trial has reported.

        best_config.json in the run's folder has all settings of its training.
        """
        return dict(self.summary.best.config) if self.summary.best else {}

    def figure(self, name: str) -> Any:
        """The plotly figure called `name`, such as "curves". Raises InputError, which lists all, for an unknown one."""
        from plotly.graph_objects import Figure as Plot

        return Plot(self._figure(name).plot)

    def _figure(self, name: str) -> Figure:
        if name not in self._figures:
            raise InputError(f"there is no figure {name!r}; there are {', '.join(self._figures)}")
        return self._figures[name]

    @cached_property
    def _figures(self) -> dict[str, Figure]:
        try:
            surface = ResponseSurface(self.search, self._trials)
        except ValueError:  # too few trials
            surface = None
        history = self.history.copy()
        return {one.name: one for one in figures(self.search, self._trials, history, surface, self.summary)}

    def __str__(self) -> str:
        return summary_text(self.summary).lstrip("\n")

    def _repr_html_(self) -> str:
        """Returns the summary and the figures of SHOWN, as a notebook displays them. Nothing is loaded from elsewhere."""
        pictures = ""
        for name in SHOWN:
            if name in self._figures:
                png = base64.b64encode(draw_png(self._figures[name], io.BytesIO()).getvalue()).decode()
                says = html.escape(self._figures[name].says)
                pictures += f'<img src="data:image/png;base64,{png}" alt="{says}" style="max-width: 49%">'
        return f"<pre>{html.escape(str(self))}</pre>{pictures}"


def load_run(run_dir: str | Path) -> Run:
    """The search in a run folder. Raises InputError for another folder, or where no trial has begun."""
    folder = Path(os.path.realpath(run_dir))
    search, trials, events = load(folder)
    tables, summary = run_tables(search, trials), summarize(folder, search, trials, events)
    return Run(**vars(tables), folder=folder, summary=summary, _trials=trials, _events=events)
