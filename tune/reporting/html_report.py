"""Makes report.html: one file that needs no network, from the summary and the figures. All text in it is escaped."""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from myllm.text.format import amount, format_value
from tune.config.spec import SearchSpec
from tune.reporting.figures.base import Figure, rounded
from tune.reporting.ladder import LadderSummary
from tune.reporting.ladder_text import ladder_config, ladder_tiles, verification_lines
from tune.reporting.render import Report
from tune.reporting.summary import Summary
from tune.reporting.summary_text import CONFIDENCE, compared, compiled_words, interval_words, seeds_words

RELOAD_SECONDS = 5


def escaped(value: Any) -> str:
    """Returns a value as text for HTML; a float has four significant digits."""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def asset(name: str) -> str:
    """Returns the text of a file in assets/."""
    return (Path(__file__).resolve().parent / "assets" / name).read_text(encoding="utf-8")


def page_data(table: pd.DataFrame, figures: list[Figure]) -> str:
    """Returns the table and the figures as JSON for page.js; plotly checks the figures."""
    from plotly.graph_objects import Figure as Plot

    rows = [[rounded(cell) if isinstance(cell, float) else cell for cell in row] for row in table.to_dict("split")["data"]]
    plots = {figure.name: json.loads(Plot(figure.plot, skip_invalid=False).to_json()) for figure in figures}
    data = json.dumps({"columns": list(table.columns), "rows": rows, "figures": plots}, separators=(",", ":"))
    return data.replace("<", "\\u003c")  # no "</script>" in the data


def document(title: str, body: str, data: str, head: str = "", more_script: str = "") -> str:
    """Returns the HTML file. `data` comes from page_data, `head` is added to the file's head."""
    from plotly.offline import get_plotlyjs

    parts = {"title": escaped(title), "head": head, "style": asset("page.css"), "body": body, "plotly": get_plotlyjs()}
    return Template(asset("page.html")).substitute(parts | {"data": data, "script": asset("page.js") + more_script})


def tile(name: str, value: str, more: str = "", first: bool = False) -> str:
    """Returns a tile: a number or word of the answer, with its name above and `more` below."""
    small = f"<small>{escaped(more)}</small>" if more else ""
    return f"<div{' class=first' if first else ''}><dt>{escaped(name)}</dt><dd>{escaped(value)}{small}</dd></div>"


def answer(summary: Summary) -> str:
    """Returns the first section of the page: the best configuration, and the confidence in it."""
    sure = f"<b>{CONFIDENCE[summary.confidence]}</b> {escaped(summary.verdict)}"
    config = list(summary.best.config.items()) if summary.best else []
    if summary.ladder:
        config = ladder_config(summary.ladder)
    best = (tile(name if i else f"best {name}", format_value(value), first=not i) for i, (name, value) in enumerate(config))
    return (
        f'<section class="answer {summary.confidence}" id="answer" aria-label="answer"><dl class=tiles>{"".join(best)}</dl>'
        f"<p class=verdict>Can I rely on it? {sure}</p>"
        f'<dl class="tiles facts">{"".join(_facts(summary))}</dl></section>'
    )


def _facts(summary: Summary) -> Iterator[str]:
    """Yields the small tiles of the answer: losses, then cost."""
    best, gain, cost, level = summary.best, summary.gain, summary.cost, f"{summary.level:.0%}"
    if summary.ladder:
        yield from (tile(*words) for words in ladder_tiles(summary.ladder))
    if best:
        seeds = seeds_words(best, summary)
        seeds += "" if best.in_one_piece is None else f"; {best.in_one_piece:.4f} in one piece"
        sure = f"{level}: {interval_words(best)}; " if interval_words(best) else ""
        yield tile(
            "loss" if summary.program else "loss, nats per token",
            "none" if best.val_loss is None else f"{best.val_loss:.4f}",
            f"{sure}{seeds}",
        )
        if gain and gain.mean is not None:
            sure = f"{level}: {interval_words(gain)}" if interval_words(gain) else "no interval: one seed"
            yield tile("better than the baseline by", f"{gain.mean:.4f}", sure)
        if best.probability_best is not None:
            yield tile("probability of being best", f"{best.probability_best:.0%}", compared(best))
        if best.share_of_budget < 1:
            yield tile("compared at", f"{best.share_of_budget:.3g} of the budget")
    took = f"{cost.seconds / 60:,.1f} min" if cost.seconds < 7200 else f"{cost.seconds / 3600:,.1f} h"
    yield tile("it took", took, f"{amount(cost.tokens)} {summary.unit}, {cost.trainings:.1f} full trainings' worth")
    if summary.faster:
        times = f"{summary.faster.times:.1f} times as fast"
        yield tile("within the noise", times, f"trial {summary.faster.trial_id}, {summary.faster.behind:.4f} behind")
    if summary.compiled:
        yield tile("compiled, speed", f"{summary.compiled.gain:.2f} times", compiled_words(summary.compiled))


def next_steps(summary: Summary) -> str:
    """Returns the section of commands to copy; they wrap between their words, and not at hyphens."""
    rows = "<h2 id=next>What to do next</h2>"
    for step in summary.next:
        words = " ".join(f"<span>{escaped(word)}</span>" for word in step.command.split(" "))
        rows += f"<div class=command><span>{escaped(step.what)}</span><code tabindex=0>{words}</code>"
        rows += f'<button data-copy aria-label="copy the command: {escaped(step.what)}">copy</button></div>'
    return rows


def verification(ladder: LadderSummary) -> str:
    """Returns the section of what a ladder verified, and of the reasons to trust its answer less."""
    lines = "".join(f"<li>{escaped(line)}</li>" for line in verification_lines(ladder))
    return f"<h2 id=verification>Predicted and seen</h2><ul>{lines}</ul>" if lines else ""


def figure_section(figure: Figure, more: str = "") -> str:
    """Returns the section of a figure: its description, the drawing, and buttons that save files."""
    name, title, says = figure.name, escaped(figure.title), escaped(figure.says)
    return (
        f"<section><h2 id={name}>{title}</h2><p class=soft>{says}</p>{more}"
        f'<div class=plot id="plot-{name}" role=img aria-label="{says}"></div>'
        f'<div class=tools><button data-save=png data-of={name} aria-label="{title} as PNG">PNG</button> '
        f'<button data-save=csv data-of={name} aria-label="{title} as CSV">CSV</button> </div></section>'
    )


def settings_rows(search: SearchSpec) -> str:
    """Returns the rows of the table of settings, versions and fingerprints."""
    groups = {
        "asked for": {n: v for n, v in vars(search.options).items() if v not in (None, (), False)},
        "searched": search.range_texts,
        **search.described(),
        "made with": search.origin,
    }
    return "".join(
        f"<tr><td>{escaped(group)}</td><td>{escaped(name)}</td><td>{escaped(setting_text(value))}</td></tr>"
        for group, values in groups.items()
        for name, value in values.items()
    )


def setting_text(value: Any) -> Any:
    """Returns a setting as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting_text(inner)}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def page_title(report: Report) -> str:
    """Returns the title of a search's page."""
    summary = report.summary
    what = f"space {summary.space}, preset {summary.preset}, {summary.data} data"
    if summary.ladder:
        what = f"a ladder to {summary.ladder.target}, {summary.data} data"
    what = summary.program or what
    return f"Search {summary.name}: {what}"


def page_body(report: Report, more: str = "") -> str:
    """Returns the body of a search's page; `more` is a sentence about what it lacks so far."""
    said = {name: f"<p class=soft>{escaped(words)}</p>" for name, words in report.notes.items()}
    sections = [figure_section(figure, said.pop(figure.name, "")) for figure in report.figures] + list(said.values())
    parts = {
        "title": escaped(page_title(report)),
        "status": f"<p class=soft role=status id=more-to-come>{escaped(more)}</p>" if more else "",
        "answer": answer(report.summary),
        "steps": next_steps(report.summary) + (verification(report.summary.ladder) if report.summary.ladder else ""),
        "sections": "".join(sections),
        "heads": "".join(f"<th scope=col><button>{escaped(name)}</button></th>" for name in report.table.columns),
        "settings": settings_rows(report.search),
    }
    return Template(asset("search.html")).substitute(parts)


def page(report: Report, more: str = "") -> str:
    """Returns the page of one search. With `more` the page loads itself again every RELOAD_SECONDS."""
    head = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if more else ""
    return document(page_title(report), page_body(report, more), page_data(report.table, report.figures), head)
