"""The figures of a report: for each a tidy table (its CSV), a plotly figure for the page, and a picture by matplotlib."""

import pandas as pd

from tune.analysis.axes import axes_of
from tune.analysis.response_surface import ResponseSurface
from tune.config.spec import SearchSpec
from tune.core.trials import Trials
from tune.reporting.figures.base import Figure
from tune.reporting.figures.ladder import ladder_figures
from tune.reporting.figures.speed import loss_and_time
from tune.reporting.figures.surface import importance, landscape, parameters
from tune.reporting.figures.trials import audit_figure, budget, curves, parallel
from tune.reporting.summary import Summary


def figures(
    search: SearchSpec, trials: Trials, history: pd.DataFrame, surface: ResponseSurface | None, summary: Summary
) -> list[Figure]:
    """Returns all figures for which there is something to show, in the order in which a page shows them."""
    if history.empty:
        return []
    if search.ladder and summary.ladder:
        return [*ladder_figures(search.ladder, trials, summary.ladder), curves(search, trials, history, "")]
    axes = axes_of(search)
    best = summary.best.trial_id if summary.best else ""
    shown = [curves(search, trials, history, best), parameters(search, trials, axes, surface, best)]
    both = {axis.name: axis for axis in axes if axis.name in ("learning_rate", "batch_size")}
    if surface and len(both) == 2:
        shown.append(landscape(trials, surface, both["learning_rate"], both["batch_size"], best))
    shown.append(parallel(trials, axes))
    if surface and len(axes) > 1:  # one alone is all that matters
        shown.append(importance(surface))
    shown += [loss_and_time(search, trials, best), budget(search, trials)]
    return [*shown, audit_figure(summary.audit.rungs)] if summary.audit and summary.audit.rungs else shown
