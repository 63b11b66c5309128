"""Figure of an audit: how well the losses at a mark ranked the trials."""

from typing import Any

import pandas as pd

from tune.reporting.figures.base import COLOURS, Figure
from tune.text.format import share_text

KEPT = {"2": "#2da44e", "4": "#d9730d", "8": "#a371b5"}
"""one in so many -> colour"""


def rung_ranking(rungs: list[dict[str, Any]]) -> Figure:
    """Rank correlation with the end, and the probability of keeping what ends best, over the marks."""
    table = pd.DataFrame(
        [{k: v for k, v in r.items() if k != "kept"} | {f"kept_1_in_{k}": v for k, v in r["kept"].items()} for r in rungs]
    )
    labels = [share_text(share, 1) + "*" * bool(rung["one_in"]) for share, rung in zip(table["share"], rungs, strict=True)]
    above, below = (table["high"] - table["correlation"]).clip(0), (table["correlation"] - table["low"]).clip(0)
    errors = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
    name = "rank correlation with the end"
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": labels, "y": table["correlation"].tolist()}
        | {"error_y": errors, "line": {"color": COLOURS["best"]}}
    ]
    for factor, colour in KEPT.items():
        line = {"color": colour, "dash": "dot"}
        y = table[f"kept_1_in_{factor}"].tolist()
        data.append({"type": "scatter", "name": f"one in {factor} keeps the best", "x": labels, "y": y, "line": line})
    layout = {"xaxis": {"title": {"text": "share of the budget (* a rung of this search)"}, "type": "category"}}
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
