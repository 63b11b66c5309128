"""The loss surfaces of small trainings, fitted together.

With u and v the distances of log rate and log batch from the optimum of a level, t = u - rho v,

    log loss = base(N, D) + a (exp(k t) - 1 - k t) / k^2 + c v^2 / 2.

Near the optimum this is a quadratic with common curvatures. Away from it the loss rises faster at high rates than at
low ones: k, the skew, was chosen on the 60M and 120M grids of Step Law (arXiv 2503.04715). A quadratic, k = 0, puts the
rate at .7 to .85 of the optimum there. Base and optimum are linear in log N and log D; the rate of a
short training comes on top.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from myllm.scaling_laws import Size, reference_point, reference_sds, short_training
from tune.ladder.prior import Belief, Prior

Array = NDArray[np.float64]

SEED_NOISE_WEIGHT = 4
"""Degrees of freedom that the prior's seed noise counts for beside the replicates."""

RELATIVE_ERROR = 1.0
"""Error of the form as a share of a run's distance from the lowest loss; the best of .5, 1, 2 on the 60M and 120M grids."""

MISFIT_WEIGHT = 4
"""Runs that a mean squared residual of 1 counts for beside the runs' own."""

PASSES = 8
"""Passes of the fit; each takes the runs' weights from the fit before."""


@dataclass(frozen=True)
class Run:
    """One whole training: its size, learning rate, batch (tokens a step) and loss (nats a token)."""

    size: Size
    learning_rate: float
    batch_tokens: float
    loss: float


CURVE_A, CURVE_C, RHO, SKEW = range(4)
RATE = slice(4, 7)
BATCH = slice(7, 10)
BASE = slice(10, 13)
LEVELS = 13
"""Places in the vector of parameters; each slice holds value at the middle, exponent of N, exponent of D.

From LEVELS on comes the log loss of each level off the power law.
"""


@dataclass(frozen=True)
class Fit:
    """The posterior of the surfaces' parameters: a normal distribution around the best fit."""

    mean: Array
    covariance: Array
    middle: tuple[float, float]  # log N, log D from which sizes are measured
    seed_noise: float  # nats
    prior: Prior
    target: Size | None  # whose optimum is also believed to lie around its reference point

    def place(self, size: Size) -> Array:
        """Returns 1, log N, log D of `size`, measured from the middle of the runs; shape (3,)."""
        return np.array([1.0, math.log(size.params) - self.middle[0], math.log(size.tokens) - self.middle[1]])

    def centre(self, parameters: Array, size: Size) -> Array:
        """Returns log rate and log batch of the surface's lowest point at `size`; shape (2,)."""
        place = self.place(size)
        return np.array([place @ parameters[RATE] + short_training(size), place @ parameters[BATCH]])

    def sample(self, count: int, seed: int = 0) -> Array:
        """Returns `count` draws of all parameters, shape (count, parameters)."""
        rng = np.random.default_rng(seed)
        return np.asarray(rng.multivariate_normal(self.mean, self.covariance, count, method="eigh"))

    def optimum(self, size: Size) -> tuple[Array, Array]:
        """Returns mean and covariance of log rate and log batch of the optimum at `size`; shapes (2,) and (2, 2).

        The covariance holds the error of the form. At the target they are those of the runs and of the reference together.
        """
        rows = np.zeros((2, len(self.mean)))
        rows[0, RATE] = rows[1, BATCH] = self.place(size)
        mean = self.centre(self.mean, size)
        covariance = rows @ self.covariance @ rows.T + self.form_sd(size) ** 2 * np.eye(2)
        if size != self.target or not self.prior.has_reference:
            return mean, covariance
        gain = covariance @ np.linalg.inv(covariance + np.diag(np.square(reference_sds(size))))
        return mean + gain @ (np.log(reference_point(size)) - mean), covariance - gain @ covariance

    def form_sd(self, size: Size) -> float:
        """Returns the standard deviation of the optimum at `size` off its power laws, in log rate and log batch."""
        return self.prior.form_sd_at(*map(float, self.place(size)[1:]))


def excess(parameters: Array, log_rate: Array, log_batch: Array) -> Array:
    """Returns the rise of log loss at distances from the optimum.

    `parameters` has the shape (..., parameters), the distances broadcast against its leading axes.
    """
    skew = np.maximum(parameters[..., SKEW], 0.1)
    t = skew * np.clip(log_rate - parameters[..., RHO] * log_batch, -8, 3)
    along_rate = np.exp(parameters[..., CURVE_A]) * (np.exp(t) - 1 - t) / skew**2
    return np.asarray(along_rate + np.exp(parameters[..., CURVE_C]) * log_batch**2 / 2)


def best_sixth(runs: Sequence[Run]) -> Array:
    """Returns the mean log rate and log batch of the sixth of `runs` with the lowest losses, one run at least."""
    best = sorted(runs, key=lambda run: run.loss)[: max(1, round(len(runs) / 6))]
    return np.asarray(np.log([(run.learning_rate, run.batch_tokens) for run in best]).mean(0))


def levels_of(runs: Sequence[Run]) -> dict[Size, list[Run]]:
    """Returns the runs by size, smallest first."""
    found: dict[Size, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.size.params, run.size.tokens)):
        found.setdefault(run.size, []).append(run)
    return found


def seed_noise(runs: Sequence[Run], before: float) -> float:
    """Returns the standard deviation between replicates in nats, pooled with `before`, which is believed without any."""
    groups: dict[tuple[Size, float, float], list[float]] = {}
    for run in runs:
        groups.setdefault((run.size, run.learning_rate, run.batch_tokens), []).append(run.loss)
    squares = sum(float(np.var(losses)) * len(losses) for losses in groups.values())
    freedom = len(runs) - len(groups)
    return math.sqrt((SEED_NOISE_WEIGHT * before**2 + squares) / (SEED_NOISE_WEIGHT + freedom))


def fit_runs(runs: Sequence[Run], prior: Prior, target: Size | None = None) -> Fit:
    """Returns the fit of all `runs`; their losses must be finite and positive.

    Where the prior has a reference, the optimum of `target` is believed to lie around its reference point as well.
    A run's standard deviation is the seed noise and RELATIVE_ERROR of its distance from the lowest loss, together.
    The covariance is Laplace's, from the last pass, with the runs' variances scaled by their mean squared residual.
    """
    levels = levels_of(runs)
    runs = [run for level in levels.values() for run in level]
    level_of = np.repeat(np.arange(len(levels)), [len(level) for level in levels.values()])
    values = np.log([(run.size.params, run.size.tokens, run.learning_rate, run.batch_tokens, run.loss) for run in runs])
    middle = values[:, :2].mean(0)
    places = np.column_stack([np.ones(len(runs)), values[:, :2] - middle])
    log_rate, log_batch, losses = values[:, 2:].T
    log_rate = log_rate - [short_training(run.size) for run in runs]  # the optimum moves by powers but for this
    lowest = np.array([losses[level_of == index].min() for index in range(len(levels))])
    centres = [best_sixth(level) - (short_training(size), 0.0) for size, level in levels.items()]
    mean, sd = _prior_of(prior, np.mean(centres, axis=0), lowest)
    noise = seed_noise(runs, prior.seed_noise)
    relative_noise = noise / math.exp(losses.mean())

    def base(p: Array) -> Array:
        return np.asarray(places @ p[BASE] + p[LEVELS + level_of])

    def rise(p: Array) -> Array:
        return excess(p, log_rate - places @ p[RATE], log_batch - places @ p[BATCH])

    best, distance = mean, losses - lowest[level_of]
    for _ in range(PASSES):
        weight = 1 / np.hypot(relative_noise, RELATIVE_ERROR * distance)

        def residuals(p: Array, weight: Array = weight) -> Array:
            return np.concatenate([(losses - base(p) - rise(p)) * weight, (p - mean) / sd])

        found = least_squares(residuals, best, max_nfev=60)
        best = found.x
        distance = np.maximum(np.maximum(rise(best), losses - base(best)), 0)
    misfit = (MISFIT_WEIGHT + float(np.sum(found.fun[: len(runs)] ** 2))) / (MISFIT_WEIGHT + len(runs))
    from_runs, from_prior = found.jac[: len(runs)], found.jac[len(runs) :]
    covariance = np.linalg.inv(from_runs.T @ from_runs / misfit + from_prior.T @ from_prior)
    return Fit(best, covariance, (float(middle[0]), float(middle[1])), noise, prior, target)


def _prior_of(prior: Prior, centre: Array, lowest: Array) -> tuple[Array, Array]:
    """Returns means and standard deviations of all parameters before the runs."""
    beliefs = [
        prior.log_rate_curvature,
        prior.log_batch_curvature,
        prior.rho,
        prior.skew,
        Belief(float(centre[0]), prior.centre_sd),
        prior.rate_params,
        prior.rate_tokens,
        Belief(float(centre[1]), prior.centre_sd),
        prior.batch_params,
        prior.batch_tokens,
        Belief(float(lowest.mean()), 1.0),
        prior.loss_params,
        prior.loss_tokens,
        *[Belief(0.0, prior.level_sd)] * len(lowest),
    ]
    return np.array([belief.mean for belief in beliefs]), np.array([belief.sd for belief in beliefs])
