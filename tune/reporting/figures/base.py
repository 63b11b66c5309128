"""What every figure is, and the colours and scales that they share."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tune.analysis.response_surface import Axis
from tune.core.trials import AUDIT, BASELINE_TRIAL, REPLICATE, Trial

MOST_POINTS = 2000  # drawn in a figure
NATS = "nats per token"
COLOURS = {
    "best": "#2f81f7",
    "baseline": "#d9730d",
    "completed": "#2da44e",
    "paused": "#8c959f",
    "stopped": "#a371b5",
    "diverged": "#e5534b",
    "audited": "#1b8a9c",
    "failed": "#b35900",
    "running": "#768390",
}
"""of each fate; all can be told from black and from white"""


@dataclass(frozen=True)
class Figure:
    """One figure: what it shows as a table, and how it is drawn."""

    name: str
    title: str
    says: str
    """one sentence, also for who can't see it"""
    table: pd.DataFrame
    plot: dict[str, Any]
    """plotly's data and layout"""
    draw: Callable[[Any], None]
    """draws it into a matplotlib figure"""


def fate(trial: Trial, best: str) -> str:
    """What became of a trial: the word that its colour stands for."""
    if trial.source == AUDIT:
        return "audited"
    return {best: "best", BASELINE_TRIAL: "baseline"}.get(
        trial.parent_id if trial.source == REPLICATE else trial.trial_id, trial.status
    )


def ticks(axis: Axis, most: int) -> dict[float, str]:
    """value -> its word, where an axis is to be marked: a list's values; of a logarithmic range about `most` round numbers,
    two at least. Empty where that is left to who draws.
    """
    if axis.numbers is not None:
        return dict(zip(axis.numbers, axis.values, strict=True))
    if axis.values or not axis.is_log:
        return {}
    low, high = axis.value(0), axis.value(1)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{step}e{decade}") for decade in decades for step in steps]
        values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        found = values if len(values) > 1 or not found else found
        if len(found) <= most:
            break
    found = found[:: math.ceil(len(found) / most)] if len(found) > most else found
    return {value: f"{value:g}" for value in (found if len(found) > 1 else [low, high])}


def plotly_axis(axis: Axis, most: int) -> dict[str, Any]:
    """Plotly's axis for a hyper-parameter, on its own scale."""
    if axis.is_category:
        return {"type": "category"}
    marks = ticks(axis, most)
    marked = {"tickvals": list(marks), "ticktext": list(marks.values())} if marks else {}
    return {"type": "log" if axis.is_log else "linear", **marked}


def mark(panel: Any, letter: str, axis: Axis, most: int) -> None:
    """The same for the x or y of a matplotlib panel."""
    if axis.is_category:
        return
    panel.set(**{f"{letter}scale": "log" if axis.is_log else "linear"})
    if marks := ticks(axis, most):
        panel.set(**{f"{letter}ticks": list(marks), f"{letter}ticklabels": list(marks.values())})
        getattr(panel, f"{letter}axis").minorticks_off()


def to_json(plot: dict[str, Any]) -> str:
    """A plotly figure as JSON; checked by plotly, and safe inside a script element."""
    from plotly.graph_objects import Figure as Plot

    checked = Plot(plot, skip_invalid=False)
    text = json.dumps(json.loads(checked.to_json()), separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
