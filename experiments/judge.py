"""Judges decision rules the way they will be used: on every recorded table and on worlds like it, at every length.

    python experiments/judge.py                                   # the default rule
    python experiments/judge.py --scheduler asha --slots 1 2 8 64
    python experiments/judge.py --worlds 0 --history experiments/data/docs-wsd.csv.gz --unknown_end

For each table of --history it replays searches (replay.py) of so many full trainings' time a slot. On a table the pool ends
and single configurations decide; so it also plays --worlds worlds of 400 configurations fitted to it (curves.py). A cell is
the ratio (regret + .005) / (regret of random search in the same time + .005), in nats per token.

Printed: the cells by length; over the lengths from 2 on their mean and their worst; and the rise, the most by which the
regret of a longer search lies above that of a shorter one. +- is the standard error over the cells.
"""

import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from curves import Curves, Surrogate, read_curves
from replay import Replay

from myllm.errors import Parser, run_command
from tune.options import SearchConfig
from tune.schedulers import SCHEDULERS

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""full trainings' worth of time a slot"""
SMALL = 0.005  # nats per token: below it regrets are all alike


def regret(curves: Curves, config: SearchConfig, slots: int, trainings: int, orders: int, known_end: bool) -> float:
    """Mean regret in nats per token over `orders` arrival orders; without a pick that of the mean configuration."""
    picks = []
    for order in range(orders):
        pick = Replay(curves, config, slots, random.Random(f"{trainings} {order}"), known_end).run(trainings)
        picks.append(float(curves.means.mean()) if pick is None else pick)
    return float(np.mean(picks) - curves.means.min())


def judge(name: str, play: Callable[[SearchConfig, int], list[float]], config: SearchConfig) -> tuple[list[float], float]:
    """(ratio at each length, rise); `play(config, trainings)` gives the regrets in worlds, or the one on a table."""
    fifo = replace(config, scheduler="fifo", rungs=None, confirm=0)
    ours = {length: play(config, length) for length in LENGTHS}
    regrets = [float(np.mean(ours[length])) for length in LENGTHS]
    chance = [float(np.mean(play(fifo, length))) for length in LENGTHS]
    ratios = [(mine + SMALL) / (theirs + SMALL) for mine, theirs in zip(regrets, chance, strict=True)]
    later = [value - min(regrets[1:at]) for at, value in enumerate(regrets) if at > 1]
    rise = max(0.0, *later)
    cells = " ".join(f"{mine:.3f}/{ratio:.2f}" for mine, ratio in zip(regrets, ratios, strict=True))
    print(f"{name:26} {cells}  mean {np.mean(ratios[1:]):.2f} worst {max(ratios[1:]):.2f} rise {rise:.4f}", flush=True)
    return ratios, rise


def main() -> None:
    here = Path(__file__).parent / "data"
    parser = Parser(prog="judge.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=Path, nargs="+", default=sorted(here.glob("*.csv.gz")), help="tables")
    parser.add_argument("--scheduler", default=SearchConfig.scheduler, help=", ".join(SCHEDULERS))
    parser.add_argument("--rungs", help="share:one in how many goes on, ... (unset: the scheduler's own)")
    parser.add_argument("--confirm", type=int, default=0, help="configurations run again at the end")
    parser.add_argument("--slots", type=int, nargs="+", default=[2], help="trials at once")
    parser.add_argument("--orders", type=int, default=100, help="random arrival orders of a table")
    parser.add_argument("--worlds", type=int, default=40, help="worlds of each table; 0: only the tables")
    parser.add_argument("--seed", type=int, default=0, help="of the worlds")
    parser.add_argument("--unknown_end", action="store_true", help="the search does not know when its time is up")
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in ("scheduler", "rungs", "confirm")}
    config = SearchConfig(time_budget=1.0, **options)
    print(f"{'regret/ratio after':26} {'  '.join(f'{length:8}' for length in LENGTHS)}  trainings a slot")
    for slots in args.slots:
        found: dict[str, list[tuple[list[float], float]]] = {"tables": [], "worlds": []}
        for path in args.history:
            curves, name = read_curves(path), path.name.removesuffix(".csv.gz")

            def on_table(config, length, curves=curves, slots=slots):
                return [regret(curves, config, slots, length, args.orders, not args.unknown_end)]

            found["tables"].append(judge(name, on_table, config))
            if not args.worlds:
                continue
            rng, surrogate = np.random.default_rng(args.seed), Surrogate(curves)
            worlds = [surrogate.world(rng) for _ in range(args.worlds)]

            def in_worlds(config, length, worlds=worlds, slots=slots):
                return [regret(world, config, slots, length, 2, not args.unknown_end) for world in worlds]

            found["worlds"].append(judge(f"{name}, worlds", in_worlds, config))
        for kind, rows in found.items():
            if rows:
                ratios = np.array([row for row, _ in rows])
                later = ratios[:, 1:]
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
