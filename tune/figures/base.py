"""What every figure is, and the colours and scales that they share."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tune.analysis import Axis
from tune.trials import AUDIT, DEFAULT_TRIAL, REPEAT, Trial

MOST_POINTS = 2000  # drawn in a figure
NATS = "nats per token"
COLOURS = {
    "best": "#2f81f7",
    "default": "#d9730d",
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
    if trial.kind == AUDIT:
        return "audited"
    return {best: "best", DEFAULT_TRIAL: "default"}.get(trial.of if trial.kind == REPEAT else trial.trial_id, trial.status)


def log_axis(axis: Axis) -> dict[str, Any]:
    """Plotly's axis for a hyper-parameter, on its own scale."""
    if axis.is_category:
        return {"type": "category"}
    ticks = {"tickvals": axis.numbers, "ticktext": list(axis.values)} if axis.values else {}
    return {"type": "log" if axis.is_log else "linear", **ticks}


def to_json(plot: dict[str, Any]) -> str:
    """A plotly figure as JSON; checked by plotly, and safe inside a script element."""
    from plotly.graph_objects import Figure as Plot

    checked = Plot(plot, skip_invalid=False)
    text = json.dumps(json.loads(checked.to_json()), separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
