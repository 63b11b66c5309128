"""Draws a running search for a terminal of any width. Needs neither Ray nor a clock."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from myllm.text.durations import duration
from myllm.text.format import amount, format_settings, share_text
from tune.core.ranking import ranking, seed_noise
from tune.core.trials import DIVERGED, FAILED, REPLICATE, RUNNING, STATUSES, UNLIMITED_TRIALS, Trial, Trials
from tune.estimate.forecast import Forecast

BAR = 8  # columns
GOOD, BAD, WEAK = "green", "red", "dim"  # colours of the terminal's palette that can be read on black and on white


@dataclass(frozen=True)
class View:
    """The state of a search, as the screen shows it."""

    name: str
    trials: Trials
    rung_tokens: tuple[int, ...]
    workers: Sequence[Trial | None]  # the trial that each worker trains; None for a free worker
    seconds: float  # wall-clock seconds so far, all sessions together
    forecast: Forecast | None = None  # the end of the search, once it is known
    training_share: float | None = None  # of the workers' time; training includes evaluating
    unit: str = "tokens"  # of the budget
    note: str = ""  # the present activity where no trial trains, and the level of a ladder

    @property
    def left(self) -> str:
        """The time until the search ends; empty before the first forecast."""
        return f"{duration(max(0.0, self.forecast.seconds - self.seconds))} left" if self.forecast else ""

    @property
    def trained(self) -> list[str]:
        """The tokens of all trials, and the share of the workers' time that they took once it is known."""
        share = self.training_share
        return [f"{amount(self.trials.tokens)} {self.unit}"] + (
            [] if share is None else [f"{share:.0%} of worker time training"]
        )


def counts(trials: Trials) -> str:
    """The number of trials, and of each status. Diverged and failed trials are counted even where there are none."""
    statuses = Counter(trial.status for trial in trials.drawn if trial.status != RUNNING)
    total = f" of {trials.num_samples}" if trials.num_samples < UNLIMITED_TRIALS else ""
    shown = [f"{len(trials.drawn)}{total}"]
    shown += [f"{statuses[s]} {s}" for s in STATUSES if statuses[s] or s in (DIVERGED, FAILED)]
    shown += [f"{trials.replicates} on other seeds"] if trials.replicates else []
    shown += [f"{len(trials.audits)} audited"] if trials.audits else []
    return ", ".join(shown)


def loss_text(trials: Trials, trial: Trial, tokens: int) -> str:
    """The mean loss at `tokens` with its standard error, the number of its seeds, and a rung's share of the budget."""
    seeds, noise = len(trial.seeds_at(tokens)), seed_noise(one.seeds_at(tokens) for one in trials.ranked_at(tokens))
    error = f" +- {noise / math.sqrt(seeds):.4f}" if noise is not None else ""
    at = f" at {share_text(tokens, trials.budget_tokens)}" if tokens < trials.budget_tokens else ""
    return f"val_loss {trial.mean_at(tokens):.4f}{error}, {seeds} seed{'s' if seeds > 1 else ''}{at}"


def line(view: View) -> str:
    """The state of a search in one line, for a log."""
    reached, best = ranking(view.trials)
    parts = [duration(view.seconds), view.left, f"trials {counts(view.trials)}", *view.trained]
    if best:
        parts.append(f"best {loss_text(view.trials, best[0], reached)} (trial {best[0].trial_id})")
    return "; ".join(filter(None, [*parts, view.note]))


def render(view: View, width: int, height: int = 50) -> RenderableType:
    """The screen, `width` columns wide. It has at most `height` lines unless the parts above the workers need more."""
    table = _grid()
    table.expand = True
    table.add_column(width=8, no_wrap=True, style="bold")
    table.add_column(ratio=1)
    times = [duration(view.seconds), f"about {view.left}" if view.left else "", view.note]
    table.add_row("search", Text.assemble((view.name, "bold"), "  ", ", ".join(filter(None, times))))
    done = min(1.0, view.seconds / view.forecast.seconds) if view.forecast and view.forecast.seconds else 0.0
    progress = _grid()
    progress.add_column(ratio=1)
    progress.add_row(_bar(done, 1.0, None), f"{done:.0%}" if view.forecast else "")
    table.add_row("", progress)
    statuses = Text(counts(view.trials))
    statuses.highlight_regex(rf"[1-9]\d* ({DIVERGED}|{FAILED})", BAD)
    table.add_row("trials", statuses)
    table.add_row("", ", ".join(view.trained))
    for label, trial in _best_rows(view.trials):
        table.add_row(label, trial)
    table.add_row("rungs", _rungs(view))
    above = len(Console(width=width).render_lines(table))
    table.add_row("workers", _workers(view, max(1, height - above), wide=width >= 70))
    return table


def _grid() -> Table:
    return Table.grid(padding=(0, 1, 0, 0))


def _bar(done: float, total: float, width: int | None = BAR) -> ProgressBar:
    return ProgressBar(total, done, width=width, style=WEAK, complete_style=GOOD, finished_style=GOOD)


def _best_rows(trials: Trials) -> list[tuple[str, Text]]:
    """The best trial and the baseline, each with its loss at the tokens where `ranking` compares."""
    reached, ordered = ranking(trials)
    if not ordered:
        return [("best", Text("no trial has reported yet", WEAK))]
    rows = []
    for label, trial, style in (("best", ordered[0], GOOD), ("baseline", trials.drawn[0], "default")):
        text = Text("has not come so far yet", WEAK)
        if reached in trial.losses:
            text = Text(f"{trial.trial_id}  {loss_text(trials, trial, reached)}\n", style)
            text.append(format_settings(trial.config), "default" if label == "best" else WEAK)
        rows.append((label, text))
    return rows


def _rungs(view: View) -> Table:
    """For each rung: the trials that came there, those that are expected to, and those that went on."""
    trials, grid = view.trials, _grid()
    for tokens in (*view.rung_tokens, trials.budget_tokens):
        ranked = trials.ranked_at(tokens)
        on = sum(t.tokens > tokens or (t.status == RUNNING and t.segment_end_tokens > tokens) for t in ranked)
        at_end = tokens == trials.budget_tokens
        came = len(ranked) + (trials.count_by_rung[tokens, REPLICATE] if at_end else 0)
        expected = view.forecast.came.get(tokens, 0) if view.forecast else 0
        text = f"{came} of ~{expected}" if expected > came else f"{came}"
        bar = _bar(came, max(1, came, expected))
        grid.add_row(share_text(tokens, trials.budget_tokens), bar, text if at_end else f"{text}, {on} on")
    return grid


def _workers(view: View, most: int, wide: bool) -> Table:
    """The trial of each worker and its progress, in `most` lines."""
    budget, grid = view.trials.budget_tokens, _grid()
    grid.expand = wide
    for width in (5, BAR, 14):
        grid.add_column(no_wrap=True, min_width=width)
    grid.add_column(no_wrap=True, overflow="ellipsis", style=WEAK, ratio=1)
    shown = view.workers if len(view.workers) <= most else view.workers[: max(1, most - 1)]
    for trial in shown:
        if trial is None:
            grid.add_row(Text("free", WEAK))
            continue
        name = trial.trial_id.replace("-seed", "+").replace("-again", "+").replace("-audit", "*")
        loss = f", {trial.reports[trial.tokens].val_loss:.4f}" if trial.reports else ""
        text = f"to {share_text(trial.segment_end_tokens, budget)}{loss}"
        grid.add_row(name, _bar(trial.tokens, budget), text, format_settings(trial.config) if wide else "")
    if len(shown) < len(view.workers):
        grid.add_row(Text(f"+{len(view.workers) - len(shown)}", WEAK))
    return grid
