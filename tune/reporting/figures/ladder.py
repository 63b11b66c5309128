"""Figures of a ladder: the surface of each level, the path of the optimum to the target, and loss against compute."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from myllm.text.format import size_text
from tune.core.trials import Trials
from tune.ladder.answer import Z90
from tune.ladder.fit import BASE, Array, Fit, Run, excess
from tune.ladder.plan import Level, Plan
from tune.ladder.runs import FEWEST_TO_FIT, fitted, runs_below
from tune.reporting.figures.base import COLOURS, NATS, Figure, rounded
from tune.reporting.ladder import LadderSummary

SURFACE_POINTS = 33  # along each side of a level's surface
MARGIN = 1.5  # factor beyond the runs to which a surface is drawn
RISES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # contours: share of the lowest loss above it


def ladder_figures(plan: Plan, trials: Trials, ladder: LadderSummary) -> list[Figure]:
    """Returns the figures for which enough runs have ended."""
    runs = runs_below(plan, trials, len(plan.levels))
    if len(runs) < FEWEST_TO_FIT or ladder.learning_rate is None:
        return []
    fit = fitted(runs, plan.target.size)
    shown = [level for level in plan.levels if any(run.size == level.size for run in runs)]
    return [surfaces(shown, runs, fit), path(shown, plan, fit, ladder), forecast(shown, plan, runs, fit, ladder)]


def surfaces(levels: list[Level], runs: tuple[Run, ...], fit: Fit) -> Figure:
    """Draws the fitted loss of each level over learning rate and batch, with its runs and its optimum."""
    rows, grids = [], []
    for level in levels:
        here = [run for run in runs if run.size == level.size]
        (rate, batch), _ = fit.optimum(level.size)
        rows += [_row(level, "run", run.learning_rate, run.batch_tokens, run.loss) for run in here]
        rows.append(_row(level, "optimum", math.exp(rate), math.exp(batch), lowest_loss(fit, level)))
        grids.append(_surface(level, here, fit))
    table = pd.DataFrame(rows)
    layout: dict[str, Any] = {"grid": {"rows": 1, "columns": len(levels), "pattern": "independent"}, "height": 380}
    data: list[dict[str, Any]] = []
    for number, (level, (rates, batches, rise)) in enumerate(zip(levels, grids, strict=True), 1):
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        part = table[table["model"] == level.words]
        rows_of_grid = [[rounded(value) for value in line] for line in rise]
        contour = {"type": "contour", "x": list(rates), "y": list(batches), "z": rows_of_grid, "showscale": False}
        data.append(contour | axes | {"colorscale": "Blues", "reversescale": True, "contours": {"start": 0, "end": 0.1}})
        for kind, symbol, colour in (("run", "circle", "#000000"), ("optimum", "star", COLOURS["best"])):
            points = part[part["kind"] == kind]
            marker = {"symbol": symbol, "size": 13 if kind == "optimum" else 7, "color": colour}
            xy = {"x": points["learning_rate"].tolist(), "y": points["batch_tokens"].tolist()}
            text = [f"{loss:.4f}" for loss in points["val_loss"]]
            data.append(
                {"type": "scatter", "mode": "markers", "name": kind, "text": text, "showlegend": number == 1}
                | {"marker": marker}
                | xy
                | axes
            )
        title = f"learning rate, {size_text(level.params)} parameters"
        layout[f"xaxis{number}"] = log_axis(title, rates, most=5)
        layout[f"yaxis{number}"] = log_axis("batch, tokens" if number == 1 else "", batches)

    def draw(figure: Any) -> None:
        figure.set_size_inches(4 * len(levels), 3.6)
        for box, level, (rates, batches, rise) in zip(
            figure.subplots(1, len(levels), squeeze=False)[0], levels, grids, strict=True
        ):
            lines = box.contour(rates, batches, rise, levels=RISES, cmap="viridis")
            box.clabel(lines, fmt="%g")
            part = table[table["model"] == level.words]
            for kind, mark in (("run", "k."), ("optimum", "*")):
                points = part[part["kind"] == kind]
                size = 14 if kind == "optimum" else 6
                box.plot(points["learning_rate"], points["batch_tokens"], mark, markersize=size)
            box.set(xscale="log", yscale="log", xlabel="learning rate", title=f"{size_text(level.params)} parameters")
            box.set_ylabel("batch (tokens)")
            round_ticks(box)

    says = (
        "For each level the fitted loss over learning rate and batch, as a share above its lowest. Dots are runs, a star is"
        " the optimum of the fit."
    )
    return Figure("levels", "The levels", says, table, {"data": data, "layout": layout}, draw)


def _row(level: Level, kind: str, rate: float, batch: float, loss: float) -> dict[str, Any]:
    named = {"model": level.words, "params": level.params, "tokens": level.tokens, "kind": kind}
    return named | {"learning_rate": rate, "batch_tokens": batch, "val_loss": loss}


def lowest_loss(fit: Fit, level: Level) -> float:
    """Returns the loss of the fit at a level's optimum, nats per token, on its power law."""
    return math.exp(float(fit.place(level.size) @ fit.mean[BASE]))


def _surface(level: Level, runs: list[Run], fit: Fit) -> tuple[Array, Array, Array]:
    """Returns learning rates (n,), batches in tokens (n,), and the share (n, n) by which the loss is above its lowest."""
    sides, lowest = [], fit.centre(fit.mean, level.size)
    (rate, batch), _ = fit.optimum(level.size)
    for centre, values in ((rate, [run.learning_rate for run in runs]), (batch, [run.batch_tokens for run in runs])):
        low, high = min(*values, math.exp(centre)), max(*values, math.exp(centre))
        sides.append(np.geomspace(low / MARGIN, high * MARGIN, SURFACE_POINTS))
    u, v = np.log(sides[0])[None, :] - lowest[0], np.log(sides[1])[:, None] - lowest[1]
    return sides[0], sides[1], np.expm1(excess(fit.mean, u, v))


def path(levels: list[Level], plan: Plan, fit: Fit, ladder: LadderSummary) -> Figure:
    """Draws the best rate and batch of each level and of the target against compute, with 90% intervals."""
    rows = []
    for level in levels:
        mean, covariance = fit.optimum(level.size)
        for name, centre, sd in zip(("learning_rate", "batch_tokens"), mean, np.sqrt(covariance.diagonal()), strict=True):
            low, middle, high = (math.exp(float(centre) + z * float(sd)) for z in (-Z90, 0, Z90))
            rows.append((name, level.words, level.flops, middle, low, high))
    for name, one in (("learning_rate", ladder.learning_rate), ("batch_tokens", ladder.batch_tokens)):
        assert one is not None, "drawn only with an answer"
        rows.append((name, plan.target.words, plan.target.flops, one.value, one.low, one.high))
    table = pd.DataFrame(rows, columns=["hyper_parameter", "model", "flops", "value", "low", "high"])
    panels = {"learning_rate": "learning rate", "batch_tokens": "batch, tokens"}
    layout: dict[str, Any] = {"grid": {"rows": 1, "columns": 2, "pattern": "independent"}, "showlegend": False}
    data = []
    for number, (name, title) in enumerate(panels.items(), 1):
        part = table[table["hyper_parameter"] == name]
        data.append(_points(part, "value") | {"xaxis": f"x{number}", "yaxis": f"y{number}"})
        layout[f"xaxis{number}"] = {"type": "log", "title": {"text": "compute of a training, FLOPs"}}
        layout[f"yaxis{number}"] = log_axis(title, part[["low", "high"]].to_numpy().ravel())

    def draw(figure: Any) -> None:
        for box, (name, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            part = table[table["hyper_parameter"] == name]
            _draw_points(box, part, "value")
            box.set(xscale="log", yscale="log", xlabel="compute of a training (FLOPs)", ylabel=title)
            round_ticks(box, "y")

    says = "The best learning rate and batch of each level, and of the target at the right end, with 90% intervals."
    return Figure("path", "The path of the optimum to the target", says, table, {"data": data, "layout": layout}, draw)


def forecast(levels: list[Level], plan: Plan, runs: tuple[Run, ...], fit: Fit, ladder: LadderSummary) -> Figure:
    """Draws the lowest loss of each level against compute, and the forecast of the target's, with what came out."""
    rows: list[tuple[str, str, float, float, float, float]] = []
    for level in levels:
        loss = min(run.loss for run in runs if run.size == level.size)
        rows.append(("lowest of the level", level.words, level.flops, loss, loss, loss))
    assert ladder.loss is not None, "drawn only with an answer"
    one, goal = ladder.loss, plan.target
    for level in (*levels, goal):
        loss = lowest_loss(fit, level)
        rows.append(("fit", level.words, level.flops, loss, loss, loss))
    rows.append(("forecast", goal.words, goal.flops, one.value, one.low, one.high))
    if ladder.truth and ladder.truth.ended:
        came = ladder.truth.val_loss
        rows.append(("came out", goal.words, goal.flops, came, came, came))
    table = pd.DataFrame(rows, columns=["kind", "model", "flops", "val_loss", "low", "high"])
    looks = {"lowest of the level": "completed", "forecast": "best", "came out": "baseline"}
    data: list[dict[str, Any]] = [
        _points(table[table["kind"] == kind], "val_loss") | {"name": kind, "marker": {"color": COLOURS[colour], "size": 9}}
        for kind, colour in looks.items()
        if (table["kind"] == kind).any()
    ]
    line = table[table["kind"] == "fit"]
    ends = {"x": line["flops"].tolist(), "y": line["val_loss"].tolist()}
    data.append({"type": "scatter", "mode": "lines", "name": "fit", "line": {"dash": "dot"}} | ends)
    layout = {
        "xaxis": {"type": "log", "title": {"text": "compute of a training, FLOPs"}},
        "yaxis": {"type": "log", "title": {"text": f"val_loss, {NATS}"}},
    }

    def draw(figure: Any) -> None:
        box = figure.subplots()
        for kind, colour in looks.items():
            if (table["kind"] == kind).any():
                _draw_points(box, table[table["kind"] == kind], "val_loss", COLOURS[colour], kind)
        box.plot(line["flops"], line["val_loss"], ":", color="0.5", label="fit")
        box.set(xscale="log", yscale="log", xlabel="compute of a training (FLOPs)", ylabel=f"val_loss ({NATS})")
        round_ticks(box, "y")
        box.legend()

    says = "The lowest loss of each level against the compute of one training, and the forecast of the target's loss (90%)."
    return Figure("forecast", "Loss against compute", says, table, {"data": data, "layout": layout}, draw)


def log_axis(title: str, values: Iterable[float], most: int = 8) -> dict[str, Any]:
    """Returns plotly's logarithmic axis with at most `most` labels, at 1, 2 and 5 times powers of ten among `values`.

    Where fewer than two such numbers lie among the values, plotly chooses the labels.
    """
    low, high = min(values := list(values)), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axis: dict[str, Any] = {"type": "log", "title": {"text": title}}
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if 2 <= len(found) <= most:
            return axis | {"tickvals": found, "ticktext": [f"{value:,.4g}" for value in found]}
    return axis


def round_ticks(box: Any, letters: str = "xy") -> None:
    """Labels the logarithmic axes of a matplotlib panel at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for letter in letters:
        axis = getattr(box, f"{letter}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))


def _points(part: pd.DataFrame, column: str) -> dict[str, Any]:
    """Returns plotly's trace of values with intervals."""
    values = part[column].to_numpy()
    bars = {"type": "data", "symmetric": False, "array": (part["high"] - values).tolist()}
    bars |= {"arrayminus": (values - part["low"]).tolist()}
    points = {"x": part["flops"].tolist(), "y": values.tolist(), "text": part["model"].tolist(), "error_y": bars}
    return {"type": "scatter", "mode": "markers"} | points


def _draw_points(box: Any, part: pd.DataFrame, column: str, colour: str = "", label: str | None = None) -> None:
    """Draws values with intervals into a matplotlib panel."""
    values = part[column].to_numpy()
    errors = [values - part["low"].to_numpy(), part["high"].to_numpy() - values]
    box.errorbar(part["flops"], values, yerr=errors, fmt="o", capsize=3, color=colour or COLOURS["best"], label=label)
