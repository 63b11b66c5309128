"""Draws a running search for a terminal of any width. Needs neither Ray nor a clock."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tune.core.ranking import ranking, seed_noise
from tune.core.trials import (
    AUDIT,
    COMPLETED,
    DIVERGED,
    FAILED,
    PAUSED,
    REPLICATE,
    RUNNING,
    STOPPED,
    UNLIMITED_TRIALS,
    Trial,
    Trials,
)
from tune.estimate.forecast import Forecast
from tune.text.durations import duration
from tune.text.format import amount, format_settings, share_text

LABEL = 9  # columns
GOOD, BAD, WEAK = "green", "red", "dim"  # colours of the terminal's palette that can be read on black and on white


@dataclass(frozen=True)
class View:
    """The state of a search, as the screen shows it."""

    name: str
    trials: Trials
    rung_tokens: tuple[int, ...]
    workers: Sequence[Trial | None]
    """the trial that each worker trains; None for a free worker"""
    seconds: float
    """wall-clock seconds so far, all sessions together"""
    forecast: Forecast | None = None
    """the end of the search, once it is known"""
    training_share: float | None = None
    """share of the workers' time that went into training and evaluating"""
    note: str = ""
    """the present activity where no trial trains"""


def loss_text(trials: Trials, trial: Trial, tokens: int) -> str:
    """The mean loss at `tokens` with its standard error, and the number of its seeds."""
    losses, noise = trial.seeds_at(tokens), seed_noise(one.seeds_at(tokens) for one in trials.ranked_at(tokens))
    error = f" +- {noise / math.sqrt(len(losses)):.4f}" if noise is not None else ""
    return f"{sum(losses) / len(losses):.4f}{error}, {len(losses)} seed{'s' if len(losses) > 1 else ''}"


def left(view: View) -> float | None:
    """Seconds until the search ends; None before the first forecast."""
    return None if view.forecast is None else max(0.0, view.forecast.seconds - view.seconds)


def counts(trials: Trials) -> str:
    """The number of trials, and of each status. Diverged and failed trials are counted even where there are none."""
    statuses = Counter(trial.status for trial in trials.drawn)
    total = f" of {trials.num_samples}" if trials.num_samples < UNLIMITED_TRIALS else ""
    shown = [f"{len(trials.drawn)}{total}"]
    shown += [f"{statuses[s]} {s}" for s in (COMPLETED, PAUSED, STOPPED) if statuses[s]]
    shown += [f"{statuses[s]} {s}" for s in (DIVERGED, FAILED)]
    shown += [f"{trials.replicates} on other seeds"] if trials.replicates else []
    shown += [f"{len(trials.audits)} audited"] if trials.audits else []
    return ", ".join(shown)


def line(view: View) -> str:
    """The state of a search in one line, for a log."""
    trials, reached, best = view.trials, *ranking(view.trials)
    parts = [duration(view.seconds), f"trials {counts(trials)}", f"{amount(trials.tokens)} tokens"]
    rest = left(view)
    if rest is not None:
        parts.insert(1, f"{duration(rest)} left")
    if view.training_share is not None:
        parts.append(f"{view.training_share:.0%} of worker time training")
    if best:
        at = "" if reached == trials.budget_tokens else f" at {share_text(reached, trials.budget_tokens)}"
        parts.append(f"best val_loss {loss_text(trials, best[0], reached)}{at} (trial {best[0].trial_id})")
    if view.note:
        parts.append(view.note)
    return "; ".join(parts)


def render(view: View, width: int, height: int = 50) -> RenderableType:
    """The screen, `width` columns wide. It has at most `height` lines unless the parts above the workers need more."""
    trials, rest = view.trials, left(view)
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(width=LABEL - 1, no_wrap=True, style="bold")
    table.add_column(ratio=1)
    times = Text(duration(view.seconds))
    if rest is not None:
        times.append(f", about {duration(rest)} left")
    if view.note:
        times.append(f", {view.note}")
    table.add_row("search", Text.assemble((view.name, "bold"), "  ", times))
    done = view.seconds / view.forecast.seconds if view.forecast and view.forecast.seconds else 0.0
    table.add_row("", _bar(min(done, 1.0), f"{min(done, 1.0):.0%}" if view.forecast else "", None))
    table.add_row("trials", _colour_counts(counts(trials)))
    used = Text(f"{amount(trials.tokens)} tokens")
    if view.training_share is not None:
        used.append(f", {view.training_share:.0%} of worker time training")
    table.add_row("", used)
    for label, trial in _best_rows(trials):
        table.add_row(label, trial)
    table.add_row("rungs", _rungs(view, width))
    measure = Console(width=width)
    besides = len(measure.render_lines(table, measure.options))
    table.add_row("workers", _workers(view, max(1, height - besides), width))
    return table


def _colour_counts(text: str) -> Text:
    shown = Text(text)
    shown.highlight_regex(rf"[1-9]\d* ({DIVERGED}|{FAILED})", BAD)
    return shown


def _bar(share: float, text: str, width: int | None) -> RenderableType:
    bar = ProgressBar(100, 100 * share, width=width, style=WEAK, complete_style=GOOD, finished_style=GOOD)
    grid = Table.grid(padding=(0, 1, 0, 0), expand=width is None)
    grid.add_column(ratio=None if width else 1, width=width)
    grid.add_column(no_wrap=True, min_width=4 if width is None else None)
    grid.add_row(bar, text)
    return grid


def _best_rows(trials: Trials) -> list[tuple[str, Text]]:
    """The best trial and the baseline, each with its loss at the tokens where `ranking` compares."""
    reached, ordered = ranking(trials)
    if not ordered:
        return [("best", Text("no trial has reported yet", WEAK))]
    best, baseline = ordered[0], trials.baseline
    where = share_text(reached, trials.budget_tokens)
    at, where = (f" at {where}", where) if reached < trials.budget_tokens else ("", "the end")
    rows = []
    for label, trial in (("best", best), ("baseline", baseline)):
        if trial is None or (label == "baseline" and reached not in trial.losses):
            rows.append((label, Text(f"has not come to {where} yet", WEAK)))
            continue
        text = Text(f"{trial.trial_id}  val_loss {loss_text(trials, trial, reached)}{at}", GOOD if label == "best" else "")
        text.append(f"\n{format_settings(trial.config)}", WEAK if label == "baseline" else "default")
        rows.append((label, text))
    return rows


def _rungs(view: View, width: int) -> RenderableType:
    """For each rung: the trials that came there, those that are expected to, and those that went on."""
    trials = view.trials
    grid = Table.grid(padding=(0, 1, 0, 0))
    for tokens in (*view.rung_tokens, trials.budget_tokens):
        came = trials.count_at(tokens)
        on = sum(
            t.tokens > tokens or (t.status == RUNNING and t.segment_end_tokens > tokens) for t in trials.ranked_at(tokens)
        )
        expected = max(came, view.forecast.came.get(tokens, 0) if view.forecast else 0)
        at_end = tokens == trials.budget_tokens
        came += trials.count_by_rung[tokens, REPLICATE] if at_end else 0
        text = f"{came} of ~{expected}" if expected > came else f"{came}"
        text += "" if at_end else f", {on} on"
        bar = ProgressBar(
            max(1, expected), came, width=10 if width >= 60 else 6, style=WEAK, complete_style=GOOD, finished_style=GOOD
        )
        grid.add_row(share_text(tokens, trials.budget_tokens), bar, text)
    return grid


def _workers(view: View, most: int, width: int) -> RenderableType:
    """The trial of each worker and its progress, in `most` lines."""
    wide = width >= 70
    grid = Table.grid(padding=(0, 1, 0, 0), expand=wide)
    grid.add_column(no_wrap=True, min_width=5)
    bar_width = 10 if wide else 8
    grid.add_column(width=bar_width, min_width=bar_width)
    grid.add_column(no_wrap=True, min_width=14)
    if wide:
        grid.add_column(no_wrap=True, overflow="ellipsis", style=WEAK, ratio=1)
    shown = list(view.workers)
    if len(shown) > most:
        shown = shown[: max(1, most - 1)]
    for trial in shown:
        if trial is None:
            grid.add_row(Text("free", WEAK))
            continue
        budget = view.trials.budget_tokens
        bar = ProgressBar(budget, trial.tokens, width=bar_width, style=WEAK, complete_style=GOOD, finished_style=GOOD)
        loss = trial.reports[trial.tokens].val_loss if trial.reports else math.nan
        text = f"to {share_text(trial.segment_end_tokens, budget)}" + (f", {loss:.4f}" if math.isfinite(loss) else "")
        cells: list[RenderableType] = [_short_name(trial), bar, text]
        if wide:
            cells.append(format_settings(trial.config))
        grid.add_row(*cells)
    if len(shown) < len(view.workers):
        grid.add_row(Text(f"+{len(view.workers) - len(shown)}", WEAK))
    return grid


def _short_name(trial: Trial) -> str:
    """The trial's id: `ID+2` for the second replicate of ID, `ID*` for its audit."""
    if trial.source == AUDIT:
        return f"{trial.parent_id}*"
    if trial.source == REPLICATE:
        return f"{trial.parent_id}+{trial.trial_id.split('-seed')[-1] or 1}"
    return trial.trial_id
