"""Where the fit of a ladder has the best learning rate and batch of each recorded table, one table at a time.

    python experiments/ladder_tables.py

From the movement between tables come the exponents of SMALL_RULE in myllm/scaling_laws.py.
"""

import math
from pathlib import Path

import pandas as pd

from myllm.scaling_laws import Size
from tune.ladder.fit import Run, fit_runs
from tune.ladder.prior import SMALL_PRIOR

DATA = Path(__file__).resolve().parent / "data"
TABLES = {
    "docs-short": 98_304,
    "embedded-cosine": 98_304,
    "headers-cosine": 98_304,
    "js-cosine": 98_304,
    "sh-short": 98_304,
    "shakespeare-cosine": 98_304,
    "shakespeare-micro": 786_432,
    "dense/pydocs-131k": 98_304,
    "dense/tinyshakespeare-131k": 98_304,
}
"""table -> parameters of its model, without embeddings and head"""
WINDOW = 128  # tokens
WORST = 5.5  # nats per token: an untrained model's loss


def table_runs(path: Path, params: int) -> list[Run]:
    """Returns the last losses of a table as runs, the mean over the seeds of each configuration."""
    rows = pd.read_csv(path, dtype={"trial_id": str})
    tokens = int(rows["tokens_seen"].max())
    ended = rows[rows["tokens_seen"] == tokens].groupby("trial_id")
    table = ended.agg({"val_loss": "mean", "learning_rate": "first", "batch_size": "first"}).dropna()
    size = Size(params, tokens)
    return [Run(size, row.learning_rate, row.batch_size * WINDOW, min(row.val_loss, WORST)) for row in table.itertuples()]


def main() -> None:
    print("| table | parameters | tokens | configurations | best rate | best batch, tokens |\n|-|-|-|-|-|-|")
    for name, params in TABLES.items():
        path = DATA / f"{name}.csv.gz"
        if not path.exists():
            continue
        runs = table_runs(path, params)
        (rate, batch), _ = fit_runs(runs, SMALL_PRIOR).optimum(runs[0].size)
        size = f"{params:,} | {runs[0].size.tokens:,}"
        print(f"| {name} | {size} | {len(runs)} | {math.exp(rate):.2e} | {math.exp(batch):.0f} |")


if __name__ == "__main__":
    main()
