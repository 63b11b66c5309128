"""The trials -> two tidy tables, who is best, and the best configuration. Column names live here. Imports no ray."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from myllm.files import write_text
from tune.settings import Search
from tune.trials import DIVERGED, REPEAT, REPORTED, Trials, standings

HISTORY_COLUMNS = ["trial_id", *(name for name in REPORTED if name != "diverged")]
RESULT_COLUMNS = [
    *("kind", "of", "seed", "status", "val_loss", "val_bpb", "train_loss", "best_val_loss", "tokens_seen", "step"),
    *("train_seconds", "tok_per_sec", "checkpoint", "reason"),
]
"""kind: drawn, proposed from what was known, or repeat: a configuration on another seed, that of the trial `of`"""
DATA_KEYS = ("train_file", "val_file", "token_dtype", "text_column", "tokenizer", "tokenizer_sha256", "fingerprint")
"""what best_config.json says of the data"""


def tables(trials: Trials, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(trials, history) of a search with that seed: one row a trial; one row a report, each mark once."""
    rows = []
    for trial in trials.by_id.values():
        last = trial.reports.get(trial.tokens, {})
        finite = [report["val_loss"] for report in trial.reports.values() if math.isfinite(report["val_loss"])]
        rows.append(
            {"trial_id": trial.trial_id, "seed": seed}
            | trial.config
            | {
                "kind": trial.kind,
                "of": trial.of if trial.kind == REPEAT else "",
                "status": trial.status,
                "best_val_loss": min(finite, default=math.nan),
                "checkpoint": trial.checkpoints[max(trial.checkpoints)] if trial.checkpoints else "",
                "reason": trial.reason,
            }
            | {name: last.get(name, math.nan) for name in ("val_loss", "val_bpb", "train_loss", "tok_per_sec")}
            | {name: last.get(name, 0) for name in ("tokens_seen", "step", "train_seconds")}
        )
    searched = list(trials.drawn[0].config) if trials.drawn else []
    table = pd.DataFrame(rows, columns=["trial_id", *searched, *RESULT_COLUMNS]).sort_values("trial_id", ignore_index=True)
    reports = [report for trial in trials.by_id.values() for report in trial.reports.values()]
    history = pd.DataFrame(reports, columns=HISTORY_COLUMNS)
    return table, history.sort_values(["trial_id", "tokens_seen"], ignore_index=True)


def search_seconds(events: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of all sessions of a search, each from its beginning to its last event, however it ended."""
    total, begin, last = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] == "session":
            total, begin = total + last - begin, event["time"]
        last = event["time"]
    return total + last - begin


def leaders(trials: Trials) -> pd.DataFrame:
    """The configurations that came as far as two did, best first; indexed by trial_id. The order is that of `standings`.

    Columns: tokens_seen, where they are compared; val_loss and val_bpb there, means over seeds; spread, the largest minus
    the smallest val_loss; seeds, how many; probability_best, among those with more than one seed, else NaN.
    """
    tokens, ordered = standings(trials)
    rows = []
    for trial in ordered:
        seeds = [t for t in (trial, *trial.repeats) if tokens in t.losses or t.status == DIVERGED]
        losses, bits = (
            [t.reports[tokens][n] if tokens in t.losses else math.inf for t in seeds] for n in ("val_loss", "val_bpb")
        )
        spread = max(losses) - min(losses)
        rows.append((trial.trial_id, tokens, np.mean(losses), np.mean(bits), spread, len(losses), losses))
    columns = ["trial_id", "tokens_seen", "val_loss", "val_bpb", "spread", "seeds", "losses"]
    table = pd.DataFrame(rows, columns=columns).set_index("trial_id")
    table["probability_best"] = math.nan
    repeated = table.index[(table["seeds"] > 1) & np.isfinite(table["val_loss"].astype(float))]
    table["probability_best"] = pd.Series(
        probability_best(table.loc[repeated, "losses"].tolist()), index=repeated, dtype=float
    )
    return table.drop(columns="losses")


def probability_best(losses: list[list[float]], draws: int = 20_000) -> list[float]:
    """How probable it is that each configuration has the lowest expected loss, given its `losses` on some seeds.

    Taken for normal noise with one variance for all, unknown, and nothing known before (Gelman et al., Bayesian Data
    Analysis, section 3.2: the variance is scaled inverse chi-squared, the means are normal around the sample means). The
    answer is a share of `draws`, always the same ones. NaN where no configuration has two seeds.
    """
    freedom = sum(len(of_one) - 1 for of_one in losses)
    if freedom == 0:
        return [math.nan] * len(losses)
    means = np.array([np.mean(of_one) for of_one in losses])
    squares = sum(float(np.sum((np.array(of_one) - mean) ** 2)) for of_one, mean in zip(losses, means, strict=True))
    rng = np.random.default_rng(0)
    sigma = np.sqrt(squares / rng.chisquare(freedom, (draws, 1)))
    drawn = means + sigma / np.sqrt([len(of_one) for of_one in losses]) * rng.standard_normal((draws, len(losses)))
    return np.bincount(drawn.argmin(axis=1), minlength=len(losses)) / draws


def seed_noise(trials: Trials, tokens: int) -> float | None:
    """The standard deviation of the loss at `tokens` between seeds, nats per token: pooled over all configurations that
    were seen there on several. None where none was.
    """
    several = [np.array(losses) for trial in trials.at(tokens) if len(losses := trial.seeds_at(tokens)) > 1]
    several = [losses for losses in several if np.isfinite(losses).all()]
    if not several:
        return None
    squares = sum(float(np.sum((losses - losses.mean()) ** 2)) for losses in several)
    return math.sqrt(squares / sum(len(losses) - 1 for losses in several))


def write_results(run_dir: Path, trials: Trials, search: Search) -> None:
    """Writes trials.csv, history.csv and, once a trial has reported, best_config.json."""
    for name, table in zip(("trials", "history"), tables(trials, search.config.seed), strict=True):
        write_text(run_dir / f"{name}.csv", table.to_csv(index=False))
    table = leaders(trials)
    if table.empty:
        return
    best = trials.by_id[table.index[0]]
    config = {
        "preset": search.config.preset,
        "model": vars(search.model),
        "train": vars(search.train_config(best.config)),
        "data": {name: getattr(search.data, name) for name in DATA_KEYS},
        "result": {"trial_id": best.trial_id} | table.reset_index().iloc[0].to_dict(),
    }
    write_text(run_dir / "best_config.json", json.dumps(config, indent=2, default=lambda v: v.item()) + "\n")
