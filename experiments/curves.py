"""Recorded curves of full-length trainings, as rung_metric.py writes them.

One row a report: trial_id (the configuration), seed, tokens_seen, val_loss (nats per token), val_loss_ema, and a column for
each hyper-parameter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from myllm.errors import InputError


@dataclass(frozen=True)
class Curves:
    """n configurations, each trained with several seeds, and their losses at the marks."""

    configs: tuple[dict[str, Any], ...]
    """n sets of hyper-parameters; empty ones where the file has no such columns"""
    losses: np.ndarray
    """(n, seeds, marks), nats per token: the rung metric, and val_loss at the last mark; NaN from divergence on"""
    marks: tuple[int, ...]
    """tokens_seen, increasing; the last is the budget"""
    truth: np.ndarray | None = None
    """(n,) expected final loss in nats per token, where it is known"""

    @property
    def budget(self) -> int:
        """Tokens of a full training."""
        return self.marks[-1]

    @property
    def finals(self) -> np.ndarray:
        """(n, seeds) loss at the full budget; of a diverged run the worst of all that did not diverge."""
        finals = self.losses[..., -1]
        finite = np.isfinite(finals)
        return np.where(finite, finals, finals[finite].max() if finite.any() else np.nan)

    @property
    def means(self) -> np.ndarray:
        """(n,) expected final loss: the truth where it is known, else the mean over seeds."""
        return self.finals.mean(axis=1) if self.truth is None else self.truth


def read_curves(path: Path, metric: str = "val_loss") -> Curves:
    """The curves of a CSV file. Raises InputError where it is missing, or not such a file.

    Where a configuration has fewer seeds than another, its own are repeated in turn: all losses are recorded ones, and a
    configuration with one seed shows no noise. A mark that a run lacks is NaN, as if it had diverged there.
    """
    try:
        table = pd.read_csv(path, dtype={"trial_id": str})
    except (OSError, ValueError) as error:
        raise InputError(f"--history {path}: not a CSV file that can be read ({error})") from None
    missing = {"trial_id", "tokens_seen", "val_loss", metric} - set(table.columns)
    if missing or table.empty:
        raise InputError(f"--history {path}: it lacks {', '.join(sorted(missing)) or 'rows'}")
    if "seed" not in table:
        table["seed"] = 0
    table["diverged"] = ~np.isfinite(table["val_loss"])
    key = ["trial_id", "seed", "tokens_seen"]
    wide = table.drop_duplicates(key, keep="last").set_index(key).unstack()  # a row a run, a column a mark
    losses = wide[metric].mask(wide["diverged"].astype(float) != 0)
    losses.iloc[:, -1] = wide["val_loss"].iloc[:, -1]
    marks = tuple(int(mark) for mark in losses.columns)
    short = wide["diverged"].iloc[:, -1].isna() & ~wide["diverged"].eq(True).any(axis=1)
    for name, seed in losses.index[short]:
        raise InputError(f"--history {path}: trial {name} seed {seed} ends before the full budget of {marks[-1]} tokens")
    runs = [rows.to_numpy(float) for _, rows in losses.groupby("trial_id")]
    seeds = max(map(len, runs))
    padded = np.stack([run[np.arange(seeds) % len(run)] for run in runs])  # (n, seeds, marks)
    names = [n for n in table if n not in (*key, "diverged") and not n.startswith("val_loss")]
    values = table.groupby("trial_id")[names].first() if names else None
    rows = [()] * len(runs) if values is None else values.itertuples(index=False, name=None)
    configs = tuple(dict(zip(names, row, strict=True)) for row in rows)
    return Curves(configs, np.where(np.isfinite(padded), padded, np.nan), marks)
