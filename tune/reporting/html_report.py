"""Makes report.html: one file that needs no network, from the summary and the figures. All text in it is escaped."""

import html
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.models.custom_model import described
from tune.config.spec import SearchSpec
from tune.reporting.figures.base import Figure, to_json
from tune.reporting.summary import Summary
from tune.reporting.summary_text import CONFIDENCE, compared, compiled_words, interval_words
from tune.text.format import amount, format_value

ASSETS = Path(__file__).resolve().parent / "assets"
RELOAD_SECONDS = 5


def escaped(value: Any) -> str:
    """Returns a value as text for HTML; a float has four significant digits."""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def inlined(value: Any) -> str:
    """Returns JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def document(title: str, body: str, data: str, head: str = "") -> str:
    """Returns the HTML file: style, body, data, plotly and the page's own script; `head` is added to its head."""
    from plotly.offline import get_plotlyjs

    css, script = ((ASSETS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">{head}'
        f"<style>{css}</style></head>"
        f'<body>{body}<script type="application/json" id="data">{data}</script>'
        f"<script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n"
    )


def tile(name: str, value: str, more: str = "", first: bool = False) -> str:
    """Returns a tile: a number or word of the answer, with its name above and `more` below."""
    small = f"<small>{escaped(more)}</small>" if more else ""
    return f"<div{' class=first' if first else ''}><dt>{escaped(name)}</dt><dd>{escaped(value)}{small}</dd></div>"


def answer(summary: Summary) -> str:
    """Returns the first section of the page: the best configuration, and the confidence in it."""
    sure = f"<b>{CONFIDENCE[summary.confidence]}</b> {escaped(summary.verdict)}"
    config = summary.best.config.items() if summary.best else ()
    best = (tile(name if i else f"best {name}", format_value(value), first=not i) for i, (name, value) in enumerate(config))
    return (
        f'<section class="answer {summary.confidence}" id="answer" aria-label="answer"><dl class=tiles>{"".join(best)}</dl>'
        f"<p class=verdict>Can I rely on it? {sure}</p>"
        f'<dl class="tiles facts">{"".join(_facts(summary))}</dl></section>'
    )


def _facts(summary: Summary) -> Iterator[str]:
    """Yields the small tiles of the answer: losses, then cost."""
    best, gain, cost, level = summary.best, summary.gain, summary.cost, f"{summary.level:.0%}"
    if best:
        seeds = f"{best.seeds} seeds" if best.seeds > 1 else "one seed"
        sure = f"{level}: {interval_words(best)}; " if interval_words(best) else ""
        yield tile("loss, nats per token", "none" if best.val_loss is None else f"{best.val_loss:.4f}", f"{sure}{seeds}")
        if gain and gain.mean is not None:
            sure = f"{level}: {interval_words(gain)}" if interval_words(gain) else "no interval: one seed"
            yield tile("better than the baseline by", f"{gain.mean:.4f}", sure)
        if best.probability_best is not None:
            yield tile("probability of being best", f"{best.probability_best:.0%}", compared(best))
        if best.share_of_budget < 1:
            yield tile("compared at", f"{best.share_of_budget:.3g} of the budget")
    trainings = cost.tokens / summary.budget_tokens
    took = f"{cost.seconds / 60:,.1f} min" if cost.seconds < 7200 else f"{cost.seconds / 3600:,.1f} h"
    yield tile("it took", took, f"{amount(cost.tokens)} tokens, {trainings:.1f} full trainings' worth")
    if summary.compiled:
        yield tile("compiled, speed", f"{summary.compiled.gain:.2f} times", compiled_words(summary.compiled))


def unbroken(command: str) -> str:
    """Returns a command as HTML that wraps between its words, and not at their hyphens."""
    return " ".join(f"<span>{escaped(word)}</span>" for word in command.split(" "))


def next_steps(summary: Summary) -> str:
    """Returns the section of commands to copy."""
    rows = "".join(
        f"<div class=command><span>{escaped(step.what)}</span><code tabindex=0>{unbroken(step.command)}</code>"
        f'<button data-copy aria-label="copy the command: {escaped(step.what)}">copy</button></div>'
        for step in summary.next
    )
    return f"<h2 id=next>What to do next</h2>{rows}"


def figure_section(figure: Figure, more: str = "") -> str:
    """Returns the section of a figure: its description, the drawing, and buttons that save files."""
    buttons = "".join(
        f'<button data-save={kind} data-of={figure.name} aria-label="{escaped(figure.title)} as {kind.upper()}">'
        f"{kind.upper()}</button> "
        for kind in ("png", "csv")
    )
    return (
        f"<section><h2 id={figure.name}>{escaped(figure.title)}</h2><p class=soft>{escaped(figure.says)}</p>{more}"
        f'<div class=plot id="plot-{figure.name}" role=img aria-label="{escaped(figure.says)}"></div>'
        f"<div class=tools>{buttons}</div></section>"
    )


def trials_table(table: pd.DataFrame) -> str:
    """Returns the section of the table of trials; the page's script fills in the rows."""
    heads = "".join(f"<th scope=col><button>{escaped(name)}</button></th>" for name in table.columns)
    return (
        "<section><h2 id=all>All trials</h2><p class=soft>A click on a heading sorts. The filter takes words and "
        "comparisons, as in <code>completed learning_rate&gt;0.001</code>.</p>"
        '<div class=tools><input id=filter type=search placeholder="filter" aria-label="filter the trials">'
        "<span id=count role=status></span><button id=clear>show all</button>"
        "<button data-save=csv data-of=trials>CSV</button></div>"
        f'<div class=wide tabindex=0 role=region aria-label="all trials"><table id=trials><thead><tr>{heads}</tr></thead>'
        "<tbody></tbody></table></div><button id=more>more</button></section>"
    )


def edge_warning(summary: Summary) -> str:
    """Returns the section of hyper-parameters at the end of their range; empty where there are none."""
    rows = "".join(
        f"<p>{escaped(edge.hyper_parameter)} of the best, {escaped(float(edge.value))}, lies where its range ends. "
        f"Search next: <code>{escaped(edge.search_next)}</code></p>"
        for edge in summary.edges
    )
    return f"<section><h2 id=edges>At the edge of a range</h2><div class=warning>{rows}</div></section>" if rows else ""


def settings_section(search: SearchSpec) -> str:
    """Returns the section of settings, versions and fingerprints."""
    groups = {
        "asked for": {n: v for n, v in vars(search.options).items() if v not in (None, (), False)},
        "searched": search.range_texts,
        "model": described(search.model),
        "training": vars(search.training),
        "data": {n: getattr(search.data, n) for n in ("train_file", "val_file", "tokenizer", "tokenizer_sha256")}
        | {f"fingerprint of {split}": value for split, value in search.data.fingerprint.items()},
        "made with": search.origin,
    }
    rows = "".join(
        f"<tr><td>{escaped(group)}</td><td>{escaped(name)}</td><td>{escaped(setting_text(value))}</td></tr>"
        for group, values in groups.items()
        for name, value in values.items()
    )
    return (
        f"<section><h2 id=settings>Settings, versions, data</h2><details><summary>show</summary>"
        f'<div class="wide settings"><table>{rows}</table></div></details></section>'
    )


def setting_text(value: Any) -> Any:
    """Returns a setting as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting_text(inner)}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def rows_of(table: pd.DataFrame) -> list[list[Any]]:
    """Returns the table's rows in JSON's types: floats with five significant digits, None for one that is not finite."""

    def cell(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, float):
            return value
        return float(f"{value:.5g}") if math.isfinite(value) else None

    columns = [[cell(value) for value in table[name].tolist()] for name in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def page(
    search: SearchSpec,
    summary: Summary,
    figures: list[Figure],
    table: pd.DataFrame,
    notes: dict[str, str],
    more: str | None = None,
) -> str:
    """Returns the page of one search; `notes` are sentences below a figure's description, by its name.

    `more` is a sentence about what the page lacks so far. With `more` the page loads itself again every RELOAD_SECONDS.
    """
    said = {name: f"<p class=soft>{escaped(words)}</p>" for name, words in notes.items()}
    sections = [figure_section(figure, said.pop(figure.name, "")) for figure in figures]
    missing = "".join(said.values())
    title = f"Search {summary.name}: space {summary.space}, preset {summary.preset}, {summary.data} data"
    body = (
        f'<a class=skip href="#answer">to the answer</a><h1>{escaped(title)}</h1><main>'
        f"{answer(summary)}{next_steps(summary)}{''.join(sections)}{missing}{trials_table(table)}{edge_warning(summary)}{settings_section(search)}</main>"
    )
    if more is None:
        return document(title, body, payload(table, figures))
    body = body.replace("<main>", f"<p class=soft role=status>{escaped(more)}</p><main>", 1)
    return document(title, body, payload(table, figures), f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">')


def payload(table: pd.DataFrame, figures: list[Figure]) -> str:
    """Returns the table and the figures as JSON, for the page's script."""
    plots = ",".join(f'"{figure.name}":{to_json(figure.plot)}' for figure in figures)
    return f'{{"columns":{inlined(list(table.columns))},"rows":{inlined(rows_of(table))},"figures":{{{plots}}}}}'
