"""Judges decision rules the way they will be used: on every recorded table and on worlds like it, at every length.

    python experiments/judge.py                                   # the default rule
    python experiments/judge.py --scheduler asha --slots 1 2 8 64
    python experiments/judge.py --worlds 0 --history experiments/data/docs-wsd.csv.gz --unknown_end

For each table of --history it replays searches (replay.py) of so many full trainings' time a slot, in --orders random
orders. On a table the pool ends and single configurations decide; so it also plays one search of each length in each of
--worlds worlds fitted to it (curves.py). A cell is the ratio (regret + .005) / (regret of random search in the same time +
.005), in nats per token.

Printed: the cells by length; over the lengths from 2 on their mean and their worst; and the rise: the most by which the
regret of a longer search lies above that of a shorter one, of those rises that exceed twice their standard error. Orders,
seeds and worlds are the same at every length and for every rule, so that a difference is the rule's and not the draw's.
"""

import os
import random
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from curves import Curves, Surrogate, read_curves
from replay import Replay

from myllm.system.errors import Parser, run_command
from tune.config.options import SearchOptions
from tune.core.schedulers import SCHEDULERS

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""full trainings' worth of time a slot"""
SMALL = 0.005  # nats per token: below it regrets are all alike
CONFIGURATIONS = 400  # of a world, or 25 a slot: enough that proposals still choose and the pool does not end


class Judge:
    """One setting in which rules are judged: slots, lengths, and whether the end is known."""

    def __init__(self, slots: int, lengths: tuple[int, ...], known_end: bool):
        self.slots, self.lengths, self.known_end = slots, lengths, known_end

    def regrets(self, curves: Curves, config: SearchOptions, order: int) -> list[float]:
        """Regret in nats per token after each length in one order; without a pick that of the mean configuration."""
        picks = [
            Replay(curves, config, self.slots, random.Random(order), self.known_end).run(length) for length in self.lengths
        ]
        return [float((curves.means.mean() if pick is None else pick) - curves.means.min()) for pick in picks]

    def rise(self, regrets: np.ndarray) -> tuple[float, float, str]:
        """(rise, its standard error, between which lengths) of (searches, lengths) regrets, from 2 trainings on."""
        rises = [(0.0, 0.0, "none")]
        for here, there in combinations([i for i, length in enumerate(self.lengths) if length > 1], 2):
            more = regrets[:, there] - regrets[:, here]
            error = more.std(ddof=1) / len(more) ** 0.5
            if more.mean() > 2 * error:
                rises.append((float(more.mean()), float(error), f"{self.lengths[here]} to {self.lengths[there]}"))
        return max(rises)

    def judge(self, name: str, searches: list[tuple[Curves, int]], config: SearchOptions) -> tuple[list[float], float]:
        """(ratio at each length, rise) over the searches, each an order in a table or world; prints both."""
        fifo = replace(config, scheduler="fifo", rungs=None, replicate_best=0)
        ours, chance = (
            np.array([self.regrets(curves, rule, order) for curves, order in searches]) for rule in (config, fifo)
        )
        ratios = (ours.mean(axis=0) + SMALL) / (chance.mean(axis=0) + SMALL)
        later = [ratio for ratio, length in zip(ratios, self.lengths, strict=True) if length > 1]
        rise, error, where = self.rise(ours)
        cells = " ".join(f"{mine:.3f}/{ratio:.2f}" for mine, ratio in zip(ours.mean(axis=0), ratios, strict=True))
        print(
            f"{name:26} {cells}  mean {np.mean(later):.2f} worst {max(later):.2f} rise {rise:.4f} +- {error:.4f} ({where})",
            flush=True,
        )
        return list(ratios), rise


def main() -> None:
    here = Path(__file__).parent / "data"
    parser = Parser(prog="judge.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=Path, nargs="+", default=sorted(here.glob("*.csv.gz")), help="tables")
    parser.add_argument("--scheduler", default=SearchOptions.scheduler, help=", ".join(SCHEDULERS))
    parser.add_argument("--rungs", help="share:one in how many goes on, ... (unset: the scheduler's own)")
    parser.add_argument("--replicate_best", type=int, default=0, help="configurations run again at the end")
    parser.add_argument("--slots", type=int, nargs="+", default=[2], help="trials at once")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="full trainings' worth of time a slot")
    parser.add_argument("--orders", type=int, default=400, help="random arrival orders of a table")
    parser.add_argument("--worlds", type=int, default=100, help="worlds of each table; 0: only the tables")
    parser.add_argument("--seed", type=int, default=0, help="of the worlds")
    parser.add_argument("--unknown_end", action="store_true", help="the search does not know when its time is up")
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in ("scheduler", "rungs", "replicate_best")}
    config = SearchOptions(time_budget=1.0, **options)
    print(f"{'regret/ratio after':26} {'  '.join(f'{length:8}' for length in args.lengths)}  trainings a slot")
    for slots in args.slots:
        setting = Judge(slots, tuple(args.lengths), not args.unknown_end)
        found: dict[str, list[tuple[list[float], float]]] = {"tables": [], "worlds": []}
        for path in args.history:
            curves, name = read_curves(path), path.name.removesuffix(".csv.gz")
            if args.orders:
                orders = [(curves, order) for order in range(args.orders)]
                found["tables"].append(setting.judge(name, orders, config))
            if args.worlds:
                rng, surrogate = np.random.default_rng(args.seed), Surrogate(curves)
                size = max(CONFIGURATIONS, 25 * slots)
                worlds = [(surrogate.world(rng, size), order) for order in range(args.worlds)]
                found["worlds"].append(setting.judge(f"{name}, worlds", worlds, config))
        for kind, rows in found.items():
            if rows:
                ratios = np.array([row for row, _ in rows])
                later = ratios[:, [length > 1 for length in args.lengths]]
                print(
                    f"{slots} slots, {kind}: mean {later.mean():.3f} +- {later.std() / np.sqrt(later.size):.3f}, "
                    f"worst {later.max():.2f}, rise {max(rise for _, rise in rows):.4f}; "
                    f"by length {' '.join(f'{x:.2f}' for x in ratios.mean(axis=0))}",
                    flush=True,
                )


if __name__ == "__main__":
    if "OMP_NUM_THREADS" not in os.environ:  # small matrices: threads wait for each other
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"})
    run_command(main)
