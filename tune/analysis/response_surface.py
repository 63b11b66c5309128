"""The response surface: how the loss follows the hyper-parameters, and how much each of them matters."""

import math
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from tune.analysis.axes import axes_of
from tune.analysis.posterior import LEVEL, Floats, interval
from tune.config.spec import SearchSpec
from tune.core.searchers.gaussian_process import projected
from tune.core.trials import Trials

FEWEST = 8  # trials that a surface needs
MOST = 150  # trials that the surface is fitted to: half of them the best
BASE = 256  # points from which Sobol's indices are estimated, a power of two
KERNELS, THINNED, BURNED = 16, 4, 32  # processes; steps of the sampler between two of them; steps before the first
DRAWS = 6  # surfaces of each process


class ResponseSurface:
    """The loss over the hyper-parameters: scikit-learn's Gaussian process on the expected final loss of each trial.

    The expected final loss of a trial left behind is its last loss, changed as the loss of the trials that went on did.
    Losses above the median, and diverged trials, count as the median: how bad a bad trial is does not matter. Raises
    ValueError with the reason where there are fewer than FEWEST trials.
    """

    def __init__(self, search: SearchSpec, trials: Trials):
        self.axes = axes_of(search)
        known = sorted(projected(trials, search.scheduler().stops), key=lambda row: row[1])
        if len(known) < FEWEST or not math.isfinite(known[0][1]):
            raise ValueError(f"only {len(known)} trials have come to a rung; from {FEWEST} on something can be said")
        if len(known) > MOST:
            rest = np.linspace(MOST // 2, len(known) - 1, MOST - MOST // 2).astype(int)
            known = known[: MOST // 2] + [known[index] for index in rest]
        losses = np.array([loss for _, loss, _ in known])
        self.count = len(known)
        self.points = np.array([[axis.place(trial.config[axis.name]) for axis in self.axes] for trial, _, _ in known])
        losses = np.minimum(losses, np.median(losses[np.isfinite(losses)]))
        self.mean, self.scale = losses.mean(), losses.std() or 1.0
        self.losses = (losses - self.mean) / self.scale

    @cached_property
    def processes(self) -> list[Any]:
        """KERNELS Gaussian processes over the unit cube, each with a kernel drawn from the kernels' posterior.

        The single best kernel gives intervals that are far too narrow (LOG.md, "coverage"). Elliptical slice sampling draws
        the kernels (Murray et al. 2010): it has no step size to choose. The prior of each parameter is log-normal.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        d, rng = len(self.axes), np.random.default_rng(0)
        center, spread = np.r_[0.0, np.full(d, 0.5), math.log(0.03)], np.r_[0.7, np.full(d, 1.0), 1.0]  # of logarithms
        kernel = ConstantKernel(1.0) * Matern(np.ones(d), nu=2.5) + WhiteKernel(0.03)
        fit = GaussianProcessRegressor(kernel, optimizer=None).fit(self.points, self.losses)

        def likelihood(place: Floats) -> float:
            return float(fit.log_marginal_likelihood(center + spread * place, clone_kernel=False))

        at, found = np.zeros(d + 2), []
        now = likelihood(at)
        for step in range(KERNELS * THINNED + BURNED):
            ellipse, level = rng.standard_normal(d + 2), now + math.log(rng.random())
            angle = rng.uniform(0, 2 * math.pi)
            low, high = angle - 2 * math.pi, angle
            while True:
                there = at * math.cos(angle) + ellipse * math.sin(angle)
                now = likelihood(there)
                if now > level:
                    break
                low, high = (angle, high) if angle < 0 else (low, angle)
                angle = rng.uniform(low, high)
            at = there
            if step >= BURNED and (step - BURNED) % THINNED == 0:
                drawn = kernel.clone_with_theta(center + spread * at)
                found.append(GaussianProcessRegressor(drawn, optimizer=None).fit(self.points, self.losses))
        return found

    def predict(self, points: Floats) -> Floats:
        """Returns (3, m) the expected loss at the points (m, d), nats per token, and both ends of its interval."""
        rng, drawn = np.random.default_rng(0), []
        for process in self.processes:
            cross = process.kernel_.k1(points, process.X_train_)
            solved = solve_triangular(process.L_, cross.T, lower=True)
            std = np.sqrt(np.maximum(process.kernel_.k1.diag(points) - (solved**2).sum(axis=0), 0))
            drawn.append(cross @ process.alpha_.ravel() + std * rng.standard_normal((50, 1)))
        quantiles = np.quantile(np.concatenate(drawn), [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        found: Floats = np.exp(self.mean + self.scale * quantiles)
        return found

    def importance(self) -> list[dict[str, Any]]:
        """Returns a row a hyper-parameter, the most important first: hyper_parameter, importance (scipy's total-order
        Sobol index: the share of the variance that it and its interactions explain), low and high, the ends of its
        interval.
        """
        from scipy.stats import qmc, sobol_indices

        d = len(self.axes)
        pairs = qmc.Sobol(2 * d, seed=0).random(BASE)
        a, b = pairs[:, :d], pairs[:, d:]
        points = np.concatenate([a, b, *(np.where(np.arange(d) == i, b, a) for i in range(d))])  # (BASE * (d + 2), d)
        rng, drawn = np.random.default_rng(0), []
        for process in self.processes:
            smooth = process.kernel_.k1
            cross, own = smooth(points, process.X_train_), smooth(points)
            solved = solve_triangular(process.L_, cross.T, lower=True)
            factor = np.linalg.cholesky(own - solved.T @ solved + 1e-6 * np.eye(len(points)))
            drawn.append(cross @ process.alpha_.ravel() + (factor @ rng.standard_normal((len(points), DRAWS))).T)
        values = np.concatenate(drawn).reshape(-1, d + 2, BASE)  # (KERNELS * DRAWS, d + 2, BASE)

        def total_order(values: Floats) -> Floats:
            parts = {"f_A": values[:, 0], "f_B": values[:, 1], "f_AB": values[:, 2:].swapaxes(0, 1)}
            indices: Floats = np.clip(sobol_indices(func=parts, n=BASE).total_order, 0, 1)  # (draws, d)
            return indices

        # BASE points are few: half of the change by resampling them counts as error, as Sobol points are not random
        again = np.random.default_rng(0).integers(BASE, size=(len(values), 1, BASE))
        resampled = np.take_along_axis(values, np.broadcast_to(again, values.shape), axis=2)
        total = (total_order(values) + total_order(resampled)) / 2
        rows = []
        for axis, shares in zip(self.axes, total.T, strict=True):
            low, high = interval(shares)
            rows.append({"hyper_parameter": axis.name, "importance": float(np.median(shares)), "low": low, "high": high})
        return sorted(rows, key=lambda row: -row["importance"])
