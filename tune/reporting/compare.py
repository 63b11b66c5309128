"""Compares searches in one table and one page; losses of different data or tokenizers never share a column."""

import itertools
import math
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.models.custom_model import described
from myllm.system.files import write_text
from tune.analysis.results import load
from tune.config.spec import BuiltinSearch, SearchSpec
from tune.core.clock import SearchClock
from tune.core.events import Event, Reported
from tune.core.trials import AUDIT, Trials
from tune.reporting.figures.base import Figure, write_figures
from tune.reporting.html_report import document, escaped, figure_section, page_data
from tune.reporting.summarize import summarize

LONGEST_LABEL = 40  # characters of a run's path in a picture, the last ones: a legend must leave room for the curves
LINES = ("#2f81f7", "#d9730d", "#2da44e", "#a371b5", "#e5534b", "#8c959f", "#b35900", "#768390")


def compare(folders: list[Path]) -> tuple[str, Path]:
    """Compares runs; returns the comparison as text and the path of the page. Writes compare.html, compare.csv and
    compare/ into the first run's folder. Raises InputError for a folder that is no run.
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
    is_own = any(search.options.is_own_program for search, _, _ in runs.values())
    if is_own and alike:
        unit = "the unit of the program"
    note = (
        f"Losses are in {unit}."
        if alike
        else "The runs differ in data or tokenizer: their losses per token say nothing beside each other, so only "
        "bits per byte are shown, and these too are of different texts where the data differs."
    )
    if is_own and not alike:
        note = "The runs differ in the program or in what its budget counts: their losses say nothing beside each other."
    figure = progress_figure(best_so_far(runs, metric), metric, unit)
    page = folders[0] / "compare.html"
    write_text(page, compared_page(table, note, figure))
    write_text(folders[0] / "compare.csv", table.to_csv(index=False))
    write_figures(folders[0] / "compare", [figure])
    said = table.set_index("run").map(cell_text).T.to_string()
    return f"\n{said}\n\n{note}\npage: {shlex.quote(os.path.relpath(page))}", page


def cell_text(value: Any) -> str:
    """Returns a cell of the table: floats with five significant digits; empty where a run has no value."""
    if value is None or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def comparable(search: SearchSpec) -> str:
    """Returns a key of validation data, tokenizer and windows; searches that share the key can be compared in nats."""
    if not isinstance(search, BuiltinSearch):
        return repr(search.compared_by())
    data, training = search.data, search.training
    return repr((data.fingerprint.get("val"), data.tokenizer_sha256, training.max_len, training.eval_windows))


def differing(search: SearchSpec, others: list[SearchSpec]) -> dict[str, Any]:
    """Returns the settings of `search`, ranges included, in which not all searches agree."""

    def flat(one: SearchSpec) -> dict[str, Any]:
        values = {name: value for name, value in vars(one.options).items() if name not in ("name", "warm_start")}
        values |= {f"range of {name}": value for name, value in one.range_texts.items()}
        if isinstance(one, BuiltinSearch):
            values["model"] = " ".join(f"{n}={v}" for n, v in described(one.model).items())
        return values | {"budget_tokens": one.budget_tokens}

    mine, every = flat(search), [flat(one) for one in others]
    names = dict.fromkeys(name for one in every for name in one)
    return {name: mine.get(name) for name in names if len({repr(one.get(name)) for one in every}) > 1}


def best_so_far(runs: dict[str, tuple[SearchSpec, Trials, list[Event]]], metric: str) -> pd.DataFrame:
    """Returns a row whenever a search reports a lower loss, of one seed, and where it ends: run, tokens and seconds, loss;
    no audits.
    """
    rows: list[dict[str, Any]] = []
    for name, (_, trials, events) in runs.items():
        row: dict[str, Any] = {}
        tokens, seen, best, clock = 0, Counter[str](), math.inf, SearchClock()
        for event in events:
            clock.see(event)
            if not isinstance(event, Reported) or trials.by_id[event.trial_id].source == AUDIT:
                continue
            tokens += max(0, event.tokens_seen - seen[event.trial_id])
            seen[event.trial_id] = event.tokens_seen
            loss = getattr(event, metric)
            is_better, best = loss < best, min(best, loss)
            row = {"run": name, "tokens": tokens, "seconds": round(clock.search + clock.audit, 1), metric: best}
            rows += [row] if is_better else []
        if math.isfinite(best) and row != rows[-1]:
            rows.append(row)
    return pd.DataFrame(rows, columns=["run", "tokens", "seconds", metric])


def progress_figure(table: pd.DataFrame, metric: str, unit: str) -> Figure:
    """Draws the lowest loss so far, from `best_so_far`, against the tokens and the seconds of each search."""
    lines = list(zip(itertools.cycle(LINES), table.groupby("run", sort=False), strict=False))
    panels = (("x", "y", "tokens"), ("x2", "y2", "seconds"))
    lowest, title = table.groupby("run")[metric].min(), f"{metric}, {unit}"
    limits = (float(lowest.min()) * 0.98, float(lowest.max()) * 1.3) if len(lowest) else None
    data: list[dict[str, Any]] = []
    for colour, (name, part) in lines:
        names = {"name": escaped(name), "legendgroup": escaped(name)}
        trace = {"type": "scatter", "mode": "lines", "line": {"shape": "hv", "color": colour}} | names
        for x, y, column in panels:
            points = {"x": part[column].tolist(), "y": part[metric].round(5).tolist()}
            data.append(trace | points | {"xaxis": x, "yaxis": y, "showlegend": x == "x"})
    loss_axis = {"range": list(limits)} if limits else {}
    layout: dict[str, Any] = {"grid": {"rows": 1, "columns": 2, "pattern": "independent"}}
    layout |= {f"xaxis{x[1:]}": {"title": {"text": column}, "rangemode": "tozero"} for x, _, column in panels}
    layout |= {"yaxis": {"title": {"text": title}} | loss_axis, "yaxis2": loss_axis}

    def draw(picture: Any) -> None:
        boxes = picture.subplots(1, 2, sharey=True)
        for colour, (name, part) in lines:
            for box, (_, _, column) in zip(boxes, panels, strict=True):
                box.step(part[column], part[metric], where="post", color=colour, label=_label(name))
                box.set(xlabel=column, xlim=(0, None))
        boxes[0].set_ylabel(title)
        if limits:
            boxes[0].set_ylim(*limits)
            boxes[0].legend()

    says = f"The lowest {metric} reported so far, single seeds, against what the search had spent."
    return Figure("progress", "Best so far", says, table, {"data": data, "layout": layout}, draw)


def _label(name: str) -> str:
    """Returns a run's path for matplotlib's legend, which reads $ as a formula and leaves out names that begin with _."""
    label = name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"
    label = label.replace("$", r"\$")
    return f"./{label}" if label.startswith("_") else label


def compared_page(table: pd.DataFrame, note: str, figure: Figure) -> str:
    """Returns the page: a table with a column a run, and the figure."""
    rows = ""
    for name in table.columns:
        cells = "".join(f"<td class=words>{escaped(cell_text(value))}</td>" for value in table[name])
        rows += f"<tr><th scope=row>{escaped(name)}</th>{cells}</tr>"
    body = (
        f"<h1>Searches compared</h1><main><p>{escaped(note)}</p><div class=wide tabindex=0 role=region aria-label=runs>"
        f"<table id=runs>{rows}</table></div>{figure_section(figure)}</main>"
    )
    return document("Searches compared", body, page_data(table, [figure]))
