"""Several searches side by side: one table, one page. Losses of different data or tokenizers never share a column."""

import math
import os
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.models.custom_model import described
from myllm.system.files import write_text
from tune.analysis.results import load
from tune.config.spec import SearchSpec
from tune.core.clock import search_seconds
from tune.core.trials import AUDIT, Event, Trials
from tune.reporting.figure_files import write_pictures
from tune.reporting.figures.base import Figure
from tune.reporting.html_report import document, escaped, figure_section, payload
from tune.reporting.summarize import summarize

LONGEST_LABEL = 40  # characters of a run's path in a picture, the last ones: a legend must leave room for the curves
LINES = ("#2f81f7", "#d9730d", "#2da44e", "#a371b5", "#e5534b", "#8c959f", "#b35900", "#768390")


def compare(folders: list[Path]) -> tuple[str, Path]:
    """(the comparison as text, the page): written into the first run's folder as compare.html and compare.csv, with the
    figure's PNG and CSV in compare/. Raises InputError for no run.
    """
    runs = {os.path.relpath(folder): load(folder) for folder in folders}
    summaries = {name: summarize(folder, *run) for (name, run), folder in zip(runs.items(), folders, strict=True)}
    alike = len({comparable(search) for search, _, _ in runs.values()}) == 1
    metric, unit = ("val_loss", "nats per token") if alike else ("val_bpb", "bits per byte")
    parameters = dict.fromkeys(name for one in summaries.values() if one.best for name in one.best.config)
    rows = []
    for name, run in runs.items():
        summary = summaries[name]
        best, gain, cost = summary.best, summary.gain, summary.cost
        row: dict[str, Any] = {"run": name, metric: best and getattr(best, metric)}
        if alike:
            row |= {"low": best and best.low, "high": best and best.high, "gain": gain and gain.mean}
        row |= {"share_of_budget": best and best.share_of_budget, "trials": summary.trials.begun}
        row |= {"tokens": cost.tokens, "seconds": round(cost.seconds, 1)}
        row |= {f"best {parameter}": best and best.config.get(parameter) for parameter in parameters}
        row["confidence"] = summary.confidence
        rows.append(row | differing(run[0], [other for other, _, _ in runs.values()]))
    table = pd.DataFrame(rows)
    note = (
        f"Losses are in {unit}."
        if alike
        else "The runs differ in data or tokenizer: their losses per token say nothing beside each other, so only "
        "bits per byte are shown, and these too are of different texts where the data differs."
    )
    figure = progress(runs, metric, unit)
    page = folders[0] / "compare.html"
    write_text(page, compared_page(table, note, figure))
    write_text(folders[0] / "compare.csv", table.to_csv(index=False))
    write_pictures(folders[0] / "compare", [figure])
    said = table.set_index("run").map(shown).T.to_string()
    return f"\n{said}\n\n{note}\npage: {shlex.quote(os.path.relpath(page))}", page


def shown(value: Any) -> str:
    """A cell: floats with five significant digits, nothing where a run lacks it."""
    if value is None or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def comparable(search: SearchSpec) -> str:
    """What must be the same for losses in nats per token to be compared: the validation data, the tokenizer, the window."""
    return repr(
        (
            search.data.fingerprint.get("val"),
            search.data.tokenizer_sha256,
            search.training.max_len,
            search.training.eval_windows,
        )
    )


def differing(search: SearchSpec, others: list[SearchSpec]) -> dict[str, Any]:
    """The settings in which not all searches agree, ranges included, with this one's values."""

    def flat(one: SearchSpec) -> dict[str, Any]:
        values = {name: value for name, value in vars(one.options).items() if name not in ("name", "warm_start")}
        values |= {f"range of {name}": value for name, value in one.range_texts.items()}
        values["model"] = " ".join(f"{n}={v}" for n, v in described(one.model).items())
        return values | {"budget_tokens": one.budget_tokens}

    mine, every = flat(search), [flat(one) for one in others]
    names = dict.fromkeys(name for one in every for name in one)
    return {name: mine.get(name) for name in names if len({repr(one.get(name)) for one in every}) > 1}


def progress(runs: dict[str, tuple[SearchSpec, Trials, list[Event]]], metric: str, unit: str) -> Figure:
    """The lowest loss so far, of single reports, against the tokens and the seconds of each search; without audits."""
    rows = []
    for name, (_, trials, events) in runs.items():
        tokens, before, best = 0, dict[str, int](), float("inf")
        session: list[Event] = []
        past = 0.0
        for event in events:
            if event["event"] == "session":
                past, session = past + search_seconds(session), []
            session.append(event if event["event"] == "session" else {"event": "", "time": event["time"]})
            if event["event"] != "report" or trials.by_id[event["trial_id"]].source == AUDIT:
                continue
            tokens += max(0, event["tokens_seen"] - before.get(event["trial_id"], 0))
            before[event["trial_id"]] = event["tokens_seen"]
            better, best = event[metric] < best, min(best, event[metric])
            last = {
                "run": name,
                "tokens": tokens,
                "seconds": round(past + event["time"] - session[0]["time"], 1),
                metric: best,
            }
            if better:
                rows.append(last)
        if math.isfinite(best) and last != rows[-1]:
            rows.append(last)  # a line ends where its search did
    table = pd.DataFrame(rows, columns=["run", "tokens", "seconds", metric])
    data = []
    for number, (name, part) in enumerate(table.groupby("run", sort=False)):
        for axis, along in (("", "tokens"), ("2", "seconds")):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "line": {"shape": "hv", "color": LINES[number % len(LINES)]},
                    "name": escaped(name),
                    "legendgroup": escaped(name),
                    "showlegend": not axis,
                    "x": part[along].tolist(),
                    "y": part[metric].round(5).tolist(),
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                }
            )
    lowest = table.groupby("run")[metric].min()
    top = {"range": [float(lowest.min()) * 0.98, float(lowest.max()) * 1.3]} if len(lowest) else {}
    layout = {
        "grid": {"rows": 1, "columns": 2, "pattern": "independent"},
        "xaxis": {"title": {"text": "tokens"}, "rangemode": "tozero"},
    }
    layout |= {"xaxis2": {"title": {"text": "seconds"}, "rangemode": "tozero"}, "yaxis2": top}
    layout["yaxis"] = {"title": {"text": f"{metric}, {unit}"}} | top
    says = f"The lowest {metric} reported so far, single seeds, against what the search had spent."

    def draw(picture: Any) -> None:
        panels = picture.subplots(1, 2, sharey=True)
        for number, (name, part) in enumerate(table.groupby("run", sort=False)):
            label = name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"
            label = label.replace("$", r"\$")  # no formula; and what begins with _ would be left out
            label = f"./{label}" if label.startswith("_") else label
            for panel, along in zip(panels, ("tokens", "seconds"), strict=True):
                panel.step(part[along], part[metric], where="post", color=LINES[number % len(LINES)], label=label)
                panel.set(xlabel=along, xlim=(0, None))
        panels[0].set_ylabel(f"{metric}, {unit}")
        if len(lowest):
            panels[0].set_ylim(*top["range"])
            panels[0].legend()

    return Figure("progress", "Best so far", says, table, {"data": data, "layout": layout}, draw)


def compared_page(table: pd.DataFrame, note: str, figure: Figure) -> str:
    """One page with a column a run."""
    cells = "".join(
        f"<tr><th scope=row>{escaped(name)}</th>"
        + "".join(f"<td class=words>{escaped(shown(v))}</td>" for v in table[name])
        + "</tr>"
        for name in table.columns
    )
    body = (
        f"<h1>Searches compared</h1><main><p>{escaped(note)}</p><div class=wide tabindex=0 role=region aria-label=runs>"
        f"<table id=runs>{cells}</table></div>{figure_section(figure)}</main>"
    )
    return document("Searches compared", body, payload(table, [figure]))
