"""The journal -> two tidy tables and the best configuration. Column names live here. Imports no ray."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tune.state import COMPLETED, SearchState

HISTORY_COLUMNS = [
    "trial_id",
    "step",
    "tokens_seen",
    "train_loss",
    "val_loss",
    "val_loss_ema",
    "val_bpb",
    "learning_rate",
    "grad_norm",
    "train_seconds",
    "tok_per_sec",
]
RESULT_COLUMNS = [
    "confirms",  # the trial whose configuration this one repeats on a fresh seed; empty for a drawn one
    "seed",
    "status",
    "val_loss",
    "val_bpb",
    "train_loss",
    "best_val_loss",
    "tokens_seen",
    "step",
    "train_seconds",
    "tok_per_sec",
    "checkpoint",
    "reason",
]


def tables(state: SearchState) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(trials, history) of a search: one row a trial; one row a report, each mark once."""
    rows = []
    for trial_id, config in state.configs.items():
        last = state.last_report(trial_id) or {}
        finite = [r["val_loss"] for r in state.reports[trial_id].values() if math.isfinite(r["val_loss"])]
        checkpoints = state.checkpoints[trial_id]
        rows.append(
            {"trial_id": trial_id, "seed": state.plan.seed}
            | config
            | {
                "confirms": state.confirms.get(trial_id, ""),
                "status": state.status[trial_id],
                "best_val_loss": min(finite, default=math.nan),
                "checkpoint": checkpoints[max(checkpoints)] if checkpoints else "",
                "reason": state.reasons.get(trial_id, ""),
            }
            | {name: last.get(name, math.nan) for name in ("val_loss", "val_bpb", "train_loss", "tok_per_sec")}
            | {name: last.get(name, 0) for name in ("tokens_seen", "step", "train_seconds")}
        )
    searched = list(next(iter(state.configs.values()), {}))
    trials = pd.DataFrame(rows, columns=["trial_id", *searched, *RESULT_COLUMNS]).sort_values("trial_id", ignore_index=True)
    reports = [report for of_trial in state.reports.values() for report in of_trial.values()]
    history = pd.DataFrame(reports, columns=HISTORY_COLUMNS)
    return trials, history.sort_values(["trial_id", "step"], ignore_index=True)


def search_seconds(events: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of all sessions of a search, each from its beginning to its last event, however it ended."""
    total, begin, last = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] == "session":
            total, begin = total + last - begin, event["time"]
        last = event["time"]
    return total + last - begin


def standings(trials: pd.DataFrame) -> pd.DataFrame:
    """The configurations that reached the full budget, best first; indexed by the drawn trial's id.

    Columns: val_loss and val_bpb, means over seeds; spread, the largest minus the smallest val_loss; seeds, how many;
    probability_best, among the configurations with as many seeds as the first, NaN where seeds do not tell.
    Configurations with more seeds come before those with fewer: one seed says little (equal means: the earlier first).
    """
    done = trials[trials["status"] == COMPLETED]
    groups = done.groupby(done["confirms"].where(done["confirms"] != "", done["trial_id"]))
    table = pd.DataFrame(
        {
            "val_loss": groups["val_loss"].mean(),
            "val_bpb": groups["val_bpb"].mean(),
            "spread": groups["val_loss"].max() - groups["val_loss"].min(),
            "seeds": groups.size(),
            "probability_best": math.nan,
        }
    ).sort_values(["seeds", "val_loss"], ascending=[False, True], kind="stable")
    leaders = table.index[table["seeds"] == table["seeds"].max()]
    table.loc[leaders, "probability_best"] = probability_best(groups["val_loss"].agg(list)[leaders].tolist())
    return table


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


def best_trial(trials: pd.DataFrame) -> pd.Series | None:
    """The drawn trial whose configuration leads the standings; None where none has completed."""
    table = standings(trials)
    return None if table.empty else trials.set_index("trial_id", drop=False).loc[table.index[0]]


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_results(run_dir: Path, state: SearchState, search: dict[str, Any]) -> None:
    """Writes trials.csv, history.csv and, once a trial has completed, best_config.json."""
    trials, history = tables(state)
    write_atomically(run_dir / "trials.csv", trials.to_csv(index=False))
    write_atomically(run_dir / "history.csv", history.to_csv(index=False))
    best = best_trial(trials)
    if best is None:
        return
    standing = standings(trials).iloc[0].to_dict()
    config = {
        "preset": search["config"]["preset"],
        "model": search["model"],
        "train": search["train"] | state.configs[best["trial_id"]],
        "data": search["data"],
        "result": {"trial_id": best["trial_id"]} | standing | {"seeds": int(standing["seeds"])},
    }
    size = config["train"]["micro_batch_size"]
    if size is not None:
        config["train"]["micro_batch_size"] = min(size, config["train"]["batch_size"])
    steps = config["train"]["budget_tokens"] // (config["train"]["batch_size"] * config["train"]["max_len"])
    config["train"]["eval_freq"] = max(1, steps // search["num_reports"])
    write_atomically(run_dir / "best_config.json", json.dumps(config, indent=2, default=lambda v: v.item()) + "\n")


def read_tables(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(trials, history) from a run folder's CSV files."""
    texts = {"trial_id": str, "confirms": str, "checkpoint": str, "reason": str, "status": str}
    trials = pd.read_csv(run_dir / "trials.csv", dtype=texts, keep_default_na=True).fillna(
        {"confirms": "", "checkpoint": "", "reason": ""}
    )
    return trials, pd.read_csv(run_dir / "history.csv", dtype={"trial_id": str})


def valid_name(name: str) -> bool:
    """Whether `name` is a plain folder name: letters, digits, dot, dash, underscore; no dot first."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) is not None
