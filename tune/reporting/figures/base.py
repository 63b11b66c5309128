"""The Figure type, and the colours, scales and files that all figures share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pandas as pd

from myllm.system.files import whole_file, write_text
from tune.analysis.axes import Axis
from tune.core.trials import AUDIT, REPLICATE, Trial, Trials

File = TypeVar("File", bound=BinaryIO)
MOST_POINTS = 2000  # trials drawn in a figure
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
"""outcome of a trial -> colour, readable on black and on white"""


@dataclass(frozen=True)
class Figure:
    """One figure: its table, and the drawings that plotly and matplotlib make of the table."""

    name: str
    title: str
    says: str  # a description in words, read aloud by screen readers
    table: pd.DataFrame
    plot: dict[str, Any]  # plotly's data and layout
    draw: Callable[[Any], None]  # draws into an empty matplotlib figure


def outcome(trials: Trials, trial: Trial, best: str) -> str:
    """Returns the key of COLOURS for a trial: audited, best, baseline, or its status; a replicate has its parent's."""
    if trial.source == AUDIT:
        return "audited"
    trial_id = trial.parent_id if trial.source == REPLICATE else trial.trial_id
    return {best: "best", trials.baseline_id: "baseline"}.get(trial_id, trial.status)


def rounded(value: float) -> float | None:
    """Returns `value` with five significant digits; None, JSON's null, where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def ticks(axis: Axis, most: int) -> dict[float, str]:
    """Returns value -> label of an axis' ticks: a list's values, or 2 to about `most` round numbers of a logarithmic range.

    Empty for a linear range and for words: the plotting library places these ticks.
    """
    if axis.numbers:
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
    """Returns plotly's axis of a hyper-parameter, on the scale that it is drawn from."""
    if axis.is_category:
        return {"type": "category"}
    kind = {"type": "log" if axis.is_log else "linear"}
    marks = ticks(axis, most)
    return kind | ({"tickvals": list(marks), "ticktext": list(marks.values())} if marks else {})


def scale_axis(panel: Any, letter: str, axis: Axis, most: int) -> None:
    """Gives the x or y axis of a matplotlib panel the scale and the ticks of a hyper-parameter."""
    if axis.is_category:
        return
    panel.set(**{f"{letter}scale": "log" if axis.is_log else "linear"})
    if marks := ticks(axis, most):
        panel.set(**{f"{letter}ticks": list(marks), f"{letter}ticklabels": list(marks.values())})
        getattr(panel, f"{letter}axis").minorticks_off()


def draw_png(figure: Figure, file: File) -> File:
    """Draws a figure as PNG into a binary file; returns the file."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(7, 4), layout="constrained")
    figure.draw(picture)
    picture.savefig(file, dpi=120, format="png")
    return file


def write_figures(folder: Path, figures: list[Figure]) -> None:
    """Writes NAME.png and NAME.csv of each figure into `folder`."""
    for figure in figures:
        with whole_file(folder / f"{figure.name}.png") as file:
            draw_png(figure, file)
        write_text(folder / f"{figure.name}.csv", figure.table.to_csv(index=False))
