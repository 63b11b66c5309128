"""Computes all that a report shows, from the files of a run."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tune.analysis.response_surface import ResponseSurface
from tune.analysis.results import load, tables
from tune.config.spec import SearchSpec
from tune.core.events import Event, SessionStarted
from tune.core.trials import DIVERGED, FAILED, Trials
from tune.reporting.figures.base import Figure
from tune.reporting.summarize import summarize
from tune.reporting.summary import Summary
from tune.reporting.summary_text import audit_lines, loss_unit
from tune.store.tables import column_names


@dataclass(frozen=True)
class Report:
    """The parts of a run's report."""

    search: SearchSpec
    summary: Summary
    figures: list[Figure]
    table: pd.DataFrame  # a row a trial
    notes: dict[str, str]  # figure -> sentences below its description


def render(run_dir: Path, whole: bool = True) -> Report:
    """Returns the report of a run as it stands; without a response surface unless `whole`.

    Raises InputError for a folder that is no run, and for a run without any event.
    """
    from threadpoolctl import threadpool_limits

    from tune.reporting.figures import figures

    search, trials, events = load(run_dir)
    table, history = tables(trials, search.options.seed)
    summary = summarize(run_dir, search, trials, events)
    notes = {"budget": time_spent(trials, events, summary)}
    try:
        surface = ResponseSurface(search, trials) if whole and not search.ladder else None
    except ValueError as error:
        surface = None
        notes["importance"] = f"What matters: nothing can be said yet, {error}."
    with threadpool_limits(1):  # matrices are small: on busy cores two threads would wait for each other
        shown = figures(search, trials, history, surface, summary)
    if summary.audit:
        said = audit_lines(summary.audit, summary.unit, loss_unit(summary))
        notes["audit"] = " ".join(f"{line[0].upper()}{line[1:].removesuffix('.')}." for line in said)
    table = table.drop(columns="checkpoint")
    table.columns = pd.Index(column_names(table.columns, search.unit))
    return Report(search, summary, shown, table, notes)


def time_spent(trials: Trials, events: list[Event], summary: Summary) -> str:
    """Returns a note: the share of the workers' time spent in training, and of tokens in trials that diverged or failed."""
    trained = sum(trial.slot_seconds for trial in trials.by_id.values())
    workers = max((event.workers for event in events if isinstance(event, SessionStarted)), default=1)
    whole = workers * summary.cost.seconds
    lost = sum(trial.tokens - trial.begun_at for trial in trials.by_id.values() if trial.status in (DIVERGED, FAILED))
    share = f"{min(1.0, trained / whole):.0%}" if whole else "an unknown share"
    return (
        f"{share} of the time of {workers} workers went into training and evaluation, the rest into starting, storing and "
        f"waiting. Trials that diverged or failed took {lost / max(1, summary.cost.tokens):.1%} of the {summary.unit}."
    )
