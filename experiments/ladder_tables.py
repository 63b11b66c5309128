"""Where small trainings have the best learning rate and batch, one corpus and size at a time, and their movement.

It also counts how often the interval of a loss forecast holds.

    python experiments/ladder_tables.py

From these come SMALL_RULE and SMALL_POINT in myllm/scaling_laws.py, and SMALL_PRIOR in tune/ladder/prior.py.
"""

import dataclasses
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from myllm.scaling_laws import Size, reference_point
from tune.ladder.answer import answer
from tune.ladder.fit import Run, fit_runs, levels_of
from tune.ladder.prior import SMALL_PRIOR, Belief

DATA = Path(__file__).resolve().parent / "data"
TABLES = {
    "docs-short": 98_304,
    "embedded-cosine": 98_304,
    "headers-cosine": 98_304,
    "js-cosine": 98_304,
    "sh-short": 98_304,
    "shakespeare-cosine": 98_304,
    "shakespeare-micro": 786_432,
    "dense/builtin-524k": 98_304,
    "dense/perl-131k": 98_304,
    "dense/pydocs-131k": 98_304,
    "dense/tinyshakespeare-131k": 98_304,
    "dense/tinyshakespeare-524k": 98_304,
}
"""recorded table -> parameters of its model, without embeddings and head"""
GRIDS = DATA / "scaling" / "small.csv.gz"  # whole trainings of 12k to 840k parameters on seven corpora
WINDOW = 128  # tokens
WORST = 5.5  # nats per token: an untrained model's loss
FEWEST_KNOWN = 6  # runs from which a loss is forecast


def table_runs(path: Path, params: int) -> list[Run]:
    """Returns the last losses of a table as runs, the mean over the seeds of each configuration."""
    rows = pd.read_csv(path, dtype={"trial_id": str})
    tokens = int(rows["tokens_seen"].max())
    ended = rows[rows["tokens_seen"] == tokens].groupby("trial_id")
    table = ended.agg({"val_loss": "mean", "learning_rate": "first", "batch_size": "first"}).dropna()
    size = Size(params, tokens)
    return [Run(size, row.learning_rate, row.batch_size * WINDOW, min(row.val_loss, WORST)) for row in table.itertuples()]


def forecasts_held(runs: list[Run]) -> list[bool]:
    """Returns whether forecasts of each size held its lowest loss: from all smaller sizes, and from the nearest alone."""
    levels, held = levels_of(runs), []
    for size, level in levels.items():
        smaller = [one for one in levels if one != size and one.params <= size.params and one.tokens <= size.tokens]
        for used in {tuple(smaller), tuple(smaller[-1:])}:
            known = [run for one in used for run in levels[one]]
            if len(known) >= FEWEST_KNOWN:
                loss = answer(known, size).loss
                held.append(loss.low <= min(run.loss for run in level) <= loss.high)
    return held


def main() -> None:
    groups: dict[str, list[Run]] = defaultdict(list)
    for row in pd.read_csv(GRIDS).itertuples():
        groups[row.corpus].append(Run(Size(row.params, row.tokens), row.learning_rate, row.batch_tokens, row.loss))
    for name, params in TABLES.items():
        groups[name] += table_runs(DATA / f"{name}.csv.gz", params)
    columns = ["corpus or table", "parameters", "tokens", "runs", "best rate (sd of its log)", "batch", "rule: rate, batch"]
    print(f"| {' | '.join(columns)} |")
    print("|-|-|-|-|-|-|-|")
    prior = dataclasses.replace(SMALL_PRIOR, form_sd=0.0, form_sd_by_distance=0.0)
    found = []
    for name, runs in groups.items():
        for size, level in levels_of(runs).items():
            (rate, batch), covariance = fit_runs(level, prior).optimum(size)
            rate_sd, batch_sd = np.sqrt(covariance.diagonal())
            rule = reference_point(size)
            found.append((rate - math.log(rule[0]), batch - math.log(rule[1])))
            numbers = f"{math.exp(rate):.1e} ({rate_sd:.2f}) | {math.exp(batch):.0f} ({batch_sd:.2f})"
            where = f"{name} | {size.params:,} | {size.tokens:,} | {len(level)}"
            print(f"| {where} | {numbers} | {rule[0]:.1e}, {rule[1]:.0f} |")
    off = np.array(found)
    means, sds = off.mean(0), off.std(0)
    print(
        f"\noff the rule, log rate: mean {means[0]:+.2f}, sd {sds[0]:.2f}; log batch: mean {means[1]:+.2f}, sd {sds[1]:.2f}"
    )
    held = [one for runs in groups.values() for one in forecasts_held(runs)]
    print(f"forecasts of the loss whose 90% interval held: {sum(held)} of {len(held)}")
    loose = dataclasses.replace(
        prior, rate_params=Belief(0, 1), rate_tokens=Belief(0, 1), batch_tokens=Belief(0, 1), loss_tokens=Belief(0, 0.3)
    )
    for name in ("built-in", "tinyshakespeare"):  # these have a target of 840k parameters
        fit = fit_runs(groups[name], loose)
        powers = [f"{fit.mean[place]:+.2f} ({math.sqrt(fit.covariance[place, place]):.2f})" for place in (5, 6, 9)]
        print(f"exponents on {name} alone: rate N^{powers[0]} D^{powers[1]}, batch D^{powers[2]}")


if __name__ == "__main__":
    main()
