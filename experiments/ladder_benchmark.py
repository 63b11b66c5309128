"""Judges tune/ladder/ on a public table: grids of 215M to 1.07B parameters from runs of 60M and 120M alone.

    python experiments/ladder_benchmark.py                # half a minute on one core
    python experiments/ladder_benchmark.py --choose       # the widths of intervals, on targets up to 268M parameters

Printed: for each target the regret of the fit and of the carrying rule from the same runs, the rate's and the batch's
error, the coverage of the 90% intervals; then the carrying rule without runs, over all pairs of grids.

Regret is the loss behind the lowest of the target's grid, in thousandths of a nat. A point between grid points has
the linear interpolation of its neighbours, which at the optimum itself is 0 to 3 too high; a smooth surface (thin
plate) is the second measure. The true optimum is the smooth surface's.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ladder import read_runs
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from myllm.scaling_laws import Size, movement
from myllm.system.errors import Parser, run_command
from tune.ladder.answer import Z90, plain_point
from tune.ladder.fit import Run, fit_runs, levels_of
from tune.ladder.prior import LAW_PRIOR

TABLES = [Path(__file__).parent / "data" / "scaling" / f"scalebench_{part}.csv.gz" for part in ("small", "large")]
DESIGNS = {
    "24": [(60, 2, 24)],
    "12 + 6 + 6": [(60, 2, 12), (60, 8, 6), (120, 2, 6)],
    "16 of each of six": [(n, d, 16) for n in (60, 120) for d in (2, 4, 8)],
}
"""Runs drawn from each grid: million parameters, billion tokens, runs."""

CHOSEN_ON, JUDGED_ON = (215, 268), (429, 537, 1074)
"""Million parameters of the targets on which standard deviations were chosen, and of those that judge them."""

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
    groups: dict[int, list[list[np.ndarray]]] = {size: [] for size in (*CHOSEN_ON, *JUDGED_ON)}
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
        "all of 215M and 268M, chosen on": list(itertools.chain(*map(groups.get, CHOSEN_ON))),
        "all larger, judged": list(itertools.chain(*map(groups.get, JUDGED_ON))),
    }.items():
        *regrets, rate, batch = (np.array(part) for part in zip(*rows, strict=True))
        print(f"| {name} | {' | '.join(summary(part) for part in regrets)} | | | {rate.mean():.0%} | {batch.mean():.0%} |")


def far_pairs(grids: Sequence[Grid]) -> list[tuple[Grid, Grid]]:
    """Returns the pairs of grids of which the second has 4 or more times the compute."""
    cost = {grid.name(): grid.size.params * grid.size.tokens for grid in grids}
    return [pair for pair in itertools.product(grids, repeat=2) if cost[pair[1].name()] >= 4 * cost[pair[0].name()]]


def rule_error(start: Grid, end: Grid) -> np.ndarray:
    """Returns how far the carrying rule ends from the true optimum, in log rate and log batch; shape (2,)."""
    move = movement(start.size, end.size)
    return start.optimum + np.array([move.log_rate, move.log_batch]) - end.optimum


def choose(grids: Sequence[Grid], draws: int) -> None:
    """Prints coverage by the error of the form, on CHOSEN_ON alone, and the likeliest errors of the carrying rule there."""
    chosen = [grid for grid in grids if millions(grid) in CHOSEN_ON]
    fits = {
        design: [fit_runs(draw(grids, design, seed), LAW_PRIOR) for seed in range(draws)] for design in list(DESIGNS)[:2]
    }
    print("| form_sd | by distance | " + " | ".join(f"{name}: rate | batch" for name in fits) + " | off 90% in the mean |")
    print("|-|-|-|-|-|-|-|")
    for form, distance in itertools.product((0.05, 0.1, 0.15, 0.2), (0.03, 0.05, 0.06, 0.07, 0.08, 0.1)):
        prior = dataclasses.replace(LAW_PRIOR, form_sd=form, form_sd_by_distance=distance)
        shares = []
        for group in fits.values():
            found = [[dataclasses.replace(fit, prior=prior).optimum(grid.size) for fit in group] for grid in chosen]
            held = [
                [np.abs(mean - grid.optimum) < Z90 * np.sqrt(covariance.diagonal()) for mean, covariance in row]
                for grid, row in zip(chosen, found, strict=True)
            ]
            shares += list(np.mean(held, axis=(0, 1)))
        off = np.abs(np.array(shares) - 0.9).mean()
        print(f"| {form} | {distance} | {' | '.join(f'{share:.0%}' for share in shares)} | {off:.3f} |")
    pairs = far_pairs([grid for grid in grids if millions(grid) <= max(CHOSEN_ON)])
    errors = np.array([rule_error(*pair) for pair in pairs])
    steps = np.log([(b.size.params / a.size.params, b.size.tokens / a.size.tokens) for a, b in pairs])
    for name, error in zip(("rate", "batch"), errors.T, strict=True):

        def surprise(sds: np.ndarray, error: np.ndarray = error) -> float:
            sd = np.sqrt(sds[0] ** 2 + (sds[1:] ** 2 * steps**2).sum(1))
            return float(np.sum(np.log(sd) + (error / sd) ** 2 / 2))

        found = [minimize(surprise, begin, bounds=[(0.02, 1)] * 3) for begin in itertools.product((0.05, 0.2), repeat=3)]
        likeliest = ", ".join(f"{sd:.2f}" for sd in min(found, key=lambda one: one.fun).x)
        print(f"likeliest errors of the rule in the {name}, {len(pairs)} pairs: {likeliest} (always, by log N, by log D)")


def carry(grids: Sequence[Grid]) -> None:
    """Prints the regret of rules without runs, from a grid's true optimum to grids of 4 or more times its compute."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    held: dict[str, list[np.ndarray]] = {}
    for start, end in far_pairs(grids):
        grown = end.size.params / start.size.params
        move = movement(start.size, end.size)
        inside = np.abs(rule_error(start, end)) < Z90 * np.array([move.log_rate_sd, move.log_batch_sd])
        group = "with a larger one, judged" if {millions(start), millions(end)} & {*JUDGED_ON} else "to 268M, chosen on"
        held.setdefault(group, []).append(inside)
        for name, steps in {
            "N^-.5 D^.2, batch D^.5": (move.log_rate, move.log_batch),
            "rate / width (N^.5), batch kept": (-0.5 * math.log(grown), 0.0),
            "both kept": (0.0, 0.0),
        }.items():
            linear, smooth = end.regrets(start.optimum[None] + steps)
            found.setdefault((name, group), []).append((float(linear[0]), float(smooth[0])))
    print("\nwithout runs, pairs of grids at least 4 times apart in compute: thousandths of a nat")
    print("| rule | pairs | | mean | lowest to highest | mean, smooth |\n|-|-|-|-|-|-|")
    for (name, group), values in found.items():
        linear, smooth = zip(*values, strict=True)
        row = f"{np.mean(linear):.1f} | {min(linear):.1f} to {max(linear):.1f} | {np.mean(smooth):.1f}"
        print(f"| {name} | {group} | {len(values)} | {row} |")
    print("\n| pairs, 90% intervals of the rule | pairs | rate held | batch held |\n|-|-|-|-|")
    for group, shares in held.items():
        rate, batch = np.mean(shares, axis=0)
        print(f"| {group} | {len(shares)} | {rate:.0%} | {batch:.0%} |")


def main() -> None:
    parser = Parser(prog="ladder_benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS, help="random designs of each kind")
    parser.add_argument("--choose", action="store_true", help="try widths of intervals, on targets that do not judge them")
    args = parser.parse_args()
    grids = [Grid(size, runs) for size, runs in levels_of([run for table in TABLES for run in read_runs(table)]).items()]
    if args.choose:
        choose(grids, args.draws)
        return
    for design in DESIGNS:
        judge(grids, design, args.draws)
    carry(grids)


if __name__ == "__main__":
    run_command(main)
