"""Trains a target directly on a grid of rate x batch, to judge the answer of a ladder.

    python experiments/ladder_live.py --out py.csv                                      # the grid, on the built-in corpus
    python experiments/ladder_live.py --out py.csv --config experiments/runs/NAME/best_config.json   # a ladder's answer
    python experiments/ladder_live.py --out py.csv --again 2                            # the best two on a second seed

The table OUT has one whole training a row: learning_rate, batch_size (windows), seed, loss (nats a token, on the windows
that a search reads), wide_loss (on WIDE windows), seconds. A training that OUT has already is left out, so that a run that
was broken off goes on.
"""

import csv
import json
import os
import time
from pathlib import Path

import torch

from myllm.system.errors import Parser, run_command
from myllm.system.files import cache_dir
from myllm.training.train import mean_loss, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import BuiltinSearch

SIZE = ("n_layer=6", "n_head=6", "n_embd=108")
RECIPE = ("dropout=0", "beta2=0.99", "warmup_ratio=0.02")
GRID = [(2e-3, 2), (1e-3, 2), (4e-3, 4), (2e-3, 4), (1e-3, 1), (2e-3, 1), (4e-3, 2), (4e-3, 1), (5e-4, 1), (8e-3, 8)]
"""learning rates and batches in windows"""
WIDE = 256  # validation windows of wide_loss
COLUMNS = ("learning_rate", "batch_size", "seed", "loss", "wide_loss", "seconds")

Point = tuple[float, int, int]
"""learning rate, batch in windows, seed"""


def read(path: Path) -> dict[Point, float]:
    """Returns the wide loss of each training that a table has."""
    if not path.exists():
        return {}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {(float(r["learning_rate"]), int(r["batch_size"]), int(r["seed"])): float(r["wide_loss"]) for r in rows}


def record(search: BuiltinSearch, point: Point, path: Path) -> None:
    """Trains the target at a point, and appends its row."""
    rate, batch, seed = point
    begin = time.time()
    run = open_run(search, {"learning_rate": rate, "batch_size": batch}, seed=seed, eval_freq=10**9)
    *_, last = train(run)
    wide = mean_loss(run, run.val_windows, run.val_windows.spread(WIDE))
    new = not path.exists()
    with path.open("a") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([*point, last.val_loss, wide, round(time.time() - begin)])
    print(point, f"{last.val_loss:.4f} {wide:.4f}", flush=True)


def main() -> None:
    parser = Parser(prog="ladder_live.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="table that is made, or goes on")
    parser.add_argument("--train_file", nargs="+", default=["builtin"], help="training data")
    parser.add_argument("--val_file", nargs="+", default=["builtin"], help="validation data")
    parser.add_argument("--size", nargs="+", default=SIZE, help="settings of the target that grow")
    parser.add_argument("--tokens", type=int, default=655_360, help="of one training")
    parser.add_argument("--config", type=Path, nargs="+", help="train these best_config.json on two seeds, and no grid")
    parser.add_argument("--again", type=int, help="train so many of the best on a second seed, and no grid")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.nice(15)
    sources = {"train_file": tuple(args.train_file), "val_file": tuple(args.val_file)}
    options = SearchOptions(preset="micro", set=(*args.size, *RECIPE), budget_tokens=args.tokens, **sources)
    search = resolve_search(options, cache_dir())
    known = read(args.out)
    points = [(rate, batch, 0) for rate, batch in GRID]
    if args.config:
        found = [json.loads(path.read_text())["train"] for path in args.config]
        points = [(one["learning_rate"], one["batch_size"], seed) for one in found for seed in (0, 1)]
    elif args.again:
        best = sorted((point for point in known if point[2] == 0), key=known.__getitem__)
        points = [(rate, batch, 1) for rate, batch, _ in best[: args.again]]
    for point in points:
        if point not in known:
            record(search, point, args.out)


if __name__ == "__main__":
    run_command(main)
