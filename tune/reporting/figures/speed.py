"""The figure of loss against the time of a full training."""

from typing import Any

from tune.analysis.speed import training_speeds
from tune.config.spec import SearchSpec
from tune.core.trials import Trials
from tune.reporting.figures.base import COLOURS, MOST_POINTS, NATS, Figure, outcome


def loss_and_time(search: SearchSpec, trials: Trials, best: str) -> Figure:
    """Draws a point a configuration, and the Pareto front: the lowest loss for each time.

    Where all trainings take the same time, tokens stand in the place of seconds.
    """
    timed = bool(search.budget_seconds)
    table = training_speeds(trials, timed).reset_index().head(MOST_POINTS)
    cost, unit = ("tokens", "tokens of a full training") if timed else ("seconds", "seconds of a full training")
    table["outcome"] = [outcome(trials, trials.by_id[trial_id], best) for trial_id in table["trial_id"]]
    front = table[table["is_front"]].sort_values(cost)
    dots = {word: rows for word, rows in table.groupby("outcome", sort=False)}
    name = "Pareto front"
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": name, "line": {"shape": "hv", "width": 1}}
    line |= {"x": front[cost].tolist(), "y": front["val_loss"].tolist(), "hoverinfo": "skip"}
    line["line"] |= {"color": COLOURS["running"]}
    data = [line]
    for word, rows in dots.items():
        dot: dict[str, Any] = {"type": "scatter", "mode": "markers", "name": f"{word} ({len(rows)})"}
        dot |= {"x": rows[cost].tolist(), "y": rows["val_loss"].tolist(), "text": rows["trial_id"].tolist()}
        dot |= {"marker": {"color": COLOURS[word], "size": 8}}
        data.append(dot | {"hovertemplate": f"trial %{{text}}<br>%{{x:,.4g}} {cost}: %{{y:.4f}}<extra></extra>"})
    layout: dict[str, Any] = {"xaxis": {"title": {"text": unit}}, "yaxis": {"title": {"text": f"val_loss, {NATS}"}}}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.step(front[cost], front["val_loss"], where="post", color=COLOURS["running"], linewidth=1, label=name)
        for word, rows in dots.items():
            axis.plot(rows[cost], rows["val_loss"], "o", color=COLOURS[word], label=f"{word} ({len(rows)})")
        axis.set(xlabel=unit, ylabel=f"val_loss ({NATS})")
        axis.legend()

    against = "the tokens that it trains on in the time" if timed else "the seconds of a full training here"
    says = (
        f"Loss of each configuration that is compared, against {against}. On the line none has a lower loss for as little."
    )
    drawn: dict[str, Any] = {"data": data, "layout": layout}
    return Figure("speed", f"Loss against {'tokens' if timed else 'time'}", says, table, drawn, draw)
