"""Figures of the loss over the hyper-parameters: along each, over two, and what matters."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from tune.analysis.axes import Axis
from tune.analysis.posterior import Floats
from tune.analysis.response_surface import ResponseSurface
from tune.config.spec import SearchSpec
from tune.core.searchers.gaussian_process import projected
from tune.core.trials import Trials
from tune.reporting.figures.base import COLOURS, MOST_POINTS, NATS, Figure, outcome, plotly_axis, rounded, scale_axis

Band = tuple[list[Any], Floats]
"""(m values of a hyper-parameter, (3, m) expected loss there and both ends of its interval, nats per token)"""


def known_losses(search: SearchSpec, trials: Trials, best: str) -> pd.DataFrame:
    """A row a configuration: its outcome, and its loss at the end in nats per token, `measured` or expected."""
    rung_tokens, budget = search.scheduler().stops, trials.budget_tokens
    rows = [
        {"trial_id": trial.trial_id, "outcome": outcome(trials, trial, best), "measured": budget in trial.losses}
        | {"end_loss": trial.mean_at(budget) if budget in trial.losses else math.exp(loss), "seeds": seeds}
        | trial.config
        for trial, loss, seeds in projected(trials, rung_tokens)
        if math.isfinite(loss)
    ]
    columns = ["trial_id", "outcome", "measured", "end_loss", "seeds", *search.ranges]
    return pd.DataFrame(rows, columns=columns).sort_values("end_loss", ignore_index=True)


def parameters(search: SearchSpec, trials: Trials, axes: list[Axis], surface: ResponseSurface | None, best: str) -> Figure:
    """Draws the loss at the end against each hyper-parameter, with the surface through the best configuration."""
    table = known_losses(search, trials, best)
    part = table.head(MOST_POINTS).astype({axis.name: str for axis in axes if axis.is_category})
    low, high = (float(part["end_loss"].min()), float(part["end_loss"].quantile(0.9))) if len(part) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05
    limits = (low - margin, high + margin)
    bands = _bands(axes, surface, trials.by_id[best].config) if surface and best else []
    columns = min(len(axes), 4)
    rows = math.ceil(len(axes) / columns)
    grid = {"rows": rows, "columns": columns, "pattern": "independent"}
    layout: dict[str, Any] = {"grid": grid, "height": 340 * rows}
    for number, axis in enumerate(axes, 1):
        layout[f"xaxis{number}"] = {"title": {"text": axis.name}} | plotly_axis(axis, 3)
        title = {"title": {"text": f"loss at the end, {NATS}"}} if (number - 1) % columns == 0 else {}
        layout[f"yaxis{number}"] = {"range": list(limits)} | title

    def draw(figure: Any) -> None:
        figure.set_size_inches(3.2 * columns, 3 * rows)
        colours = [COLOURS[word] for word in part["outcome"]]
        faces = [c if measured else "none" for c, measured in zip(colours, part["measured"], strict=True)]
        boxes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for box, axis, band in itertools.zip_longest(boxes[: len(axes)], axes, bands):
            if band:
                values, (middle, low, high) = band
                box.fill_between(values, low, high, color="0.85")
                box.plot(values, middle, color="0.5", linewidth=1)
            box.scatter(part[axis.name], part["end_loss"], edgecolors=colours, s=18).set_facecolors(faces)
            box.set(xlabel=axis.name, ylim=limits)
            scale_axis(box, "x", axis, 3)
        for word in dict.fromkeys(part["outcome"]):
            boxes[0].scatter([], [], color=COLOURS[word], s=18, label=word)
        if len(part):
            figure.legend(loc="outside lower center", ncols=len(COLOURS))
        boxes[0].set_ylabel(f"loss at the end ({NATS})")

    says = (
        "Loss at the end against each hyper-parameter. Filled: trained to the end; open: expected from where it was left. "
        "The band is where the loss of the best configuration would lie if this one were changed alone (90%)."
    )
    plot = {"data": _traces(axes, part, bands), "layout": layout}
    return Figure("parameters", "Loss against each hyper-parameter", says, table, plot, draw)


def _bands(axes: list[Axis], surface: ResponseSurface, config: dict[str, Any]) -> list[Band]:
    """Returns a band for each axis, the other hyper-parameters as in `config`."""
    places = np.linspace(0, 1, 25)
    center = [axis.place(config[axis.name]) for axis in axes]
    found = []
    for number, axis in enumerate(axes):
        points = np.tile(center, (len(places), 1))
        points[:, number] = places
        values: list[Any] = [axis.value(place) for place in places]
        if axis.is_category:
            values = [axis.values[round(place * (len(axis.values) - 1))] for place in places]
        found.append((values, surface.predict(points)))
    return found


def _traces(axes: list[Axis], part: pd.DataFrame, bands: list[Band]) -> list[dict[str, Any]]:
    """Returns plotly's traces: the bands, then the trials of each outcome."""
    traces: list[dict[str, Any]] = []
    for number, axis in enumerate(axes, 1):
        on = {"type": "scatter", "xaxis": f"x{number}", "yaxis": f"y{number}"}
        if bands:
            values, (middle, low, high) = bands[number - 1]
            soft: dict[str, Any] = on | {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "x": values}
            fill = {"fill": "tonexty", "fillcolor": "#8c959f40"}
            traces.append(soft | {"y": low.round(5).tolist(), "line": {"width": 0}})
            traces.append(soft | {"y": high.round(5).tolist(), "line": {"width": 0}} | fill)
            traces.append(soft | {"y": middle.round(5).tolist(), "line": {"width": 1.5, "color": COLOURS["paused"]}})
        for word, rows in part.groupby("outcome"):
            hover = f"trial %{{text}}, {word}<br>{axis.name} %{{x:.4g}}: %{{y:.4f}}<extra></extra>"
            marker: dict[str, Any] = {"color": COLOURS[word], "size": 11 if word in ("best", "baseline") else 7}
            marker["symbol"] = ["circle" if measured else "circle-open" for measured in rows["measured"]]
            points = {"x": rows[axis.name].tolist(), "y": [rounded(loss) for loss in rows["end_loss"]]}
            names = {"name": word, "legendgroup": word, "showlegend": number == 1, "text": rows["trial_id"].tolist()}
            traces.append(on | {"mode": "markers"} | names | points | {"hovertemplate": hover, "marker": marker})
    return traces


def landscape(trials: Trials, surface: ResponseSurface, rate: Axis, batch: Axis, best: str) -> Figure:
    """Draws the expected loss over learning rate and batch size, the others as in the best configuration."""
    names = [axis.name for axis in surface.axes]
    x, y = np.linspace(0, 1, 25), np.linspace(0, 1, max(9, 2 * len(batch.values) - 1))
    points = np.tile([axis.place(trials.by_id[best].config[axis.name]) for axis in surface.axes], (len(x) * len(y), 1))
    points[:, names.index("learning_rate")] = np.tile(x, len(y))
    points[:, names.index("batch_size")] = np.repeat(y, len(x))
    loss = surface.predict(points)[0].reshape(len(y), len(x))
    rates, batches = [rate.value(p) for p in x], [batch.value(p) for p in y]
    grid = [(r, b) for b in batches for r in rates]
    table = pd.DataFrame(grid, columns=["learning_rate", "batch_size"]).assign(expected_loss=loss.ravel())
    heat: dict[str, Any] = {"type": "contour", "x": rates, "y": batches, "z": [[rounded(v) for v in row] for row in loss]}
    heat |= {"colorscale": "Viridis", "reversescale": True, "colorbar": {"title": {"text": NATS}}}
    heat |= {"hovertemplate": "learning_rate %{x:.4g}, batch_size %{y:.3g}: %{z:.4f}<extra></extra>"}
    across = {"title": {"text": "learning_rate"}, "ticks": "outside", "ticklen": 8}
    layout: dict[str, Any] = {
        "xaxis": across | plotly_axis(rate, 5) | within(rate, rates),
        "yaxis": {"title": {"text": "batch_size, windows"}} | plotly_axis(batch, 7) | within(batch, batches),
    }
    tried = _tried(trials, best)
    size = [15 if is_named else 8 for is_named in tried["is_named"]]
    symbol = ["star" if is_best else "circle" for is_best in tried["is_best"]]
    marker = {"color": tried["colour"].tolist(), "opacity": 1, "size": size, "symbol": symbol}
    dots: dict[str, Any] = {"type": "scatter", "mode": "markers", "showlegend": False, "cliponaxis": False}
    dots |= {"x": tried["learning_rate"].tolist(), "y": tried["batch_size"].tolist(), "text": tried["text"].tolist()}
    dots |= {"hovertemplate": "%{text}<br>learning_rate %{x:.4g}, batch_size %{y}<extra></extra>"}
    dots |= {"marker": marker | {"line": {"color": "white", "width": 1.5}}}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        filled = axis.contourf(rates, batches, loss, levels=15, cmap="viridis_r")
        figure.colorbar(filled, label=f"expected loss ({NATS})")
        for is_best, marker, size in ((False, "o", 40), (True, "*", 260)):
            part = tried[tried["is_best"] == is_best]
            look: dict[str, Any] = {"marker": marker, "edgecolors": "white", "clip_on": False, "zorder": 3}
            axis.scatter(part["learning_rate"], part["batch_size"], size, part["colour"], **look)
        axis.set(xlabel="learning_rate", ylabel="batch_size (windows)")
        axis.set(xlim=(rates[0], rates[-1]), ylim=(batches[0], batches[-1]))
        scale_axis(axis, "x", rate, 5)
        scale_axis(axis, "y", batch, 7)

    says = "Expected loss over learning rate and batch size, the others as in the best (the star). Dots are trials."
    plot = {"data": [heat, dots], "layout": layout}
    return Figure("landscape", "Learning rate and batch size", says, table, plot, draw)


def _tried(trials: Trials, best: str) -> pd.DataFrame:
    """Returns a row for each configuration that has reported, the best one last: it is drawn on top."""
    reported = [trial for trial in trials.drawn if trial.losses]
    shown = [t for n, t in enumerate(reported) if n < MOST_POINTS or t.trial_id in (best, trials.baseline_id)]
    table = pd.DataFrame([trial.config for trial in shown], columns=["learning_rate", "batch_size"])
    words = [outcome(trials, trial, best) for trial in shown]
    table["text"] = [f"trial {trial.trial_id}, {word}" for trial, word in zip(shown, words, strict=True)]
    table["colour"] = [COLOURS[word] for word in words]
    table["is_named"], table["is_best"] = [[word in kinds for word in words] for kinds in (("best", "baseline"), ("best",))]
    return table.sort_values("is_best", kind="stable")


def within(axis: Axis, values: list[float]) -> dict[str, Any]:
    """Returns plotly's range of an axis: that of `values`, with a margin so that points at both ends are seen."""
    low, high = (math.log10(values[end]) if axis.is_log else values[end] for end in (0, -1))
    return {"range": [low - 0.002 * (high - low), high + 0.002 * (high - low)]}


def importance(surface: ResponseSurface) -> Figure:
    """Draws the share of the variance that each hyper-parameter explains."""
    table = pd.DataFrame(surface.importance())
    rows = table[::-1]  # the first bar is drawn at the bottom
    below, above = (rows["importance"] - rows["low"]).clip(0), (rows["high"] - rows["importance"]).clip(0)
    colour, title = COLOURS["best"], "share of the variance that it and its interactions explain"
    bar: dict[str, Any] = {"type": "bar", "orientation": "h", "x": rows["importance"].round(4).tolist()}
    bar |= {"y": rows["hyper_parameter"].tolist(), "marker": {"color": colour, "line": {"width": 0}}}
    bar |= {"error_x": {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}}
    bar |= {"hovertemplate": "%{y}: %{x:.2f}<extra></extra>"}
    layout: dict[str, Any] = {"xaxis": {"title": {"text": title}, "range": [0, 1.02]}, "yaxis": {"automargin": True}}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.barh(rows["hyper_parameter"], rows["importance"], xerr=[below, above], color=colour)
        axis.set(xlabel=title, xlim=(0, 1.02))

    says = (
        f"Total-order Sobol indices (scipy) of Gaussian processes (scikit-learn) on the losses of {surface.count} trials, "
        "completed and left behind alike; losses beyond the median, diverged ones too, count as the median. Bars are "
        "medians over processes that the trials leave possible, whiskers hold 90%. Interactions count for each."
    )
    plot = {"data": [bar], "layout": layout | {"height": 120 + 45 * len(table)}}
    return Figure("importance", "What matters", says, table, plot, draw)
