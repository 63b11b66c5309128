"""Chooses the next run of a level: where the fit expects the optimum, or where a run tells most of the target."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from myllm.scaling_laws import Size
from tune.ladder.fit import BASE, BATCH, CURVE_A, CURVE_C, LEVELS, RATE, RELATIVE_ERROR, Array, Fit, Run, excess, levels_of

Point = tuple[float, int]
"""learning rate, batch in windows"""

RATE_STEPS = [2 ** (step / 2) for step in range(-4, 5)]
BATCH_STEPS = [2.0**step for step in range(-2, 3)]
"""factors around the optimum among which the most telling run is looked for"""

STEP = 1e-5  # of the numerical derivatives


def most_telling(
    fit: Fit,
    runs: Sequence[Run],
    size: Size,
    target: Size,
    candidates: Iterable[Point],
    running: Sequence[Point],
    window: int,
) -> Point:
    """Returns the candidate whose run is expected to lower the target's regret most.

    The regret is that of a rate and a batch as uncertain as the fit has them: half of each variance times its curvature.
    Runs that still train count as if their losses had come.
    """
    place, index = fit.place(size), list(levels_of(runs)).index(size) if size in levels_of(runs) else None
    relative_noise = fit.seed_noise / math.exp(float(np.mean(np.log([run.loss for run in runs]))))

    def surface(point: Point) -> Callable[[Array], float]:
        rate, batch = math.log(point[0]), math.log(point[1] * window)

        def log_loss(p: Array) -> float:
            level = 0.0 if index is None else p[LEVELS + index]
            return float(place @ p[BASE] + level + excess(p, *(np.array([rate, batch]) - fit.centre(p, size))))

        return log_loss

    covariance = fit.covariance
    for point in running:
        row, variance = _row(fit, surface(point), relative_noise)
        gain = covariance @ row
        covariance = covariance - np.outer(gain, gain) / (variance + row @ gain)
    goal, weights = np.zeros((2, len(fit.mean))), np.exp(fit.mean[[CURVE_A, CURVE_C]]) / 2
    goal[0, RATE] = goal[1, BATCH] = fit.place(target)

    def worth(point: Point) -> float:
        row, variance = _row(fit, surface(point), relative_noise)
        gain = covariance @ row
        return float(weights @ (goal @ gain) ** 2 / (variance + row @ gain))

    return max(candidates, key=worth)


def _row(fit: Fit, log_loss: Callable[[Array], float], relative_noise: float) -> tuple[Array, float]:
    """Returns the derivatives of a run's log loss by the parameters, shape (parameters,), and the run's variance."""
    steps = STEP * np.eye(len(fit.mean))
    row = np.array([(log_loss(fit.mean + step) - log_loss(fit.mean - step)) / (2 * STEP) for step in steps])
    flat = fit.mean.copy()
    flat[[CURVE_A, CURVE_C]] = -50.0  # a surface without curvature has the lowest loss everywhere
    rise = log_loss(fit.mean) - log_loss(flat)
    return row, relative_noise**2 + (RELATIVE_ERROR * rise) ** 2
