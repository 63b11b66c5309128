"""Figures of the trials: loss curves, all hyper-parameters at once, tokens spent, and what an audit found."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from myllm.text.format import share_text
from tune.analysis.axes import Axis
from tune.analysis.stopping_audit import RungQuality
from tune.config.spec import SearchSpec
from tune.core.trials import AUDIT, REPLICATE, SAMPLED, SUGGESTED, Trials
from tune.reporting.figures.base import COLOURS, MOST_POINTS, Figure, outcome, rounded, ticks
from tune.store.tables import by_id

MOST_CURVES = 300  # trials drawn: more hide each other
KEPT = {"2": "#2da44e", "4": "#d9730d", "8": "#a371b5"}
"""factor: one in `factor` trials goes on -> colour"""


def curves(search: SearchSpec, trials: Trials, history: pd.DataFrame, best: str) -> Figure:
    """Draws the loss over tokens, a line a trial, coloured by outcome, with the rungs."""
    loss = f"val_loss{search.loss_unit}"
    outcomes = {trial.trial_id: outcome(trials, trial, best) for trial in trials.by_id.values()}
    order = sorted(trials.by_id.values(), key=lambda trial: (-trial.tokens, trial.trial_id))
    drawn = order[: MOST_CURVES // 2] + order[MOST_CURVES // 2 :: max(1, math.ceil(2 * len(order) / MOST_CURVES))]
    drawn += [trial for trial in order if outcomes[trial.trial_id] in ("best", "baseline")]
    shown = list(dict.fromkeys(trial.trial_id for trial in drawn))
    table, unit = history[["trial_id", "tokens_seen", "val_loss"]].copy(), f"{search.unit} seen"
    if search.budget_seconds:
        table["tokens_seen"] = [r.position / 1000 for trial in by_id(trials) for r in trial.own_reports]
        unit = "seconds of training"
    table["outcome"] = table["trial_id"].map(outcomes)
    lines = dict(list(table[table["trial_id"].isin(shown)].groupby("trial_id")))
    groups = {word: [lines[t] for t in shown if outcomes[t] == word and t in lines] for word in reversed(COLOURS)}
    groups = {word: found for word, found in groups.items() if found}
    scale = 1000 if search.budget_seconds else 1
    rungs = {tokens / scale: share_text(tokens, search.budget_tokens) for tokens in search.scheduler().rung_tokens}
    finite = table["val_loss"][np.isfinite(table["val_loss"].astype(float))]
    limits = (float(finite.min()) * 0.98, float(finite.quantile(0.98)) * 1.02) if len(finite) else (0.0, 1.0)
    line: dict[str, Any] = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1}}
    note: dict[str, Any] = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": unit}, "range": [0, 1.005 * int(table["tokens_seen"].max())]},
        "yaxis": {"title": {"text": loss}, "range": list(limits)},
        "shapes": [line | {"x0": tokens, "x1": tokens} for tokens in rungs],
        "annotations": [note | {"x": tokens, "text": text} for tokens, text in rungs.items()],
    }

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for word, trials_of_word in groups.items():
            width = 2.0 if word in ("best", "baseline") else 0.8
            for number, rows in enumerate(trials_of_word):
                label = None if number else f"{word} ({len(trials_of_word)})"
                y = rows["val_loss"].where(np.isfinite(rows["val_loss"]))
                axis.plot(rows["tokens_seen"], y, color=COLOURS[word], linewidth=width, label=label)
                axis.plot(rows["tokens_seen"].iloc[-1:], y.iloc[-1:], ".", color=COLOURS[word])
        for tokens, text in rungs.items():
            axis.axvline(tokens, color="0.6", linestyle=":", linewidth=1)
            axis.text(tokens, 1.01, text, transform=axis.get_xaxis_transform(), ha="center")
        axis.set(xlabel=unit, ylabel=loss, ylim=limits, xlim=(0, None))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.legend()

    some = f"; {len(shown)} of {len(trials.by_id)} are drawn" if len(shown) < len(trials.by_id) else ""
    says = f"Validation loss of each trial while it trains; dotted lines are the rungs, as shares of the budget{some}."
    plot = {"data": [_curve(word, found) for word, found in groups.items()], "layout": layout}
    return Figure("curves", "Loss curves", says, table, plot, draw)


def _curve(word: str, trials_of_word: list[pd.DataFrame]) -> dict[str, Any]:
    """Returns plotly's trace of all trials of an outcome: lines with gaps between them, a dot at the end of each."""
    points: list[tuple[int | None, float | None, str, int]] = []  # tokens, loss, trial_id, size of the dot
    for rows in trials_of_word:
        losses = [rounded(loss) for loss in rows["val_loss"]]
        dots = [0] * (len(rows) - 1) + [5]  # a single report makes no line, and is seen by its dot
        points += zip(rows["tokens_seen"].tolist(), losses, rows["trial_id"], dots, strict=True)
        points.append((None, None, rows["trial_id"].iloc[0], 0))
    x, y, names, sizes = map(list, zip(*points, strict=True))
    colour, is_bold = COLOURS[word], word in ("best", "baseline")
    trace: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "name": f"{word} ({len(trials_of_word)})"}
    trace |= {"x": x, "y": y, "text": names, "opacity": 1 if is_bold else 0.7}
    trace |= {"hovertemplate": f"trial %{{text}}, {word}<br>%{{x:,}}: %{{y:.4f}}<extra></extra>"}
    trace |= {"marker": {"color": colour, "size": sizes, "opacity": 1, "line": {"width": 0}}}
    return trace | {"line": {"color": colour, "width": 2.5 if is_bold else 1}}


def parallel(trials: Trials, axes: list[Axis]) -> Figure:
    """Draws a line a trial across all hyper-parameters to its loss; brushing an axis narrows the table of trials."""
    part = [t for t in trials.drawn if t.tokens in t.losses]
    part = sorted(part, key=lambda trial: trial.losses[trial.tokens])[:MOST_POINTS]
    dimensions: list[dict[str, Any]] = []
    for axis in axes:
        places = [round(axis.place(t.config[axis.name]), 4) for t in part]
        if axis.values:
            at, words = np.linspace(0, 1, len(axis.values)).tolist(), list(axis.values)
        else:
            marks = ticks(axis, 6) or {value: f"{value:.3g}" for value in map(axis.value, (0.0, 0.25, 0.5, 0.75, 1.0))}
            at, words = [round(axis.place(value), 4) for value in marks], list(marks.values())
        dimensions.append({"label": axis.name, "values": places, "range": [0, 1], "tickvals": at, "ticktext": words})
    losses = [float(f"{t.losses[t.tokens]:.5g}") for t in part]
    dimensions.append({"label": "last val_loss", "values": losses})
    shown = np.clip(losses, None, np.quantile(losses, 0.75)).tolist() if losses else []
    line = {"color": shown, "colorscale": [[0, COLOURS["best"]], [1, COLOURS["paused"]]]}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line}
    table = pd.DataFrame([{"trial_id": t.trial_id} | t.config | {"last_val_loss": t.losses[t.tokens]} for t in part])

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        from matplotlib.colors import LinearSegmentedColormap

        def unit(values: list[float]) -> Any:
            found = np.array(values)
            return (found - found.min()) / (float(np.ptp(found)) or 1.0) if values else found

        colours = LinearSegmentedColormap.from_list("", [COLOURS["best"], COLOURS["paused"]])(unit(shown))
        lines = np.array([*(dimension["values"] for dimension in dimensions[:-1]), unit(losses)])
        for index in reversed(range(len(part))):
            axis.plot(lines[:, index], color=colours[index], linewidth=1)
        for at, dimension in enumerate(dimensions[:-1]):
            axis.axvline(at, color="0.6", linewidth=1)
            for place, word in zip(dimension["tickvals"], dimension["ticktext"], strict=True):
                axis.text(at, place, f" {word}", fontsize=8, va="center")
        for place in (0, 1) if losses else ():
            axis.text(len(axes), place, f" {max(losses) if place else min(losses):.4g}", fontsize=8, va="center")
        axis.set_xticks(range(len(dimensions)), [d["label"] for d in dimensions])
        axis.set_ylabel("place in the range")

    says = "A line a trial. Drag along an axis to keep those that pass there: the table of trials shows the same ones."
    plot = {"data": [trace], "layout": {"meta": [t.trial_id for t in part], "margin": {"l": 60, "r": 60, "t": 50, "b": 30}}}
    return Figure("parallel", "All hyper-parameters at once", says, table, plot, draw)


def budget(search: SearchSpec, trials: Trials) -> Figure:
    """Draws the tokens spent between each two rungs, by the source of the trials."""
    marks = [0, *search.scheduler().stops]
    words = {SAMPLED: "#2f81f7", SUGGESTED: "#2da44e", REPLICATE: "#d9730d"}
    words |= {AUDIT: COLOURS["audited"]} if trials.audits else {}
    rows = []
    for begin, end in itertools.pairwise(marks):
        row: dict[str, Any] = {"from_share": begin / trials.budget_tokens, "to_share": end / trials.budget_tokens}
        row |= dict.fromkeys(words, 0) | {"trials": 0}
        for trial in trials.by_id.values():
            row[trial.source] += max(0, min(trial.tokens, end) - max(begin, trial.begun_at))
            row["trials"] += trial.tokens > begin and trial.source != AUDIT
        rows.append(row)
    table = pd.DataFrame(rows)
    names = ["0", *(share_text(mark, trials.budget_tokens) for mark in marks[1:])]
    labels = [f"{begin} to {end}" for begin, end in itertools.pairwise(names)]
    shown = {word: colour for word, colour in words.items() if table[word].any()}
    data: list[dict[str, Any]] = []
    for word, colour in shown.items():
        bar = {"type": "bar", "name": word, "x": labels, "y": table[word].tolist()}
        look = {"marker": {"color": colour, "line": {"width": 0}}}
        data.append(bar | look | {"hovertemplate": f"{word}: %{{y:,}} {search.unit}<extra></extra>"})
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "share of the budget"}, "type": "category"}}
    layout["yaxis"] = {"title": {"text": search.unit}}

    def draw(figure: Any) -> None:
        axis, below = figure.subplots(), np.zeros(len(table))
        for word, colour in shown.items():
            axis.bar(labels, table[word], bottom=below, color=colour, label=word)
            below += table[word].to_numpy()
        axis.set(xlabel="share of the budget", ylabel=search.unit)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.legend()

    total = max(1, int(table[list(words)].sum().sum()))
    on_seeds = table["replicate"].sum() / total
    says = (
        f"{search.unit.capitalize()} trained in each part of a training. {on_seeds:.0%} of them went into other seeds "
        "of configurations already seen, that is into being sure."
    )
    return Figure("budget", "Where the budget went", says, table, {"data": data, "layout": layout}, draw)


def audit_figure(rungs: Sequence[RungQuality]) -> Figure:
    """Draws the rank correlation with the end, and the probability of keeping the best, over the rungs."""
    rows = [vars(rung) | {f"kept_1_in_{factor}": share for factor, share in rung.kept.items()} for rung in rungs]
    table = pd.DataFrame(rows).drop(columns="kept")
    labels = [share_text(rung.share, 1) + ("*" if rung.one_in else "") for rung in rungs]
    above, below = (table["high"] - table["correlation"]).clip(0), (table["correlation"] - table["low"]).clip(0)
    errors = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
    across, up = "share of the budget (* a rung of this search)", "correlation, probability"
    name = "rank correlation with the end"
    line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "name": name, "line": {"color": COLOURS["best"]}}
    data = [line | {"x": labels, "y": table["correlation"].tolist(), "error_y": errors}]
    for factor, colour in KEPT.items():
        line = {"color": colour, "dash": "dot"}
        y = table[f"kept_1_in_{factor}"].tolist()
        data.append({"type": "scatter", "name": f"one in {factor} keeps the best", "x": labels, "y": y, "line": line})
    layout: dict[str, Any] = {"xaxis": {"title": {"text": across}, "type": "category"}}
    layout["yaxis"] = {"title": {"text": up}, "range": [min(-0.05, table["low"].min()), 1.05]}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.errorbar(labels, table["correlation"], [below, above], color=COLOURS["best"], label=name, capsize=3)
        for factor, colour in KEPT.items():
            axis.plot(labels, table[f"kept_1_in_{factor}"], ":", color=colour, label=f"one in {factor} keeps the best")
        axis.set(xlabel=across, ylabel=up)
        axis.legend()

    says = (
        "How well the losses at a mark ranked the trials, and with which probability the best half, quarter or eighth "
        "there holds the one that ends best: from those finished, and the audited ones for all that were left behind."
    )
    return Figure("audit", "What leaving trials behind cost", says, table, {"data": data, "layout": layout}, draw)
