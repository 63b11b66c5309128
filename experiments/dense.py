"""Ours and Optuna on dense tables of real trainings, on one simulated clock: what a live comparison would say, in minutes.

    python experiments/dense.py --tables experiments/data/dense/*.csv.gz --lengths 4 8 --orders 40
    python experiments/dense.py --methods optuna ours --scheduler explore-finish --rungs 0.25:2

A dense table has hundreds of configurations, so a suggestion can be played as the nearest configuration that is left. Each
method searches for so many full trainings' worth of time a slot, with --slots trainings at once that take the same time
whatever their batch. It knows the table's ranges alone. Its score is the regret of its pick: the mean final loss over the
seeds that did not pick it, minus the lowest mean of the table, in nats per token; without a pick the mean configuration's.

  ours         the rule of --scheduler as Replay plays it, with its end known; the configuration in the middle of the ranges
               is the baseline, and comes first
  optuna       TPESampler and SuccessiveHalvingPruner with rungs at 1/16 and 1/4 and one in 4 going on, as in versus.py
  optuna-NAME  an expert's choice: NAME is sampler-pruner, of tpe, multivariate, gp, random and sh16, sh8, hyperband, none

Printed: the mean regret of each method with its standard error, and the paired difference to the first method. Searches
that were played are kept in --cache by method, table, length and order, so the command goes on where it stopped.
"""

import functools
import heapq
import itertools
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from curves import Curves, read_curves
from replay import Replay

from myllm.system.errors import InputError, Parser, run_command
from tune.config.options import SearchOptions
from tune.config.spec import RUNS_DIR
from tune.core.trials import COMPLETED

HERE = Path(__file__).parent / "data" / "dense"
PRUNERS = {"sh16": (1 / 16, 4), "sh8": (1 / 8, 4), "hyperband": (1 / 16, 4), "none": (1.0, 4)}
"""share of the budget at the first rung, and one in how many goes on"""


def scaled(curves: Curves) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(names, (n, d) points of the unit cube, (d,) lowest, (d,) highest) of the logarithms of the hyper-parameters."""
    names = list(curves.configs[0])
    logs = np.log([[config[name] for name in names] for config in curves.configs])
    low, high = logs.min(axis=0), logs.max(axis=0)
    return names, (logs - low) / (high - low), low, high


def optuna_study(sampler: str, pruner: str, marks: int, seed: int) -> Any:
    """An empty study with the sampler and the pruner of these names, whose steps are `marks` report points."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {
        "tpe": optuna.samplers.TPESampler,
        "multivariate": functools.partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
        "gp": optuna.samplers.GPSampler,
        "random": optuna.samplers.RandomSampler,
    }
    share, factor = PRUNERS[pruner]
    first = max(1, round(share * marks))
    if pruner == "hyperband":
        pruning = optuna.pruners.HyperbandPruner(min_resource=first, max_resource=marks, reduction_factor=factor)
    elif pruner == "none":
        pruning = optuna.pruners.NopPruner()
    else:
        pruning = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    name = f"{sampler} {seed}"  # Hyperband draws its brackets from it
    return optuna.create_study(sampler=samplers[sampler](seed=seed), pruner=pruning, study_name=name)


def play_optuna(curves: Curves, trainings: float, slots: int, order: int, sampler: str, pruner: str) -> dict[str, Any]:
    """One search of Optuna's over the table; its pick is study.best_trial."""
    from optuna.trial import TrialState

    n, seeds, marks = curves.losses.shape
    names, points, low, high = scaled(curves)
    batches = sorted({config["batch_size"] for config in curves.configs})
    rng = np.random.default_rng(order)
    seed_of, left = rng.integers(0, seeds, n), np.ones(n, bool)
    study, end = optuna_study(sampler, pruner, marks, order), trainings * marks
    running: list[tuple[float, int, Any, int, int]] = []  # (when it reports, order of beginning, trial, row, mark)
    begun, done = itertools.count(), []

    def begin(now: float) -> None:
        trial, asked = study.ask(), []
        for name, lowest, highest in zip(names, low, high, strict=True):
            if name == "batch_size":
                asked.append(math.log(trial.suggest_categorical(name, batches)))
            else:
                asked.append(math.log(trial.suggest_float(name, math.exp(lowest), math.exp(highest), log=True)))
        distance = (((points - (np.array(asked) - low) / (high - low)) ** 2).sum(axis=1)) + 1e9 * ~left
        row = int(distance.argmin())
        left[row] = False
        heapq.heappush(running, (now + 1, next(begun), trial, row, 1))

    for _ in range(slots):
        begin(0.0)
    while running and running[0][0] <= end + 1e-9:
        now, _, trial, row, mark = heapq.heappop(running)
        loss = float(curves.losses[row, seed_of[row], mark - 1])
        if math.isfinite(loss):
            trial.report(loss, mark)
        if not math.isfinite(loss) or (mark < marks and trial.should_prune()):
            study.tell(trial, state=TrialState.PRUNED)
        elif mark < marks:
            heapq.heappush(running, (now + 1, next(begun), trial, row, mark + 1))
            continue
        else:
            study.tell(trial, loss)
            done.append((loss, row))
        begin(now)
    pick = None
    if done:
        row = min(done)[1]
        others = [s for s in range(seeds) if s != seed_of[row]] or [0]
        pick = float(curves.finals[row, others].mean())
    return {"pick": pick, "begun": int((~left).sum()), "ended": len(done)}


def play_ours(curves: Curves, trainings: float, slots: int, order: int, options: SearchOptions) -> dict[str, Any]:
    """One search of ours over the table."""
    replay = Replay(curves, options, slots, random.Random(order))
    replay.begin_with(curves.middle)
    pick = replay.run(trainings)
    drawn = replay.trials.drawn
    return {"pick": pick, "begun": len(drawn), "ended": sum(trial.status == COMPLETED for trial in drawn)}


class Cache:
    """Searches that were played, one line each in a file."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {tuple(key): value for key, value in map(json.loads, lines)}

    def get(self, key: tuple[Any, ...], play: Any) -> dict[str, Any]:
        """The result under `key`, played if it is not there."""
        if key not in self.found:
            self.found[key] = play()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                print(json.dumps([list(key), self.found[key]]), file=file)
        return self.found[key]


def regrets(
    cache: Cache, method: str, tag: str, curves: Curves, table: str, length: float, orders: int, slots: int, options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """((orders,) regrets in nats per token, (orders, 2) configurations that began and that ended) of one cell."""
    found = []
    for order in range(orders):

        def play(order: int = order) -> dict[str, Any]:
            if method == "ours":
                return play_ours(curves, length, slots, order, options)
            sampler, pruner = method.removeprefix("optuna").strip("-").split("-") if "-" in method else ("tpe", "sh16")
            return play_optuna(curves, length, slots, order, sampler, pruner)

        found.append(cache.get((tag if method == "ours" else method, table, length, slots, order), play))
    picks = [curves.means.mean() if row["pick"] is None else row["pick"] for row in found]
    return np.array(picks) - curves.means.min(), np.array([[row["begun"], row["ended"]] for row in found])


def main() -> None:
    parser = Parser(prog="dense.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, nargs="+", default=sorted(HERE.glob("*.csv.gz")), help="dense tables")
    parser.add_argument("--methods", nargs="+", default=["ours", "optuna"], help="ours, optuna, optuna-SAMPLER-PRUNER")
    parser.add_argument("--lengths", type=float, nargs="+", default=[3, 4, 6, 8, 12, 16], help="trainings a slot")
    parser.add_argument("--orders", type=int, default=40, help="searches of each cell")
    parser.add_argument("--slots", type=int, default=2, help="trainings at once")
    parser.add_argument("--scheduler", default=SearchOptions.scheduler, help="the rule of ours")
    parser.add_argument("--rungs", help="of ours (unset: the scheduler's own)")
    parser.add_argument("--cache", type=Path, default=RUNS_DIR / "dense" / "searches.jsonl", help="searches played so far")
    parser.add_argument("--tag", help="names this version of ours in the cache (unset: ours is played anew)")
    args = parser.parse_args()
    for method in args.methods:
        parts = method.split("-")
        if parts[0] not in ("ours", "optuna") or len(parts) not in (1, 3) or (parts[1:] and parts[2] not in PRUNERS):
            raise InputError(f"--methods {method}: known are ours, optuna and optuna-SAMPLER-PRUNER")
    options = SearchOptions(time_budget=1.0, scheduler=args.scheduler, rungs=args.rungs, replicate_best=0)
    tag = args.tag or f"ours-{os.getpid()}"
    for path in args.tables:
        curves, cache, name = read_curves(path), Cache(args.cache), path.name.removesuffix(".csv.gz")
        print(f"{name}: {curves.losses.shape[0]} configurations, {curves.losses.shape[1]} seeds, regret in thousandths")
        for length in args.lengths:
            cells, first = [], None
            for method in args.methods:
                found, counts = regrets(cache, method, tag, curves, name, length, args.orders, args.slots, options)
                error = 1000 * found.std(ddof=1) / len(found) ** 0.5
                cell = f"{method} {1000 * found.mean():4.0f} +- {error:2.0f}, median {1000 * np.median(found):3.0f}"
                cell += f" ({counts[:, 1].mean():.1f} ended of {counts[:, 0].mean():.0f})"
                if first is not None:
                    more = 1000 * (first - found)
                    cell += f", first minus this {more.mean():+.0f} +- {more.std(ddof=1) / len(more) ** 0.5:.0f}"
                first = found if first is None else first
                cells.append(cell)
            print(f"{length:5g}  " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    if "OMP_NUM_THREADS" not in os.environ:  # small matrices: threads wait for each other
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"})
    run_command(main)
