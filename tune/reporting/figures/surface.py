"""Figures of the loss over the hyper-parameters: along each, over two, and what matters."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tune.analysis.response_surface import Axis, ResponseSurface
from tune.config.spec import SearchSpec
from tune.core.searchers.gaussian_process import projected
from tune.core.trials import BASELINE_TRIAL, Trials
from tune.reporting.figures.base import COLOURS, MOST_POINTS, NATS, Figure, fate, mark, plotly_axis


def known_losses(search: SearchSpec, trials: Trials, best: str) -> pd.DataFrame:
    """A row a configuration: its fate, and its loss at the end in nats per token, `measured` or expected."""
    rung_tokens, budget = search.scheduler().stops, trials.budget_tokens
    rows = [
        {"trial_id": trial.trial_id, "fate": fate(trial, best), "measured": budget in trial.losses}
        | {"end_loss": trial.mean_at(budget) if budget in trial.losses else math.exp(loss), "seeds": seeds}
        | trial.config
        for trial, loss, seeds in projected(trials, rung_tokens)
        if math.isfinite(loss)
    ]
    columns = ["trial_id", "fate", "measured", "end_loss", "seeds", *search.ranges]
    return pd.DataFrame(rows, columns=columns).sort_values("end_loss", ignore_index=True)


def parameters(search: SearchSpec, trials: Trials, axes: list[Axis], surface: ResponseSurface | None, best: str) -> Figure:
    """Loss at the end against each hyper-parameter, with the surface through the best configuration."""
    table = known_losses(search, trials, best)
    part = table.head(MOST_POINTS)
    high = float(part["end_loss"].quantile(0.9)) if len(part) else 1.0
    low = float(part["end_loss"].min()) if len(part) else 0.0
    across = min(len(axes), 4)
    down = math.ceil(len(axes) / across)
    data, bands = [], []
    layout: dict[str, Any] = {"grid": {"rows": down, "columns": across, "pattern": "independent"}, "height": 340 * down}
    places = np.linspace(0, 1, 25)
    center = [axis.place(trials.by_id[best].config[axis.name]) for axis in axes] if best else []
    for number, axis in enumerate(axes, 1):
        x_name, y_name = f"x{number}", f"y{number}"
        on = {"xaxis": x_name, "yaxis": y_name, "showlegend": False}
        band = None
        if surface and center:
            points = np.tile(center, (len(places), 1))
            points[:, number - 1] = places
            band = surface.predict(points)
            values = [axis.value(place) for place in places]
            if axis.is_category:
                values = [axis.values[round(place * (len(axis.values) - 1))] for place in places]
            soft = {"mode": "lines", "hoverinfo": "skip", "type": "scatter", "x": values} | on
            data += [
                soft | {"y": band[1].round(5).tolist(), "line": {"width": 0}},
                soft | {"y": band[2].round(5).tolist(), "line": {"width": 0}, "fill": "tonexty", "fillcolor": "#8c959f40"},
                soft | {"y": band[0].round(5).tolist(), "line": {"width": 1.5, "color": "#8c959f"}},
            ]
            bands.append((values, band))
        for word, rows in part.groupby("fate"):
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": word,
                    "legendgroup": word,
                    "x": (rows[axis.name].astype(str) if axis.is_category else rows[axis.name]).tolist(),
                    "y": [float(f"{v:.5g}") for v in rows["end_loss"]],
                    "text": rows["trial_id"].tolist(),
                    "hovertemplate": f"trial %{{text}}, {word}<br>{axis.name} %{{x:.4g}}: %{{y:.4f}}<extra></extra>",
                    "marker": {
                        "color": COLOURS[word],
                        "size": 11 if word in ("best", "baseline") else 7,
                        "symbol": ["circle" if m else "circle-open" for m in rows["measured"]],
                    },
                }
                | on
                | {"showlegend": number == 1}
            )
        layout["xaxis" + str(number)[: 5 * (number > 1)]] = {"title": {"text": axis.name}} | plotly_axis(axis, 3)
        margin = 0.05 * (high - low) or 0.05  # of one loss alone, too
        y_axis = {"range": [low - margin, high + margin]}
        layout["yaxis" + str(number)[: 5 * (number > 1)]] = y_axis | (
            {"title": {"text": f"loss at the end, {NATS}"}} if number % across == 1 or across == 1 else {}
        )

    def draw(figure: Any) -> None:
        figure.set_size_inches(3.2 * across, 3 * down)
        panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for number, (panel, axis) in enumerate(zip(panels, axes, strict=False)):
            if bands:
                values, band = bands[number]
                panel.fill_between(values, band[1], band[2], color="0.85")
                panel.plot(values, band[0], color="0.5", linewidth=1)
            colours = [COLOURS[word] for word in part["fate"]]
            values = part[axis.name].astype(str) if axis.is_category else part[axis.name]
            panel.scatter(values, part["end_loss"], edgecolors=colours, s=18)
            faces = [c if m else "none" for c, m in zip(colours, part["measured"], strict=True)]
            panel.collections[-1].set_facecolors(faces)
            panel.set(xlabel=axis.name, ylim=y_axis["range"])
            mark(panel, "x", axis, 3)
        for word in dict.fromkeys(part["fate"]):
            panels[0].scatter([], [], color=COLOURS[word], s=18, label=word)
        if len(part):
            figure.legend(loc="outside lower center", ncols=len(COLOURS))
        panels[0].set_ylabel(f"loss at the end ({NATS})")

    says = (
        "Loss at the end against each hyper-parameter. Filled: trained to the end; open: expected from where it was left. "
        "The band is where the loss of the best configuration would lie if this one were changed alone (90%)."
    )
    return Figure("parameters", "Loss against each hyper-parameter", says, table, {"data": data, "layout": layout}, draw)


def landscape(trials: Trials, surface: ResponseSurface, rate: Axis, batch: Axis, best: str) -> Figure:
    """The expected loss over learning rate and batch size, the others as in the best configuration."""
    names = [axis.name for axis in surface.axes]
    x, y = np.linspace(0, 1, 25), np.linspace(0, 1, max(9, 2 * len(batch.values) - 1))
    points = np.tile([axis.place(trials.by_id[best].config[axis.name]) for axis in surface.axes], (len(x) * len(y), 1))
    points[:, names.index("learning_rate")] = np.tile(x, len(y))
    points[:, names.index("batch_size")] = np.repeat(y, len(x))
    loss = surface.predict(points)[0].reshape(len(y), len(x))
    rates, batches = [rate.value(p) for p in x], [batch.value(p) for p in y]
    tried = [t for t in trials.drawn if t.losses]
    tried = [t for at, t in enumerate(tried) if at < MOST_POINTS or t.trial_id in (best, BASELINE_TRIAL)]
    tried.sort(key=lambda t: t.trial_id == best)  # on top of the others
    dots = {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [t.config["learning_rate"] for t in tried],
        "y": [t.config["batch_size"] for t in tried],
        "text": [f"trial {t.trial_id}, {fate(t, best)}" for t in tried],
        "hovertemplate": "%{text}<br>learning_rate %{x:.4g}, batch_size %{y}<extra></extra>",
        "marker": {
            "color": [COLOURS[fate(t, best)] for t in tried],
            "size": [15 if t.trial_id in (best, BASELINE_TRIAL) else 8 for t in tried],
            "symbol": ["star" if t.trial_id == best else "circle" for t in tried],
            "opacity": 1,
            "line": {"color": "white", "width": 1.5},
        },
        "cliponaxis": False,
    }
    heat = {
        "type": "contour",
        "x": rates,
        "y": batches,
        "z": [[float(f"{v:.5g}") for v in row] for row in loss],
        "colorscale": "Viridis",
        "reversescale": True,
        "colorbar": {"title": {"text": NATS}},
        "hovertemplate": "learning_rate %{x:.4g}, batch_size %{y:.3g}: %{z:.4f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "learning_rate"}, "ticks": "outside", "ticklen": 8}
        | plotly_axis(rate, 5)
        | within(rate, rates),
        "yaxis": {"title": {"text": "batch_size, windows"}} | plotly_axis(batch, 7) | within(batch, batches),
    }
    grid = [(r, b) for b in batches for r in rates]
    table = pd.DataFrame(grid, columns=["learning_rate", "batch_size"]).assign(expected_loss=loss.ravel())

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        filled = axis.contourf(rates, batches, loss, levels=15, cmap="viridis_r")
        figure.colorbar(filled, label=f"expected loss ({NATS})")
        for part, marker, size in ((slice(-1), "o", 40), (slice(-1, None), "*", 260)):
            x, y, colours = dots["x"][part], dots["y"][part], dots["marker"]["color"][part]
            axis.scatter(x, y, size, colours, marker=marker, edgecolors="white", clip_on=False, zorder=3)
        axis.set(
            xlabel="learning_rate",
            ylabel="batch_size (windows)",
            xlim=(rates[0], rates[-1]),
            ylim=(batches[0], batches[-1]),
        )
        mark(axis, "x", rate, 5)
        mark(axis, "y", batch, 7)

    says = "Expected loss over learning rate and batch size, the others as in the best (the star). Dots are trials."
    title = "Learning rate and batch size"
    return Figure("landscape", title, says, table, {"data": [heat, dots], "layout": layout}, draw)


def within(axis: Axis, values: list[float]) -> dict[str, Any]:
    """Plotly's range of an axis that ends where `values` do, and shows what lies right there."""
    low, high = (math.log10(values[end]) if axis.is_log else values[end] for end in (0, -1))
    return {"range": [low - 0.002 * (high - low), high + 0.002 * (high - low)]}


def importance(surface: ResponseSurface) -> Figure:
    """How much each hyper-parameter matters."""
    table = pd.DataFrame(surface.importance())
    rows = table[::-1]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": rows["importance"].round(4).tolist(),
        "y": rows["hyper_parameter"].tolist(),
        "marker": {"color": "#2f81f7", "line": {"width": 0}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": (rows["high"] - rows["importance"]).clip(0).tolist(),
            "arrayminus": (rows["importance"] - rows["low"]).clip(0).tolist(),
        },
        "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "share of the variance that it and its interactions explain"}, "range": [0, 1.02]},
        "yaxis": {"automargin": True},
        "height": 120 + 45 * len(table),
    }

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.barh(bar["y"], bar["x"], xerr=[bar["error_x"]["arrayminus"], bar["error_x"]["array"]], color="#2f81f7")
        axis.set(xlabel="share of the variance that it and its interactions explain", xlim=(0, 1.02))

    says = (
        f"Total-order Sobol indices (scipy) of Gaussian processes (scikit-learn) on the losses of {surface.count} trials, "
        "completed and left behind alike; losses beyond the median, diverged ones too, count as the median. Bars are "
        "medians over processes that the trials leave possible, whiskers hold 90%. Interactions count for each."
    )
    return Figure("importance", "What matters", says, table, {"data": [bar], "layout": layout}, draw)
