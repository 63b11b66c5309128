"""What the trials say of the hyper-parameters: how much each matters, how the loss follows them, and where a range ends."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from tune.analysis.posterior import LEVEL, interval
from tune.config.overrides import SCALES
from tune.config.spec import SearchSpec
from tune.core.search_space import LINEAR, LOG, LOG_BELOW_ONE, Choice, Range
from tune.core.searchers.gaussian_process import projected
from tune.core.trials import Trial, Trials

FEWEST = 8  # trials from which anything can be said
MOST = 150  # trials the surface is fitted to: half of them the best
BASE = 256  # points from which Sobol's indices are estimated, a power of two
KERNELS, THINNED, BURNED = 16, 4, 32  # steps of the sampler; each kernel is one of a fitted process
DRAWS = 6  # surfaces of each process
BELOW_ONE = ("dropout", "beta1", "beta2", "warmup_ratio", "min_lr_ratio", "cooldown_ratio")
EDGE = 0.05  # of a range


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter and what it is drawn from, as something to draw along."""

    name: str
    drawn_from: Range | Choice

    @property
    def values(self) -> tuple[str, ...]:
        """The words of a list; empty for a range."""
        return tuple(map(str, self.drawn_from.values)) if isinstance(self.drawn_from, Choice) else ()

    @property
    def numbers(self) -> list[float] | None:
        """The values of a list where they are numbers, else None."""
        values = self.drawn_from.values if isinstance(self.drawn_from, Choice) else ("",)
        return None if any(isinstance(value, (bool, str)) for value in values) else list(values)

    @property
    def is_category(self) -> bool:
        """Whether its values are no numbers."""
        return bool(self.values) and self.numbers is None

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale: batch sizes double."""
        if isinstance(self.drawn_from, Range):
            return self.drawn_from.scale == LOG
        numbers = self.numbers
        return bool(numbers and len(numbers) > 2 and min(numbers) > 0 and max(numbers) >= 4 * min(numbers))

    def place(self, value: Any) -> float:
        """Where `value` lies, from 0 to 1."""
        return self.drawn_from.place(value)

    def value(self, place: float) -> float:
        """The number at `place`; between two values where they are a list."""
        if isinstance(self.drawn_from, Range):
            return self.drawn_from.at(place)
        numbers = self.numbers or list(range(len(self.values)))
        scaled = np.log(numbers) if self.is_log else np.array(numbers)
        found = float(np.interp(place * (len(numbers) - 1), range(len(numbers)), scaled))
        return math.exp(found) if self.is_log else found


def axes_of(search: SearchSpec) -> list[Axis]:
    """The axes along which a search looked."""
    return [Axis(name, values) for name, values in search.ranges.items()]


@dataclass(frozen=True)
class RangeEdge:
    """The best lies where a range ends."""

    axis: Axis
    value: float
    end: float
    flag: str
    """what to search next, as search.py reads it"""


def edges(axes: list[Axis], config: dict) -> list[RangeEdge]:
    """The ranges within EDGE of whose end `config` lies; none where nothing lies beyond."""
    found = []
    for axis in axes:
        value = config[axis.name]
        edge = _range_edge(axis, value) if isinstance(axis.drawn_from, Range) else _choice_edge(axis, value)
        found += [edge] if edge else []
    return found


def _choice_edge(axis: Axis, value: Any) -> RangeEdge | None:
    numbers, place = axis.numbers or [], axis.place(value)
    if len(numbers) < 3 or 0 < place < 1 or axis.name == "n_head":  # what divides the width
        return None
    step = numbers[1] / numbers[0] if axis.is_log else numbers[1] - numbers[0]
    low_end, whole = place == 0, all(isinstance(number, int) for number in numbers)
    beyond, at = [], numbers[0] if low_end else numbers[-1]
    for _ in range(2):
        at = (at / step if low_end else at * step) if axis.is_log else (at - step if low_end else at + step)
        if 0 < at < (1 if axis.name in BELOW_ONE else math.inf) and (at == int(at) or not whole):
            beyond.append(at)
    if not beyond:
        return None
    values = ",".join(f"{value:g}" for value in sorted([*beyond, *(numbers[:3] if low_end else numbers[-3:])]))
    return RangeEdge(axis, value, numbers[0] if low_end else numbers[-1], f"--choices {axis.name}={values}")


def _range_edge(axis: Axis, value: float) -> RangeEdge | None:
    of, place = axis.drawn_from, axis.place(value)
    low_end = place < 0.5
    end = of.low if low_end else of.high
    if (EDGE < place < 1 - EDGE and not (of.whole and value == end)) or (low_end and end == 0):
        return None
    if of.scale == LOG:
        half = (of.high / of.low) ** 0.5
        low, high = value / half, value * half
    elif of.scale == LOG_BELOW_ONE:
        half = ((1 - of.low) / (1 - of.high)) ** 0.5
        low, high = max(0.0, 1 - (1 - value) * half), 1 - (1 - value) / half
    else:
        half = (of.high - of.low) / 2
        low, high = max(0.0, value - half) if of.low >= 0 else value - half, value + half
        if axis.name in ("beta1", "beta2"):
            high = min(high, (1 + of.high) / 2)
    if axis.name.endswith("_ratio") or axis.name == "dropout":
        high = min(high, 0.9)  # a share
    digits = ".6g" if of.scale == LOG_BELOW_ONE else ".2g"
    low, high = (max(1, round(low)), math.ceil(high)) if of.whole else (f"{end:{digits}}" for end in (low, high))
    own = SCALES.get(axis.name, LINEAR)
    scale = "" if of.scale == own else ":linear" if of.scale == LINEAR else ":log"
    return RangeEdge(axis, value, end, f"--range {axis.name}={low}:{high}{scale}")


class ResponseSurface:
    """The loss over the hyper-parameters: scikit-learn's Gaussian process on what each trial would lose at the end.

    A trial that was left behind counts with its loss there, changed as that of those which went on; losses beyond the
    median, and diverged trials, count as the median: how bad the bad ones are does not matter. Raises ValueError with the
    reason where there are fewer than FEWEST trials.
    """

    def __init__(self, search: SearchSpec, trials: Trials):
        self.axes = axes_of(search)
        rung_tokens = search.scheduler().stops
        known: list[tuple[Trial, float, int]] = projected(trials, rung_tokens)
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
