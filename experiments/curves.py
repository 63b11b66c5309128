"""Recorded curves of full-length trainings, and worlds like them in which configurations never run out.

    python experiments/curves.py --history experiments/data/embedded-cosine.csv.gz

The file has one row a report: trial_id (the configuration), tokens_seen, val_loss (nats per token), optionally seed (if a
configuration has several curves) and val_loss_ema, and a column for each hyper-parameter.

Printed: how well the hyper-parameters tell the loss of configurations that were left out, and the same numbers of the table
and of worlds of its size: Spearman correlation of the loss at a mark (one seed) with the mean final loss, over all
configurations and over the best quarter; standard deviation of the final loss between seeds; how good the good ones are.
"""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from myllm.system.errors import InputError, Parser, run_command

COMPONENTS = 8
NEIGHBOURS = 3
"""configurations of the table that lend a new one their noise"""
LARGEST, SMALLEST = np.log([8.0, 3.0, 1.0]), np.log([0.1, 0.1, 1e-4])
"""bounds in a Process: length scales (the range is 1), variance of the smooth part, and of the rest (the whole's is 1)"""


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

    @functools.cached_property
    def points(self) -> np.ndarray:
        """(n, d) the hyper-parameters that are numbers and vary, their logarithms scaled to the unit cube."""
        columns = []
        for _, values in pd.DataFrame(self.configs).select_dtypes("number").astype(float).items():
            scaled = np.log(values.to_numpy()) if values.min() > 0 else values.to_numpy()
            if np.ptp(scaled) > 0:
                columns.append((scaled - scaled.min()) / np.ptp(scaled))
        return np.stack(columns, axis=1) if columns else np.empty((len(self.configs), 0))

    @property
    def middle(self) -> int:
        """The configuration nearest to the middle of the ranges, where space v2 has its baseline."""
        return int(np.abs(self.points - 0.5).max(axis=1).argmin())

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


def matern(distance: np.ndarray) -> np.ndarray:
    """Matern 5/2 correlation of points so many length scales apart (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = 5**0.5 * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def apart(a: np.ndarray, b: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(..., n, m) distances of points (n, d) and (m, d) in length scales (..., d)."""
    return np.sqrt((((a[:, None] - b[None]) / scales[..., None, None, :]) ** 2).sum(axis=-1))


class Process:
    """A Gaussian process over points (n, d) of the unit cube with the values (n,) and the known noise (n,), a variance.

    A value is a smooth part, a part that no neighbour knows, and the noise. Length scales (d,) and both variances maximize
    the marginal likelihood, times a broad log-normal prior: the cross-entropy method, since it needs no gradients.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray, noise: np.ndarray):
        n, d = points.shape
        self.points, self.mean, variance = points, values.mean(), values.var() + 1e-12
        y = (values - self.mean) / variance**0.5
        low, high = (np.r_[np.full(d, bound[0]), bound[1:]] for bound in (SMALLEST, LARGEST))
        rng = np.random.default_rng(0)
        prior = center = np.r_[np.zeros(d), 0.0, math.log(0.03)]
        spread = np.ones(d + 2)
        for _ in range(25):
            guesses = np.clip(center + spread * rng.standard_normal((48, d + 2)), low, high)
            scales, smooth, rest = np.exp(guesses[:, :d]), np.exp(guesses[:, d]), np.exp(guesses[:, d + 1])
            covariance = smooth[:, None, None] * matern(apart(points, points, scales))
            covariance[:, range(n), range(n)] += rest[:, None] + noise / variance + 1e-6
            factor = np.linalg.cholesky(covariance)
            halves = np.linalg.solve(factor, np.broadcast_to(y[:, None], (len(guesses), n, 1)))[..., 0]
            logdet = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
            score = -0.5 * (halves**2).sum(axis=1) - logdet - 0.5 * (((guesses - prior) / 1.5) ** 2).sum(axis=1)
            elite = guesses[np.argsort(-score)[:10]]
            center, spread = elite.mean(axis=0), elite.std(axis=0) + 0.02
        self.scales, (smooth, rest) = np.exp(center[:d]), np.exp(center[d:])
        self.smooth, self.rest = smooth * variance, rest * variance  # variances, in the unit of the values squared
        covariance = self.smooth * matern(apart(points, points, self.scales))
        self.inverse = np.linalg.inv(covariance + np.diag(self.rest + noise + 1e-6 * variance))
        self.weights = self.inverse @ (values - self.mean)

    def posterior(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and covariance (m, m) of what the table knows at `points`, without noise."""
        cross = self.smooth * matern(apart(points, self.points, self.scales))
        own = self.smooth * matern(apart(points, points, self.scales)) + self.rest * np.eye(len(points))
        return self.mean + cross @ self.weights, own - cross @ self.inverse @ cross.T


class Surrogate:
    """What a table says of configurations that it does not have.

    The mean log-curves over seeds are COMPONENTS principal components, each a Process over the logarithms of the
    hyper-parameters that are numbers and vary. The noise of a seed is a whole curve of a neighbour's in the table: large
    where rates are high, and lasting. A diverged curve counts as the worst finite loss at each mark, so no curve of a world
    diverges. From one seed a configuration come worlds without noise.
    """

    def __init__(self, curves: Curves):
        self.marks = curves.marks
        columns = {name: np.array([config[name] for config in curves.configs]) for name in curves.configs[0]}
        self.columns = {name: c for name, c in columns.items() if c.dtype.kind in "iuf" and np.ptp(c) > 0}
        """(n,) of each hyper-parameter"""
        self.points = self.places(self.columns)
        logs = np.log(curves.losses)  # (n, seeds, marks)
        logs = np.where(np.isnan(logs), np.nanmax(logs, axis=(0, 1)), logs)
        seeds, means = logs.shape[1], logs.mean(axis=1)
        self.noise = (logs - means[:, None]) * (seeds / max(1, seeds - 1)) ** 0.5  # (n, seeds, marks)
        self.center = means.mean(axis=0)
        self.axes = np.linalg.svd(means - self.center, full_matrices=False)[2][:COMPONENTS]  # (components, marks)
        scores = (means - self.center) @ self.axes.T
        self.scales = Process(self.points, scores[:, 0], np.zeros(len(means))).scales
        noise = ((self.noise[self.neighbours(self.points)] @ self.axes.T) ** 2).mean(axis=(1, 2)) / seeds  # of the means
        self.processes = [Process(self.points, scores[:, c], noise[:, c]) for c in range(len(self.axes))]

    def places(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """(m, d) points: 0 is a hyper-parameter's lowest value in the table, 1 its highest; logarithms if above 0."""
        places = []
        for name, known in self.columns.items():
            scale = np.log if known.min() > 0 else np.asarray
            low, high = scale(known.min()), scale(known.max())
            places.append((scale(columns[name]) - low) / (high - low))
        return np.stack(places, axis=1)

    def draw(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """(count,) of each hyper-parameter: uniform over places(), or of the table's values if those are whole numbers."""
        drawn = {}
        for name, known in self.columns.items():
            if known.dtype.kind in "iu":
                drawn[name] = rng.choice(np.unique(known), count)
            elif known.min() > 0:
                drawn[name] = np.exp(rng.uniform(np.log(known.min()), np.log(known.max()), count))
            else:
                drawn[name] = rng.uniform(known.min(), known.max(), count)
        return drawn

    def neighbours(self, points: np.ndarray) -> np.ndarray:
        """(m, NEIGHBOURS) rows of the table, near in what matters most to the curves."""
        return np.argsort(apart(points, self.points, self.scales), axis=1)[:, :NEIGHBOURS]

    def predict(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """(m, marks) expected mean log-loss."""
        points = self.places(columns)
        return self.center + np.stack([process.posterior(points)[0] for process in self.processes], axis=1) @ self.axes

    def world(self, rng: np.random.Generator, configurations: int = 400, seeds: int = 6) -> Curves:
        """New configurations, one joint draw of their mean curves, and `seeds` noises each; the truth is known."""
        columns = self.draw(rng, configurations)
        points = self.places(columns)
        scores = []
        for process in self.processes:
            mean, covariance = process.posterior(points)
            factor = np.linalg.cholesky(covariance + 1e-6 * (process.smooth + process.rest) * np.eye(len(mean)))
            scores.append(mean + factor @ rng.standard_normal(len(mean)))
        means = self.center + np.stack(scores, axis=1) @ self.axes  # (configurations, marks)
        near = self.noise[self.neighbours(points)].reshape(configurations, -1, len(self.marks))
        picks = rng.integers(near.shape[1], size=(configurations, seeds, 1))
        losses = np.exp(means[:, None] + np.take_along_axis(near, picks, axis=1))
        truth = np.exp(means[:, -1]) * np.exp(near[..., -1]).mean(axis=1)
        configs = tuple(pd.DataFrame(columns).to_dict("records"))
        return Curves(configs, losses, self.marks, truth)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two vectors; NaN counts as the highest."""
    ranks = [pd.Series(v).fillna(math.inf).rank() for v in (a, b)]
    return float(ranks[0].corr(ranks[1]))


def summary(curves: Curves, shares: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 2)) -> dict[str, float]:
    """The numbers that a table and its worlds should share; means are over the recorded seeds. Losses in nats per token."""
    means, spread = curves.finals.mean(axis=1), curves.finals.std(axis=1, ddof=1)
    best = means <= np.quantile(means, 0.25)
    found = {}
    for share in shares:
        early = curves.losses[..., np.searchsorted(curves.marks, share * curves.budget * (1 - 1e-9))]
        for title, part in (("", np.ones(len(means), bool)), (", best quarter", best)):
            each = [spearman(early[part, seed], means[part]) for seed in range(early.shape[1])]
            found[f"rank correlation at {share:.4g}{title}"] = float(np.mean(each))
    found["noise, best quarter"] = float((spread[best] ** 2).mean() ** 0.5)
    found["noise, best quarter, median"] = float(np.median(spread[best]))
    for share in (0, 0.1, 0.25, 0.5):
        found[f"mean final loss, quantile {share}"] = float(np.quantile(means, share))
    return found


def left_out(curves: Curves, parts: int = 10) -> tuple[float, float]:
    """R2 and rank correlation of the mean final log-loss, predicted for each tenth from the rest of the table."""
    n = len(curves.configs)
    part = np.random.default_rng(0).permutation(n) % parts
    truth, found = np.log(curves.finals).mean(axis=1), np.empty(n)
    for p in range(parts):
        rest = [i for i in range(n) if part[i] != p]
        surrogate = Surrogate(replace(curves, configs=tuple(curves.configs[i] for i in rest), losses=curves.losses[rest]))
        asked = {name: np.array([config[name] for config in curves.configs])[part == p] for name in surrogate.columns}
        found[part == p] = surrogate.predict(asked)[:, -1]
    return float(1 - ((truth - found) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()), spearman(truth, found)


def main() -> None:
    parser = Parser(prog="curves.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", required=True, type=Path, help="CSV file of full-length curves")
    parser.add_argument("--worlds", type=int, default=50, help="worlds to compare with the table")
    args = parser.parse_args()
    curves = read_curves(args.history)
    explained, ranked = left_out(curves)
    print(f"configurations left out: R2 {explained:.2f}, rank correlation {ranked:.2f}")
    surrogate, rng = Surrogate(curves), np.random.default_rng(0)
    n, seeds = curves.losses.shape[:2]
    worlds = pd.DataFrame([summary(surrogate.world(rng, n, seeds)) for _ in range(args.worlds)])
    print(f"{'':42}{'table':>8}{'worlds':>8}{'+-':>8}")
    for name, value in summary(curves).items():
        print(f"{name:42}{value:8.3f}{worlds[name].mean():8.3f}{worlds[name].std():8.3f}")


if __name__ == "__main__":
    run_command(main)
