"""The figure of an audit: how well the losses at each rung ranked the trials."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from tune.analysis.stopping_audit import RungQuality
from tune.reporting.figures.base import COLOURS, Figure
from tune.text.format import share_text

KEPT = {"2": "#2da44e", "4": "#d9730d", "8": "#a371b5"}
"""factor: one in `factor` trials goes on -> colour"""


def audit_figure(rungs: Sequence[RungQuality]) -> Figure:
    """Draws the rank correlation with the end, and the probability of keeping the best, over the rungs."""
    table = pd.DataFrame(
        [
            {name: value for name, value in dataclasses.asdict(rung).items() if name != "kept"}
            | {f"kept_1_in_{factor}": share for factor, share in rung.kept.items()}
            for rung in rungs
        ]
    )
    labels = [
        share_text(share, 1) + ("*" if rung.one_in else "") for share, rung in zip(table["share"], rungs, strict=True)
    ]
    above, below = (table["high"] - table["correlation"]).clip(0), (table["correlation"] - table["low"]).clip(0)
    errors = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
    name = "rank correlation with the end"
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": labels, "y": table["correlation"].tolist()}
        | {"error_y": errors, "line": {"color": COLOURS["best"]}}
    ]
    for factor, colour in KEPT.items():
        line = {"color": colour, "dash": "dot"}
        y = table[f"kept_1_in_{factor}"].tolist()
        data.append({"type": "scatter", "name": f"one in {factor} keeps the best", "x": labels, "y": y, "line": line})
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "share of the budget (* a rung of this search)"}, "type": "category"}
    }
    layout["yaxis"] = {"title": {"text": "correlation, probability"}, "range": [min(-0.05, table["low"].min()), 1.05]}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.errorbar(labels, table["correlation"], [below, above], color=COLOURS["best"], label=name, capsize=3)
        for factor, colour in KEPT.items():
            axis.plot(labels, table[f"kept_1_in_{factor}"], ":", color=colour, label=f"one in {factor} keeps the best")
        axis.set(xlabel="share of the budget (* a rung of this search)", ylabel="correlation, probability")
        axis.legend()

    says = (
        "How well the losses at a mark ranked the trials, and with which probability the best half, quarter or eighth "
        "there holds the one that ends best: from those finished, and the audited ones for all that were left behind."
    )
    return Figure("audit", "What leaving trials behind cost", says, table, {"data": data, "layout": layout}, draw)
