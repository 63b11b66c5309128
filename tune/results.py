"""The trials -> two tidy tables, who is best, and the best configuration. Imports no ray."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from myllm.files import write_text
from tune.settings import Search
from tune.tables import HISTORY_COLUMNS, by_id, trial_columns, trial_row, write_tables
from tune.trials import DIVERGED, Report, Trials, standings

if TYPE_CHECKING:  # pandas takes half a second to import: only who reads tables waits for it
    import pandas as pd

DATA_KEYS = ("train_file", "val_file", "token_dtype", "text_column", "tokenizer", "tokenizer_sha256", "fingerprint")
"""what best_config.json says of the data"""
RIVALS = 200  # configurations that may be the best


def tables(trials: Trials, seed: int = 0) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """(trials, history) of a search with that seed: one row a trial; one row a report, each mark once."""
    import pandas as pd

    rows = [trial_row(trial, seed) for trial in by_id(trials)]
    reports = [list(trial.reports[tokens].values()) for trial in by_id(trials) for tokens in sorted(trial.reports)]
    history = pd.DataFrame(reports, columns=Report.KEYS)
    return pd.DataFrame(rows, columns=trial_columns(trials)), history[HISTORY_COLUMNS]


def search_seconds(events: Iterable[dict[str, Any]]) -> float:
    """Wall-clock seconds of all sessions of a search, each from its beginning to its last event, however it ended."""
    total, begin, last = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] == "session":
            total, begin = total + last - begin, event["time"]
        last = event["time"]
    return total + last - begin


def leaders(trials: Trials, most: int | None = None) -> "pd.DataFrame":
    """The configurations that came as far as two did, best first, all or `most`; indexed by trial_id. The order is that of
    `standings`.

    Columns: tokens_seen, where they are compared; val_loss and val_bpb there, means over seeds; spread, the largest minus
    the smallest val_loss; seeds, how many; probability_best, among those with more than one seed, of which the RIVALS best
    are compared, else NaN.
    """
    import pandas as pd

    tokens, ordered = standings(trials)
    rows = []
    for trial in ordered[:most]:
        seeds = [t for t in (trial, *trial.repeats) if tokens in t.losses or t.status == DIVERGED]
        losses, bits = (
            [t.reports[tokens][n] if tokens in t.losses else math.inf for t in seeds] for n in ("val_loss", "val_bpb")
        )
        spread = max(losses) - min(losses)
        rows.append((trial.trial_id, tokens, np.mean(losses), np.mean(bits), spread, len(losses), losses))
    columns = ["trial_id", "tokens_seen", "val_loss", "val_bpb", "spread", "seeds", "losses"]
    table = pd.DataFrame(rows, columns=columns).set_index("trial_id")
    table["probability_best"] = math.nan
    repeated = table.index[(table["seeds"] > 1) & np.isfinite(table["val_loss"].astype(float))][:RIVALS]
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
    write_tables(run_dir, trials, search.config.seed)
    write_best(run_dir, trials, search)


def write_best(run_dir: Path, trials: Trials, search: Search) -> None:
    """Writes best_config.json, once a trial has reported."""
    table = leaders(trials, RIVALS)
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
