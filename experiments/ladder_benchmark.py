"""Judges tune/ladder/ on a public table: grids of 215M and 268M parameters from runs of 60M and 120M alone.

    python experiments/ladder_benchmark.py                # ten seconds on one core

Printed: for each target the regret of the fit and of the carrying rule from the same runs, the rate's and the batch's
error, the coverage of the 90% intervals; then the carrying rule without runs, over all pairs of grids.

Regret is the loss behind the lowest of the target's grid, in thousandths of a nat. A point between grid points has
the linear interpolation of its neighbours, which at the optimum itself is 0 to 3 too high; a smooth surface (thin
plate) is the second measure. The true optimum is the smooth surface's.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ladder import read_runs
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.spatial import cKDTree

from myllm.scaling_laws import LAW_PRIOR, Size, movement
from myllm.system.errors import Parser, run_command
from tune.ladder.answer import Z90, plain_point
from tune.ladder.fit import Run, fit_runs, levels_of

TABLE = Path(__file__).parent / "data" / "scaling" / "scalebench_small.csv.gz"
DESIGNS = {
    "24": [(60, 2, 24)],
    "12 + 6 + 6": [(60, 2, 12), (60, 8, 6), (120, 2, 6)],
    "16 of each of six": [(n, d, 16) for n in (60, 120) for d in (2, 4, 8)],
}
"""Runs drawn from each grid: million parameters, billion tokens, runs."""

CHOSEN_ON, JUDGED_ON = 215, 268
"""Million parameters: standard deviations of the prior were chosen up to the first; the second judges them."""

DRAWS = 40


class Grid:
    """The loss between the trainings of one size."""

    def __init__(self, size: Size, runs: Sequence[Run]) -> None:
        self.size, self.runs = size, list(runs)
        same: dict[tuple[float, float], list[float]] = {}
        for run in runs:
            same.setdefault((round(math.log(run.learning_rate), 2), round(math.log(run.batch_tokens), 2)), []).append(
                run.loss
            )
        points, losses = np.array(list(same)), np.array([np.mean(group) for group in same.values()])
        self.linear = LinearNDInterpolator(points, losses)
        self.smooth = RBFInterpolator(points, losses, smoothing=0.01, degree=1)
        axes = [np.linspace(low, high, 81) for low, high in zip(points.min(0), points.max(0), strict=True)]
        inside = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
        self.inside = inside[np.isfinite(self.linear(inside))]
        heights = self.smooth(self.inside)
        self.optimum, self.lowest, self.best = self.inside[heights.argmin()], heights.min(), losses.min()
        self.tree = cKDTree(self.inside)

    def name(self) -> str:
        return f"{self.size.params / 1e6:.0f}M / {self.size.tokens / 1e9:.3g}B"

    def regrets(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the regret of points (n, 2) by linear interpolation and by the smooth surface, in thousandths of a nat.

        A point outside of the grid has the regret of the nearest one inside.
        """
        outside = np.isnan(self.linear(points))
        points = np.where(outside[:, None], self.inside[self.tree.query(points)[1]], points)
        return 1e3 * (self.linear(points) - self.best), 1e3 * (self.smooth(points) - self.lowest)


def millions(grid: Grid) -> int:
    return round(grid.size.params / 1e6)


def draw(grids: Sequence[Grid], design: str, seed: int) -> list[Run]:
    """Returns random runs of the design's grids, without replacement."""
    rng, found = np.random.default_rng(seed), []
    for params, tokens, count in DESIGNS[design]:
        (grid,) = (g for g in grids if (millions(g), round(g.size.tokens / 1e9, 3)) == (params, tokens))
        found += [grid.runs[index] for index in rng.permutation(len(grid.runs))[:count]]
    return found


def summary(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ({np.percentile(values, 90):.1f})"


def judge(grids: Sequence[Grid], design: str, draws: int) -> None:
    """Prints each target's regrets and coverage for one design, then the means of each group of targets."""
    samples = [draw(grids, design, seed) for seed in range(draws)]
    fits = [fit_runs(runs, LAW_PRIOR) for runs in samples]
    print(f"\n{design} runs, {draws} draws: mean regret (90th percentile), thousandths of a nat")
    print("| target | fit | fit, smooth | carrying rule | rule, smooth | rate off | batch off | rate held | batch held |")
    print("|-|-|-|-|-|-|-|-|-|")
    groups: dict[int, list[list[np.ndarray]]] = {CHOSEN_ON: [], JUDGED_ON: []}
    for grid in grids:
        if millions(grid) not in groups:
            continue
        found = [fit.optimum(grid.size) for fit in fits]
        centres, sds = np.array([mean for mean, _ in found]), np.sqrt([cov.diagonal() for _, cov in found])
        errors = centres - grid.optimum
        held = np.abs(errors) < Z90 * sds
        rule = np.array([plain_point(runs, grid.size) for runs in samples])
        row = [*grid.regrets(centres), *grid.regrets(rule), held[:, 0], held[:, 1]]
        groups[millions(grid)].append(row)
        print(f"| {grid.name()} | {' | '.join(summary(part) for part in row[:4])} | ", end="")
        print(" | ".join(f"x{math.exp(error):.2f}" for error in errors.mean(0)), end=" | ")
        print(" | ".join(f"{part.mean():.0%}" for part in row[4:]), "|", flush=True)
    for name, rows in {
        **{f"all of {size}M": part for size, part in groups.items()},
        "all": list(itertools.chain(*groups.values())),
    }.items():
        *regrets, rate, batch = (np.array(part) for part in zip(*rows, strict=True))
        print(f"| {name} | {' | '.join(summary(part) for part in regrets)} | | | {rate.mean():.0%} | {batch.mean():.0%} |")


def carry(grids: Sequence[Grid]) -> None:
    """Prints the regret of rules without runs, from a grid's true optimum to grids of 4 or more times its compute."""
    found: dict[str, list[float]] = {}
    held = []
    for start, end in itertools.product(grids, repeat=2):
        grown = end.size.params / start.size.params
        if end.size.params * end.size.tokens < 4 * start.size.params * start.size.tokens:
            continue
        move = movement(start.size, end.size)
        errors = np.abs(start.optimum + np.array([move.log_rate, move.log_batch]) - end.optimum)
        held.append(errors < Z90 * np.array([move.log_rate_sd, move.log_batch_sd]))
        for name, steps in {
            "N^-.5 D^.2, batch D^.5": (move.log_rate, move.log_batch),
            "rate / width (N^.5), batch kept": (-0.5 * math.log(grown), 0.0),
            "both kept": (0.0, 0.0),
        }.items():
            linear, smooth = end.regrets(start.optimum[None] + steps)
            found.setdefault(name, []).append(float(linear[0]))
            found.setdefault(f"{name}, smooth", []).append(float(smooth[0]))
    print(
        "\n| without runs, pairs of grids at least 4 times apart in compute | pairs | mean | lowest to highest |\n|-|-|-|-|"
    )
    for name, values in found.items():
        print(f"| {name} | {len(values)} | {np.mean(values):.1f} | {min(values):.1f} to {max(values):.1f} |")
    rate, batch = np.mean(held, axis=0)
    print(
        f"\nThe 90% intervals of N^-.5 D^.2 and D^.5 hold the rate of {rate:.0%} and the batch of {batch:.0%} of the pairs."
    )


def main() -> None:
    parser = Parser(prog="ladder_benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=Path, default=TABLE, help="table with the columns of experiments/ladder.py")
    parser.add_argument("--draws", type=int, default=DRAWS, help="random designs of each kind")
    args = parser.parse_args()
    grids = [Grid(size, runs) for size, runs in levels_of(read_runs(args.history)).items()]
    for design in DESIGNS:
        judge(grids, design, args.draws)
    carry(grids)


if __name__ == "__main__":
    run_command(main)
