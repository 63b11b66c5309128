"""Replays recorded full-length curves through the code that decides in a search, with a simulated clock and without Ray.

    python experiments/replay.py --history experiments/data/embedded-cosine.csv.gz
    python experiments/replay.py --history FILE.csv --scheduler asha-stop --replicate_best 0

The file is one that curves.py reads. In each of --orders random orders every configuration arrives once, with one of its
seeds, and --slots of them train at once; a training takes the same time whatever its batch size. Repeats play the
configuration's other seeds. What a live search proposes is here the most promising of those that have not arrived yet. The
first to arrive takes the reference's part: it trains to the end wherever the reference of a live search would.

Printed: the regret after so many full trainings' worth of time a slot, the mean over orders of the final loss of the pick,
on seeds that did not pick it, minus the lowest mean final loss of all; how well each rung's loss ranks the configurations;
and the noise between seeds. Each length is a search of its own, which knows its end as one with --time_budget does. Beside
it i-Epoch, which stops all at one share and finishes the best few, with the share and number that hindsight would choose.
"""

import itertools
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from curves import Curves, read_curves

from myllm.system.errors import InputError, Parser, run_command
from tune.config.options import SearchOptions
from tune.core.coordinator import Coordinator
from tune.core.events import SessionStarted
from tune.core.ranking import ranking
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.baseline import WithBaseline
from tune.core.searchers.gaussian_process import most_promising, projected, unjudged
from tune.core.simulator import Watch, play
from tune.core.trials import COMPLETED, REPLICATE, SUGGESTED, Trial, Trials

TRAININGS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32)
"""full trainings' worth of time a slot at which the pick is judged"""
I_EPOCH_SHARES = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)
I_EPOCH_FINALISTS = (1, 2, 3, 4, 6, 8)


class Replay:
    """One search over recorded curves, in a random order. Times are in tokens of one slot."""

    def __init__(self, curves: Curves, config: SearchOptions, slots: int, rng: random.Random, known_end: bool = True):
        n, seeds = curves.losses.shape[:2]
        self.curves, self.slots, self.known_end = curves, slots, known_end
        self.order = rng.sample(range(n), n)
        turns = np.random.default_rng(rng.getrandbits(32)).permuted(np.tile(np.arange(seeds), (n, 1)), axis=1)
        self.seeds = turns.tolist()
        self.waiting = list(self.order)
        self.mark_at = {tokens: index for index, tokens in enumerate(curves.marks)}
        rule = SCHEDULERS[config.scheduler](config.resolved_rungs, curves.budget, curves.marks[0])
        self.trials = Trials(curves.budget, n, events=[SessionStarted(session=0, workers=slots)])
        scheduler = WithBaseline(rule, config.confirmations)
        self.coordinator = Coordinator(self.trials, scheduler, self.configure, lambda event: event)

    def begin_with(self, row: int) -> None:
        """Makes configuration `row` the first to arrive."""
        self.waiting.remove(row)
        self.waiting.insert(0, row)

    def configure(self, index: int, trials: Trials, proposed: bool) -> dict[str, Any]:
        """The next configuration to arrive, as its row in the curves; proposed ones are chosen among those that wait."""
        row = self.waiting[0]
        points = self.curves.points
        rung_tokens = self.coordinator.scheduler.rung_tokens
        known = projected(trials, rung_tokens) if proposed and points.shape[1] else []
        if known:
            told, losses, seeds = zip(*known, strict=True)
            rows = [trial.config["row"] for trial in told]
            pending = [trial.config["row"] for trial in unjudged(trials, rung_tokens)]
            chosen = most_promising(points[rows], np.array(losses), np.array(seeds), points[pending], points[self.waiting])
            row = self.waiting[chosen]
        self.waiting.remove(row)
        return {"row": row}

    def loss(self, trial: Trial, tokens: int) -> float:
        """The recorded loss; repeats play the configuration's other seeds in turn."""
        replicates = [repeat.trial_id for repeat in self.trials.by_id[trial.parent_id].replicates]
        number = 1 + replicates.index(trial.trial_id) if trial.source == REPLICATE else 0
        seeds = self.seeds[trial.config["row"]]
        return float(self.curves.losses[trial.config["row"], seeds[number % len(seeds)], self.mark_at[tokens]])

    def run(self, trainings: float, watch: Watch | None = None) -> float | None:
        """The true loss of the configuration named best after that time: over seeds that did not help to pick it."""
        end = trainings * self.curves.budget
        play(self.coordinator, self.loss, end, self.known_end, watch)
        _, best = ranking(self.trials)
        if not best:
            return None
        row, seeds = best[0].config["row"], self.seeds[best[0].config["row"]]
        if self.curves.truth is not None:
            return float(self.curves.truth[row])
        used = 1 + sum(bool(repeat.losses) for repeat in best[0].replicates)
        return float(self.curves.finals[row, seeds[used:] or seeds].mean())


def regrets(
    curves: Curves,
    config: SearchOptions,
    slots: int = 2,
    orders: int = 300,
    seed: int = 0,
    lengths: tuple[int, ...] = TRAININGS,
    known_end: bool = True,
) -> dict[int, float | None]:
    """{trainings: mean regret in nats per token, or None where some order has nothing to pick yet}."""
    found = {}
    for trainings in lengths:
        picks = [
            Replay(curves, config, slots, random.Random(f"{seed} {order}"), known_end).run(trainings)
            for order in range(orders)
        ]
        found[trainings] = None if None in picks else float(np.mean(picks) - curves.means.min())
    return found


def i_epoch(curves: Curves, slots: int = 2, orders: int = 300, seed: int = 0) -> dict[int, float | None]:
    """{trainings: mean regret} of i-Epoch: stop all at a small share, finish the best few (Egele et al., arXiv 2404.04111).

    Share and number are those that did best for each length, seen in hindsight, so no method could know them. The orders
    are those of regrets().
    """
    played = [Replay(curves, SearchOptions(), slots, random.Random(f"{seed} {order}")) for order in range(orders)]
    best: dict[int, float | None] = {}
    for trainings in TRAININGS:
        found = []
        for share, finalists in itertools.product(I_EPOCH_SHARES, I_EPOCH_FINALISTS):
            mark = next(i for i, tokens in enumerate(curves.marks) if tokens >= share * curves.budget * (1 - 1e-9))
            left = trainings * curves.budget - math.ceil(finalists / slots) * (curves.budget - curves.marks[mark])
            looked_at = slots * int(left // curves.marks[mark])
            if looked_at < finalists:
                continue
            losses = []
            for replay in played:
                rows = np.array(replay.order[:looked_at])
                seeds = np.array([replay.seeds[row][0] for row in rows])
                early = np.nan_to_num(curves.losses[rows, seeds, mark], nan=math.inf)
                last = np.argsort(early, kind="stable")[:finalists]
                pick = rows[last[np.argmin(curves.finals[rows, seeds][last])]]
                losses.append(curves.finals[pick, replay.seeds[pick][1:] or replay.seeds[pick]].mean())
            found.append(float(np.mean(losses) - curves.means.min()))
        best[trainings] = min(found, default=None)
    return best


def rank_correlations(curves: Curves, marks: list[int]) -> dict[int, tuple[float, float]]:
    """mark -> Spearman correlation of the metric there (one seed) with the mean final loss: all, and the best quarter."""
    means = np.repeat(curves.means, curves.losses.shape[1])
    table = pd.DataFrame({m: curves.losses[..., curves.marks.index(m)].ravel() for m in marks}).fillna(math.inf)
    table["mean"] = means
    best = table[table["mean"] <= table["mean"].quantile(0.25)]
    return {mark: tuple(float(part[mark].rank().corr(part["mean"].rank())) for part in (table, best)) for mark in marks}


def noise(curves: Curves, best: int = 20) -> float:
    """Standard deviation of the final loss between seeds, pooled over the `best` configurations; NaN with one seed."""
    if curves.losses.shape[1] == 1:
        return math.nan
    rows = np.argsort(curves.means, kind="stable")[:best]
    return float(np.sqrt(curves.finals[rows].var(axis=1, ddof=1).mean()))


def draw_timeline(curves: Curves, config: SearchOptions, slots: int, trainings: int, seed: int, path: Path) -> None:
    """One replayed search: workers against time, each stretch of a trial in the colour of what became of it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    replay = Replay(curves, config, slots, random.Random(f"{seed} 0"))
    stretches: list[tuple[int, float, float, Trial]] = []
    replay.run(trainings, lambda *stretch: stretches.append(stretch))
    colours = {"sampled": "0.75", "suggested": "C2", "seed at the rung": "C4", "finished": "C0", "seed at the end": "C1"}

    def fate(trial: Trial) -> str:
        if trial.source == REPLICATE:
            return "seed at the end" if trial.status == COMPLETED else "seed at the rung"
        return "finished" if trial.status == COMPLETED else "suggested" if trial.source == SUGGESTED else "sampled"

    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.add_subplot()
    for worker, begin, end, trial in stretches:
        span = (begin / curves.budget, (end - begin) / curves.budget)
        axes.broken_barh([span], (worker - 0.4, 0.8), color=colours[fate(trial)], edgecolor="white", linewidth=0.3)
    axes.set(xlabel="time, in full trainings", yticks=range(slots), yticklabels=[f"worker {w}" for w in range(slots)])
    axes.set_xlim(0, trainings)
    figure.legend(handles=[Patch(color=c, label=n) for n, c in colours.items()], loc="outside upper center", ncols=5)
    figure.savefig(path, dpi=120)


def main() -> None:
    defaults = SearchOptions(time_budget=1.0)  # the defaults of a search that knows its end
    parser = Parser(prog="replay.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", required=True, type=Path, help="CSV file of full-length curves")
    parser.add_argument("--slots", type=int, default=2, help="trials at once")
    parser.add_argument("--scheduler", default=defaults.scheduler, help=", ".join(SCHEDULERS))
    parser.add_argument("--rungs", help="share:one in how many goes on, ... (unset: as search.py)")
    parser.add_argument("--rung_metric", default=defaults.rung_metric, help="val_loss or val_loss_ema")
    parser.add_argument("--reduction_factor", type=int, help="short way to rungs, as in search.py")
    parser.add_argument("--grace_period", type=float, help="short way to rungs, as in search.py")
    parser.add_argument("--replicate_best", type=int, help="configurations run again (unset: as search.py)")
    parser.add_argument("--orders", type=int, default=300, help="random arrival orders")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--timeline", type=Path, metavar="FILE.png", help="draw one search of 8 trainings a slot there")
    parser.add_argument("--json", type=Path, help="file to write the same to")
    args = parser.parse_args()
    for name in ("slots", "orders"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be a whole number, 1 or more")
    names = ("scheduler", "rungs", "rung_metric", "reduction_factor", "grace_period", "replicate_best")
    config = replace(defaults, **{name: getattr(args, name) for name in names})
    curves = read_curves(args.history, config.rung_metric)
    if args.timeline:
        draw_timeline(curves, config, args.slots, 8, args.seed, args.timeline)
    found: dict[str, Any] = {
        "regret": regrets(curves, config, args.slots, args.orders, args.seed),
        "i_epoch": i_epoch(curves, args.slots, args.orders, args.seed),
    }
    rungs = SCHEDULERS[config.scheduler](config.resolved_rungs, curves.budget, curves.marks[0]).rung_tokens
    found["rank_correlation"] = rank_correlations(curves, list(rungs))
    found["noise_between_seeds"] = noise(curves)
    n, seeds = curves.losses.shape[:2]
    if seeds == 1:
        print(
            "warning: one seed a configuration: the regret is flattered, the pick is judged by what picked it",
            file=sys.stderr,
        )
    shown = ",".join(f"{share:g}:{factor}" for share, factor in config.resolved_rungs)
    print(
        f"{n} configurations, {config.scheduler}, rungs {shown or 'none'}, "
        f"{config.rung_metric}, {args.slots} slots, {args.orders} orders"
    )
    print("trainings a slot   " + "".join(f"{t:>8}" for t in found["regret"]))
    for title, values in (("regret, nats/token", found["regret"]), ("i-Epoch, hindsight", found["i_epoch"])):
        print(f"{title} " + "".join(f"{'-' if r is None else f'{r:.4f}':>8}" for r in values.values()))
    for mark, (every, quarter) in found["rank_correlation"].items():
        print(f"rank correlation at {mark / curves.budget:.4g} of the budget: all {every:.2f}, best quarter {quarter:.2f}")
    print(f"noise between seeds, best 20: {found['noise_between_seeds']:.4f} nats/token")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
