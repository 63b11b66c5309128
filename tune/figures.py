"""The figures of a report: for each a tidy table (its CSV), a plotly figure for the page, and a picture by matplotlib."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune.analysis import Axis, Surface, axes_of
from tune.results import leaders
from tune.settings import Search
from tune.surrogate import projected
from tune.trials import DEFAULT_TRIAL, REPEAT, Trial, Trials

MOST_CURVES = 300  # drawn: of more nobody sees one
MOST_POINTS = 2000
COLOURS = {
    "best": "#2f81f7",
    "default": "#d9730d",
    "completed": "#2da44e",
    "paused": "#8c959f",
    "stopped": "#a371b5",
    "diverged": "#e5534b",
    "failed": "#b35900",
    "running": "#768390",
}
"""of each fate; all can be told from black and from white"""
NATS = "nats per token"


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


def figures(search: Search, trials: Trials, history: pd.DataFrame, surface: Surface | None) -> list[Figure]:
    """All figures for which there is something to show, in the order in which a page shows them."""
    if history.empty:
        return []
    axes = axes_of(search)
    best = next(iter(leaders(trials).index), "")
    shown = [curves(search, trials, history, best), parameters(search, trials, axes, surface, best)]
    both = {axis.name: axis for axis in axes if axis.name in ("learning_rate", "batch_size")}
    if surface and len(both) == 2:
        shown.append(landscape(trials, surface, both["learning_rate"], both["batch_size"], best))
    shown.append(parallel(trials, axes))
    if surface:
        shown.append(importance(surface))
    return [*shown, budget(search, trials)]


def fate(trial: Trial, best: str) -> str:
    """What became of a trial: the word that its colour stands for."""
    return {best: "best", DEFAULT_TRIAL: "default"}.get(trial.of if trial.kind == REPEAT else trial.trial_id, trial.status)


def log_axis(axis: Axis) -> dict[str, Any]:
    """Plotly's axis for a hyper-parameter, on its own scale."""
    if axis.values and axis.numbers is None:
        return {"type": "category"}
    ticks = {"tickvals": axis.numbers, "ticktext": list(axis.values)} if axis.values else {}
    return {"type": "log" if axis.is_log else "linear", **ticks}


def curves(search: Search, trials: Trials, history: pd.DataFrame, best: str) -> Figure:
    """Loss over tokens, a line a trial, coloured by fate, with the rungs."""
    order = sorted(trials.by_id.values(), key=lambda trial: (-trial.tokens, trial.trial_id))
    drawn = order[: MOST_CURVES // 2] + order[MOST_CURVES // 2 :: max(1, math.ceil(2 * len(order) / MOST_CURVES))]
    fates = {trial.trial_id: fate(trial, best) for trial in {id(t): t for t in drawn}.values()}
    table = history[["trial_id", "tokens_seen", "val_loss"]].copy()
    part = table[table["trial_id"].isin(fates)]
    traces = []
    by_trial = dict(list(part.groupby("trial_id")))
    for word in reversed(list(COLOURS)):
        lines = [by_trial[trial_id] for trial_id, its in fates.items() if its == word and trial_id in by_trial]
        if not lines:
            continue
        x, y, names = [], [], []
        for rows in lines:
            x += [*rows["tokens_seen"].tolist(), None]
            y += [*rows["val_loss"].map(lambda v: float(f"{v:.5g}") if math.isfinite(v) else None).tolist(), None]
            names += [rows["trial_id"].iloc[0]] * (len(rows) + 1)
        bold = word in ("best", "default")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{word} ({len(lines)})",
                "x": x,
                "y": [v if v == v else None for v in y],
                "text": names,
                "hovertemplate": f"trial %{{text}}, {word}<br>%{{x:,}} tokens: %{{y:.4f}}<extra></extra>",
                "line": {"color": COLOURS[word], "width": 2.5 if bold else 1},
                "opacity": 1 if bold else 0.7,
            }
        )
    rungs = list(search.scheduler().milestones)
    finite = table["val_loss"][np.isfinite(table["val_loss"].astype(float))]
    low, high = (float(finite.min()) * 0.98, float(finite.quantile(0.98)) * 1.02) if len(finite) else (0.0, 1.0)
    layout = {
        "xaxis": {"title": {"text": "tokens seen"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"val_loss, {NATS}"}, "range": [low, high]},
        "shapes": [
            {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1}}
            for at in rungs
        ],
        "annotations": [
            {"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "text": f"1/{search.budget_tokens / at:.3g}"}
            | {"showarrow": False}
            for at in rungs
        ],
    }

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for trace in traces:
            y = [math.nan if v is None else v for v in trace["y"]]
            x = [math.nan if v is None else v for v in trace["x"]]
            axis.plot(x, y, color=trace["line"]["color"], linewidth=trace["line"]["width"] * 0.8, label=trace["name"])
        for at in rungs:
            axis.axvline(at, color="0.6", linestyle=":", linewidth=1)
        axis.set(xlabel="tokens seen", ylabel=f"val_loss ({NATS})", ylim=(low, high))
        axis.legend()

    some = f"; {len(fates)} of {len(trials.by_id)} are drawn" if len(fates) < len(trials.by_id) else ""
    says = f"Validation loss of each trial while it trains; dotted lines are the rungs, as shares of the budget{some}."
    table["fate"] = table["trial_id"].map({t.trial_id: fate(t, best) for t in trials.by_id.values()})
    return Figure("curves", "Loss curves", says, table, {"data": traces, "layout": layout}, draw)


def known_losses(search: Search, trials: Trials, best: str) -> pd.DataFrame:
    """A row a configuration: its fate, and its loss at the end in nats per token, `measured` or expected."""
    milestones = (*search.scheduler().milestones, trials.budget_tokens)
    rows = [
        {"trial_id": trial.trial_id, "fate": fate(trial, best), "measured": trials.budget_tokens in trial.losses}
        | {"end_loss": math.exp(loss), "seeds": seeds}
        | trial.config
        for trial, loss, seeds in projected(trials, milestones)
        if math.isfinite(loss)
    ]
    columns = ["trial_id", "fate", "measured", "end_loss", "seeds", *search.ranges]
    return pd.DataFrame(rows, columns=columns).sort_values("end_loss", ignore_index=True)


def parameters(search: Search, trials: Trials, axes: list[Axis], surface: Surface | None, best: str) -> Figure:
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
            if log_axis(axis)["type"] == "category":
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
                    "x": rows[axis.name].tolist(),
                    "y": [float(f"{v:.5g}") for v in rows["end_loss"]],
                    "text": rows["trial_id"].tolist(),
                    "hovertemplate": f"trial %{{text}}, {word}<br>{axis.name} %{{x:.4g}}: %{{y:.4f}}<extra></extra>",
                    "marker": {
                        "color": COLOURS[word],
                        "size": 11 if word in ("best", "default") else 7,
                        "symbol": ["circle" if m else "circle-open" for m in rows["measured"]],
                    },
                }
                | on
                | {"showlegend": number == 1}
            )
        layout["xaxis" + str(number)[: 5 * (number > 1)]] = {"title": {"text": axis.name}} | log_axis(axis)
        y_axis = {"range": [low - 0.05 * (high - low), high + 0.05 * (high - low)]}
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
            values = part[axis.name].astype(str) if axis.values and axis.numbers is None else part[axis.name]
            panel.scatter(values, part["end_loss"], edgecolors=colours, s=18)
            faces = [c if m else "none" for c, m in zip(colours, part["measured"], strict=True)]
            panel.collections[-1].set_facecolors(faces)
            panel.set(xlabel=axis.name, xscale="log" if axis.is_log else "linear", ylim=y_axis["range"])
        panels[0].set_ylabel(f"loss at the end ({NATS})")

    says = (
        "Loss at the end against each hyper-parameter. Filled: trained to the end; open: expected from where it was left. "
        "The band is where the loss of the best configuration would lie if this one were changed alone (90%)."
    )
    return Figure("parameters", "Loss against each hyper-parameter", says, table, {"data": data, "layout": layout}, draw)


def landscape(trials: Trials, surface: Surface, rate: Axis, batch: Axis, best: str) -> Figure:
    """The expected loss over learning rate and batch size, the others as in the best configuration."""
    names = [axis.name for axis in surface.axes]
    x, y = np.linspace(0, 1, 25), np.linspace(0, 1, max(9, 2 * len(batch.values) - 1))
    points = np.tile([axis.place(trials.by_id[best].config[axis.name]) for axis in surface.axes], (len(x) * len(y), 1))
    points[:, names.index("learning_rate")] = np.tile(x, len(y))
    points[:, names.index("batch_size")] = np.repeat(y, len(x))
    loss = surface.predict(points)[0].reshape(len(y), len(x))
    rates, batches = [rate.value(p) for p in x], [batch.value(p) for p in y]
    tried = [t for t in trials.drawn if t.losses][:MOST_POINTS]
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
            "size": [15 if t.trial_id in (best, DEFAULT_TRIAL) else 8 for t in tried],
            "symbol": ["star" if t.trial_id == best else "circle" for t in tried],
            "line": {"color": "white", "width": 1.5},
        },
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
        "xaxis": {"title": {"text": "learning_rate"}} | log_axis(rate),
        "yaxis": {"title": {"text": "batch_size, windows"}} | log_axis(batch),
    }
    grid = [(r, b) for b in batches for r in rates]
    table = pd.DataFrame(grid, columns=["learning_rate", "batch_size"]).assign(expected_loss=loss.ravel())

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        filled = axis.contourf(rates, batches, loss, levels=15, cmap="viridis_r")
        figure.colorbar(filled, label=f"expected loss ({NATS})")
        axis.scatter(dots["x"], dots["y"], c=dots["marker"]["color"], edgecolors="white")
        scales = ["log" if one.is_log else "linear" for one in (rate, batch)]
        axis.set(xlabel="learning_rate", ylabel="batch_size (windows)", xscale=scales[0], yscale=scales[1])

    says = "Expected loss over learning rate and batch size, the others as in the best (the star). Dots are trials."
    title = "Learning rate and batch size"
    return Figure("landscape", title, says, table, {"data": [heat, dots], "layout": layout}, draw)


def parallel(trials: Trials, axes: list[Axis]) -> Figure:
    """A line a trial across all hyper-parameters to its loss; brushing an axis narrows the table of trials."""
    part = [t for t in trials.drawn if t.tokens in t.losses]
    part = sorted(part, key=lambda trial: trial.losses[trial.tokens])[:MOST_POINTS]
    dimensions = []
    for axis in axes:
        places = [round(axis.place(t.config[axis.name]), 4) for t in part]
        if axis.values:
            ticks, words = np.linspace(0, 1, len(axis.values)).tolist(), list(axis.values)
        else:
            ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
            words = [f"{axis.value(tick):.2g}" for tick in ticks]
        dimensions.append({"label": axis.name, "values": places, "range": [0, 1], "tickvals": ticks, "ticktext": words})
    losses = [float(f"{t.losses[t.tokens]:.5g}") for t in part]
    dimensions.append({"label": "last val_loss", "values": losses})
    shown = np.clip(losses, None, np.quantile(losses, 0.75)).tolist() if losses else []
    line = {"color": shown, "colorscale": "Viridis", "reversescale": True}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line}
    table = pd.DataFrame([{"trial_id": t.trial_id} | t.config | {"last_val_loss": t.losses[t.tokens]} for t in part])

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        colours = np.array(shown)
        span = float(np.ptp(colours)) or 1.0
        last = np.array(losses)
        last = (last - last.min()) / (float(np.ptp(last)) or 1.0) if len(last) else last
        from matplotlib import colormaps

        for index in reversed(range(len(part))):
            values = [*(d["values"][index] for d in dimensions[:-1]), last[index]]
            axis.plot(values, color=colormaps["viridis_r"]((colours[index] - colours.min()) / span), linewidth=1)
        axis.set_xticks(range(len(dimensions)), [d["label"] for d in dimensions])
        axis.set_ylabel("place in the range")

    says = "A line a trial. Drag along an axis to keep those that pass there: the table of trials shows the same ones."
    plot = {"data": [trace], "layout": {"meta": [t.trial_id for t in part], "margin": {"l": 60, "r": 60, "t": 50, "b": 30}}}
    return Figure("parallel", "All hyper-parameters at once", says, table, plot, draw)


def importance(surface: Surface) -> Figure:
    """How much each hyper-parameter matters."""
    table = pd.DataFrame(surface.importance())
    rows = table[::-1]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": rows["importance"].round(4).tolist(),
        "y": rows["hyper_parameter"].tolist(),
        "marker": {"color": "#2f81f7"},
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


def budget(search: Search, trials: Trials) -> Figure:
    """Where the tokens went: between which rungs, and whether into new configurations or other seeds."""
    marks = [0, *search.scheduler().milestones, trials.budget_tokens]
    rows = []
    for begin, end in itertools.pairwise(marks):
        row: dict[str, Any] = {"from_share": begin / trials.budget_tokens, "to_share": end / trials.budget_tokens}
        row |= dict.fromkeys(("drawn", "proposed", "repeat"), 0) | {"trials": 0}
        for trial in trials.by_id.values():
            row[trial.kind] += max(0, min(trial.tokens, end) - begin)
            row["trials"] += trial.tokens > begin
        rows.append(row)
    table = pd.DataFrame(rows)
    labels = [f"{row['from_share']:.3g} to {row['to_share']:.3g}" for row in rows]
    words = {"drawn": "#2f81f7", "proposed": "#2da44e", "repeat": "#d9730d"}
    data = [
        {"type": "bar", "name": word, "x": labels, "y": table[word].tolist(), "marker": {"color": colour}}
        | {"hovertemplate": f"{word}: %{{y:,}} tokens<extra></extra>"}
        for word, colour in words.items()
    ]
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "share of the budget"}, "type": "category"}}
    layout["yaxis"] = {"title": {"text": "tokens"}}

    def draw(figure: Any) -> None:
        axis, below = figure.subplots(), np.zeros(len(table))
        for word, colour in words.items():
            axis.bar(labels, table[word], bottom=below, color=colour, label=word)
            below += table[word].to_numpy()
        axis.set(xlabel="share of the budget", ylabel="tokens")
        axis.legend()

    total = max(1, int(table[["drawn", "proposed", "repeat"]].sum().sum()))
    says = (
        f"Tokens trained in each part of a training. {table['repeat'].sum() / total:.0%} of them went into other seeds of "
        f"configurations already seen, that is into being sure."
    )
    return Figure("budget", "Where the budget went", says, table, {"data": data, "layout": layout}, draw)


def to_json(plot: dict[str, Any]) -> str:
    """A plotly figure as JSON; checked by plotly, and safe inside a script element."""
    from plotly.graph_objects import Figure as Plot

    checked = Plot(plot, skip_invalid=False)
    text = json.dumps(json.loads(checked.to_json()), separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
