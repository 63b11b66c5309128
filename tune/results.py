"""The journal -> two tidy tables and the best configuration. Column names live here. Imports no ray."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

COMPLETED, STOPPED, DIVERGED, FAILED, INTERRUPTED = "completed", "stopped", "diverged", "failed", "interrupted"
STATUSES = (COMPLETED, STOPPED, DIVERGED, FAILED, INTERRUPTED)
DEFAULT_TRIAL = "00000"
"""the preset's reference configuration, always the first"""
HISTORY_COLUMNS = [
    "trial_id",
    "step",
    "tokens_seen",
    "train_loss",
    "val_loss",
    "val_bpb",
    "learning_rate",
    "grad_norm",
    "train_seconds",
    "tok_per_sec",
]
RESULT_COLUMNS = [
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


def status_of(reports: list[dict], failed: bool, budget_tokens: int) -> str:
    """One of STATUSES, from a trial's report events."""
    if failed:
        return FAILED
    last = reports[-1] if reports else {}
    if last.get("diverged"):
        return DIVERGED
    if last.get("tokens_seen", 0) >= budget_tokens:
        return COMPLETED
    return STOPPED if last.get("decision") == "stop" else INTERRUPTED


def tables(events: list[dict[str, Any]], budget_tokens: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(trials, history) of a journal: one row a trial; one row a report, each mark once."""
    drawn = {e["trial_id"]: e["config"] for e in events if e["event"] == "trial"}
    failures = {e["trial_id"]: e["reason"] for e in events if e["event"] == "failed"}
    checkpoints = {e["trial_id"]: e["path"] for e in events if e["event"] == "checkpoint"}
    reports: dict[str, list[dict]] = {trial_id: [] for trial_id in drawn}
    for event in events:
        if event["event"] == "report":
            reports[event["trial_id"]].append(event)
    rows = []
    for trial_id, config in drawn.items():
        mine = reports[trial_id]
        last = mine[-1] if mine else {}
        finite = [r["val_loss"] for r in mine if math.isfinite(r["val_loss"])]
        rows.append(
            {"trial_id": trial_id}
            | config
            | {
                "status": status_of(mine, trial_id in failures, budget_tokens),
                "best_val_loss": min(finite, default=math.nan),
                "checkpoint": checkpoints.get(trial_id, ""),
                "reason": failures.get(trial_id, ""),
            }
            | {name: last.get(name, math.nan) for name in ("val_loss", "val_bpb", "train_loss", "tok_per_sec")}
            | {name: last.get(name, 0) for name in ("tokens_seen", "step", "train_seconds")}
        )
    searched = list(next(iter(drawn.values()), {}))
    trials = pd.DataFrame(rows, columns=["trial_id", *searched, *RESULT_COLUMNS]).sort_values("trial_id", ignore_index=True)
    history = pd.DataFrame([r for mine in reports.values() for r in mine], columns=HISTORY_COLUMNS)
    return trials, history.sort_values(["trial_id", "step"], ignore_index=True)


def search_seconds(events: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of all sessions of a search, each from its beginning to its last event, however it ended."""
    total, begin, last = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] == "session":
            total, begin = total + last - begin, event["time"]
        last = event["time"]
    return total + last - begin


def best_trial(trials: pd.DataFrame) -> pd.Series | None:
    """The completed trial with the lowest val_loss at the full budget, the earlier of equals; None without one."""
    completed = trials[trials["status"] == COMPLETED]
    return None if completed.empty else completed.loc[completed["val_loss"].idxmin()]


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_results(run_dir: Path, events: list[dict[str, Any]], search: dict[str, Any]) -> None:
    """Writes trials.csv, history.csv and, once a trial has completed, best_config.json."""
    trials, history = tables(events, search["train"]["budget_tokens"])
    write_atomically(run_dir / "trials.csv", trials.to_csv(index=False))
    write_atomically(run_dir / "history.csv", history.to_csv(index=False))
    best = best_trial(trials)
    if best is None:
        return
    hyper_parameters = next(e["config"] for e in events if e["event"] == "trial" and e["trial_id"] == best["trial_id"])
    config = {
        "preset": search["config"]["preset"],
        "model": search["model"],
        "train": search["train"] | hyper_parameters,
        "data": search["data"],
        "result": {name: best[name] for name in ("trial_id", "val_loss", "val_bpb", "tokens_seen")},
    }
    size = config["train"]["micro_batch_size"]
    if size is not None:
        config["train"]["micro_batch_size"] = min(size, config["train"]["batch_size"])
    steps = config["train"]["budget_tokens"] // (config["train"]["batch_size"] * config["train"]["max_len"])
    config["train"]["eval_freq"] = max(1, steps // search["num_reports"])
    write_atomically(run_dir / "best_config.json", json.dumps(config, indent=2, default=lambda v: v.item()) + "\n")


def read_tables(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(trials, history) from a run folder's CSV files."""
    texts = {"trial_id": str, "checkpoint": str, "reason": str, "status": str}
    trials = pd.read_csv(run_dir / "trials.csv", dtype=texts, keep_default_na=True).fillna({"checkpoint": "", "reason": ""})
    return trials, pd.read_csv(run_dir / "history.csv", dtype={"trial_id": str})


def valid_name(name: str) -> bool:
    """Whether `name` is a plain folder name: letters, digits, dot, dash, underscore; no dot first."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) is not None
