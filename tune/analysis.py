"""What the trials say of the hyper-parameters: how much each matters, how the loss follows them, and where a range ends."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve_triangular

from tune.belief import LEVEL, interval
from tune.settings import Search
from tune.surrogate import projected
from tune.trials import Trial, Trials

FEWEST = 8  # trials from which anything can be said
MOST = 150  # trials the surface is fitted to: half of them the best
BASE = 256  # points from which Sobol's indices are estimated, a power of two
KERNELS, THINNED, BURNED = 16, 4, 32  # steps of the sampler; each kernel is one of a fitted process
DRAWS = 6  # surfaces of each process
EDGE = 0.05  # of a range


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter's range, as search.json shows it: from `low` to `high`, or one of `values`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    values: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, text: str) -> "Axis":
        """The axis that a text like '0.001 to 0.1 (log)' or '4, 8, 16' describes."""
        found = re.fullmatch(r"(\S+) to (\S+?)( \(log\))?", text)
        if found:
            return cls(name, float(found[1]), float(found[2]), bool(found[3]))
        return cls(name, values=tuple(text.split(", ")))

    @property
    def numbers(self) -> list[float] | None:
        """The values where they are numbers, else None."""
        try:
            return [float(value) for value in self.values] or None
        except ValueError:
            return None

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale: batch sizes double."""
        numbers = self.numbers
        return self.log or bool(numbers and len(numbers) > 2 and min(numbers) > 0 and max(numbers) >= 4 * min(numbers))

    def place(self, value: float | str) -> float:
        """Where `value` lies, from 0 to 1."""
        if not self.values:
            low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, 1e-300)))
            return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5
        numbers = self.numbers
        at = min(range(len(numbers)), key=lambda i: abs(numbers[i] - value)) if numbers else self.values.index(str(value))
        return at / max(1, len(self.values) - 1)

    def value(self, place: float) -> float:
        """The number at `place`; between two values where they are a list."""
        if not self.values:
            return self.low * (self.high / self.low) ** place if self.log else self.low + place * (self.high - self.low)
        numbers = self.numbers or list(range(len(self.values)))
        scaled = np.log(numbers) if self.is_log else np.array(numbers)
        found = float(np.interp(place * (len(numbers) - 1), range(len(numbers)), scaled))
        return math.exp(found) if self.is_log else found


def axes_of(search: Search) -> list[Axis]:
    """The axes along which a search looked."""
    return [Axis.read(name, text) for name, text in search.ranges.items()]


@dataclass(frozen=True)
class Edge:
    """The best lies where a range ends."""

    axis: Axis
    value: float
    end: float
    flag: str
    """what to search next, as search.py reads it"""


def edges(axes: list[Axis], config: dict) -> list[Edge]:
    """The ranges within EDGE of whose end `config` lies, or whose first or last number it has."""
    found = []
    for axis in axes:
        place = axis.place(config[axis.name])
        if (axis.values and not (axis.numbers and len(axis.values) > 2)) or EDGE < place < 1 - EDGE:
            continue
        low_end = place < 0.5
        if axis.values:
            numbers = axis.numbers or []
            step = numbers[1] / numbers[0] if axis.is_log else numbers[1] - numbers[0]
            beyond, at = [], numbers[0] if low_end else numbers[-1]
            for _ in range(2):
                at = (at / step if low_end else at * step) if axis.is_log else (at - step if low_end else at + step)
                if at > 0 and (at == int(at) or axis.name != "batch_size"):
                    beyond.append(at)
            if beyond:
                kept = numbers[:3] if low_end else numbers[-3:]
                values = ",".join(f"{value:g}" for value in sorted([*beyond, *kept]))
                found.append(Edge(axis, config[axis.name], at, f"--choices {axis.name}={values}"))
            continue
        half = (axis.high / axis.low) ** 0.5 if axis.log else (axis.high - axis.low) / 2
        value = config[axis.name]
        low, high = (value / half, value * half) if axis.log else (max(0.0, value - half), value + half)
        if axis.name.endswith("_ratio"):
            high = min(high, 0.9)  # a share
        found.append(Edge(axis, value, axis.low if low_end else axis.high, f"--range {axis.name}={low:.2g}:{high:.2g}"))
    return found


class Surface:
    """The loss over the hyper-parameters: scikit-learn's Gaussian process on what each trial would lose at the end.

    A trial that was left behind counts with its loss there, changed as that of those which went on; losses beyond the
    median, and diverged trials, count as the median: how bad the bad ones are does not matter. Raises ValueError with the
    reason where there are fewer than FEWEST trials.
    """

    def __init__(self, search: Search, trials: Trials):
        self.axes = axes_of(search)
        milestones = (*search.scheduler().milestones, trials.budget_tokens)
        known: list[tuple[Trial, float, int]] = projected(trials, milestones)
        if len(known) < FEWEST or not any(math.isfinite(loss) for _, loss, _ in known):
            raise ValueError(f"only {len(known)} trials have come to a rung; from {FEWEST} on something can be said")
        known.sort(key=lambda row: row[1])
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
    def processes(self) -> list:
        """Gaussian processes over the unit cube, each with a kernel that the trials leave possible.

        One best kernel would be far too sure of itself (LOG.md, "coverage"), so KERNELS are drawn from their posterior by
        elliptical slice sampling (Murray et al. 2010): no step size to choose. The prior of each is log-normal.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        d, rng = len(self.axes), np.random.default_rng(0)
        center, spread = np.r_[0.0, np.full(d, 0.5), math.log(0.03)], np.r_[0.7, np.full(d, 1.0), 1.0]  # logarithms
        kernel = ConstantKernel(1.0) * Matern(np.ones(d), nu=2.5) + WhiteKernel(0.03)
        fit = GaussianProcessRegressor(kernel, optimizer=None).fit(self.points, self.losses)

        def likelihood(place: np.ndarray) -> float:
            return fit.log_marginal_likelihood(center + spread * place, clone_kernel=False)

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

    def draw(self, points: np.ndarray) -> np.ndarray:
        """(draws, m) log-losses at the points (m, d), in the unit of `losses`, that the trials leave possible."""
        rng, drawn = np.random.default_rng(0), []
        for process in self.processes:
            smooth = process.kernel_.k1
            cross, own = smooth(points, process.X_train_), smooth(points)
            solved = solve_triangular(process.L_, cross.T, lower=True)
            factor = np.linalg.cholesky(own - solved.T @ solved + 1e-6 * np.eye(len(points)))
            drawn.append(cross @ process.alpha_.ravel() + (factor @ rng.standard_normal((len(points), DRAWS))).T)
        return np.concatenate(drawn)

    def predict(self, points: np.ndarray) -> np.ndarray:
        """(3, m) expected loss at the points (m, d), nats per token, and both ends of its interval."""
        low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
        rng, drawn = np.random.default_rng(0), []
        for process in self.processes:
            cross = process.kernel_.k1(points, process.X_train_)
            solved = solve_triangular(process.L_, cross.T, lower=True)
            std = np.sqrt(np.maximum(process.kernel_.k1.diag(points) - (solved**2).sum(axis=0), 0))
            drawn.append(cross @ process.alpha_.ravel() + std * rng.standard_normal((50, 1)))
        return np.exp(self.mean + self.scale * np.quantile(np.concatenate(drawn), [0.5, low, high], axis=0))

    def importance(self) -> list[dict]:
        """A row a hyper-parameter, the one that matters most first: the share of the variance over the ranges that would go
        if it were known, its interactions included (scipy's total-order Sobol index), with its interval.
        """
        from scipy.stats import qmc, sobol_indices

        d = len(self.axes)
        pairs = qmc.Sobol(2 * d, seed=0).random(BASE)
        a, b = pairs[:, :d], pairs[:, d:]
        mixed = [np.where(np.arange(d) == i, b, a) for i in range(d)]
        values = self.draw(np.concatenate([a, b, *mixed]))  # (draws, BASE * (d + 2))
        values = values.reshape(len(values), d + 2, BASE)

        def total_order(values: np.ndarray) -> np.ndarray:
            parts = {"f_A": values[:, 0], "f_B": values[:, 1], "f_AB": values[:, 2:].swapaxes(0, 1)}
            return np.clip(sobol_indices(func=parts, n=BASE).total_order, 0, 1)  # (draws, d)

        # That the points are few is part of the doubt: half of what drawing them again changes, as they are no random ones
        again = np.random.default_rng(0).integers(BASE, size=(len(values), 1, BASE))
        resampled = np.take_along_axis(values, np.broadcast_to(again, values.shape), axis=2)
        total = (total_order(values) + total_order(resampled)) / 2
        rows = []
        for axis, shares in zip(self.axes, total.T, strict=True):
            low, high = interval(shares)
            rows.append({"hyper_parameter": axis.name, "importance": float(np.median(shares)), "low": low, "high": high})
        return sorted(rows, key=lambda row: -row["importance"])
