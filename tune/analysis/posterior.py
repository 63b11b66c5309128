"""The joint posterior of the expected losses of configurations, given the losses of a few seeds. No files, no trials.

A loss is the expected loss plus the noise of one seed. Variances between seeds are scaled inverse chi-squared around a
common one (Smyth 2004); expected losses are normal around a common mean (Gelman et al., BDA, chapter 5), which shrinks the
lead of the best by the part that is probably luck. How often intervals hold: experiments/LOG.md, "the loss's interval".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Corrections of the posterior, fitted to simulated searches whose true losses are known.

    The first five: experiments/coverage.py, LOG.md "the loss's interval". The last two: LOG.md "probability of being the
    best".
    """

    noise_of_single_seed: float = 2.0
    """factor on the noise of a configuration with one seed; replicated ones are the best, whose noise is low"""
    noise_of_baseline: float = 2.5  # factor on the noise of the baseline, which was not picked for its loss
    hidden_noise: float = 1.15  # factor on the standard error of a mean over several seeds
    skew_below: float = 0.85  # factor on errors below the mean of several seeds, but for the baseline
    skew_above: float = 1.6
    """factor on errors above: now and then a seed is much worse, and a configuration that led was spared it so far"""
    odds_offset: float = 0.83  # log-odds that the best is the best = odds_offset + odds_slope * log-odds of the draws
    odds_slope: float = 0.63


CALIBRATION = Calibration()
DRAWS = 2000  # of the posterior
LEVEL = 0.9  # of every interval
CONSIDERED = 50  # best configurations in the posterior; the others have no chance of being the best
FREEDOMS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])  # degrees of freedom: more make the variances more alike
SCALES = np.logspace(-3, 1, 41)  # of the common variance, in units of the variance of all seeds pooled
SPREADS = np.logspace(-2, 1, 25)  # of the expected losses' standard deviation, in units of that of the means


def expected_losses(losses: Sequence[Sequence[float]], baseline: int | None = None) -> Floats | None:
    """Draws (DRAWS, n) expected losses of n configurations, given the finite `losses` of each, one a seed.

    The expected loss of the `baseline` is not shrunk towards the others, as the baseline was not picked for its loss.
    Returns None where no configuration has two seeds: then nothing is known of the noise. Each call draws the same numbers.
    """
    fitted = CALIBRATION
    seeds = np.array([len(of_one) for of_one in losses])
    if not len(seeds) or seeds.max() < 2:
        return None
    rng = np.random.default_rng(0)
    size = max(abs(loss) for of_one in losses for loss in of_one)
    unit = 2.0 ** round(math.log2(size)) if size and not 1e-6 < size < 1e6 else 1.0  # squares of 1e300 are infinite
    scaled = [np.array(of_one) / unit for of_one in losses]
    means = np.array([np.mean(of_one) for of_one in scaled])
    squares = np.array([np.sum((of_one - mean) ** 2) for of_one, mean in zip(scaled, means, strict=True)])
    picked = np.array([index != baseline for index in range(len(seeds))])
    scales = np.where(picked, np.where(seeds == 1, fitted.noise_of_single_seed, 1.0), fitted.noise_of_baseline)
    variances = _variances(squares, seeds - 1, scales, rng) * np.where(seeds == 1, 1.0, fitted.hidden_noise) ** 2 / seeds
    noise = rng.standard_normal(variances.shape)
    noise *= np.where(picked & (seeds > 1), np.where(noise < 0, fitted.skew_below, fitted.skew_above), 1.0)
    drawn: Floats = means + np.sqrt(variances) * noise
    if picked.sum() > 2 and np.ptp(means[picked]) > 1e-100:
        drawn[:, picked] = _shrunk(means[picked], variances[:, picked], noise[:, picked], rng)
    return drawn * unit


def _variances(squares: Floats, free: Floats, scales: Floats, rng: np.random.Generator) -> Floats:
    """Draws (DRAWS, n) variances between seeds, from the sums of squares (n,) and their degrees of freedom (n,).

    The variances in units of `scales` (n,) squared have the common distribution.
    """
    from scipy.special import betaln, softmax  # imported here: it takes as long as all modules of a search

    squares = squares / scales**2
    pooled = max(squares.sum() / free.sum(), 1e-18)
    squares = np.maximum(squares, 1e-4 * pooled * free)  # two equal losses do not prove that there is no noise
    freedom, common = (grid.reshape(-1, 1) for grid in np.meshgrid(FREEDOMS, pooled * SCALES, indexing="ij"))
    d1 = free[free > 0]
    ratio = squares[free > 0] / common / freedom  # a sample variance over the common one has an F distribution
    log_p = d1 / 2 * np.log(ratio) - (d1 + freedom) / 2 * np.log1p(ratio) - betaln(d1 / 2, freedom / 2)
    chosen = rng.choice(len(freedom), DRAWS, p=softmax(log_p.sum(axis=1)))
    found: Floats = (freedom[chosen] * common[chosen] + squares) / rng.chisquare(freedom[chosen] + free) * scales**2
    return found


def _shrunk(means: Floats, variances: Floats, noise: Floats, rng: np.random.Generator) -> Floats:
    """Draws (DRAWS, n) expected losses, normal around an unknown common mean, with unknown spread.

    `means` (n,) are the mean losses, `variances` (DRAWS, n) their variances, `noise` (DRAWS, n) standard normal numbers.
    """
    from scipy.special import softmax

    spreads = (means.std(ddof=1) * SPREADS) ** 2
    log_p, centers, weights = np.empty((3, len(spreads), len(variances)))
    for at, spread in enumerate(spreads):  # a variance of the expected losses; half-Cauchy prior
        weight = 1 / (spread + variances)
        weights[at] = weight.sum(axis=1)
        centers[at] = (weight * means).sum(axis=1) / weights[at]
        misfit = (weight * (means - centers[at][:, None]) ** 2).sum(axis=1)
        log_p[at] = (np.log(weight).sum(axis=1) - np.log(weights[at]) - misfit + np.log(spread)) / 2
        log_p[at] -= np.log1p(SPREADS[at] ** 2)
    below = np.cumsum(softmax(log_p, axis=0), axis=0) < rng.random(len(variances))
    at, draw = np.minimum(below.sum(axis=0), len(spreads) - 1), np.arange(len(variances))
    center = centers[at, draw] + rng.standard_normal(len(draw)) / np.sqrt(weights[at, draw])
    kept = spreads[at][:, None] / (spreads[at][:, None] + variances)  # share of a lead that is not luck
    found: Floats = center[:, None] + kept * (means - center[:, None]) + np.sqrt(kept * variances) * noise
    return found


def probability_of_best(drawn: Floats) -> Floats:
    """Returns (n,) probabilities of having the lowest expected loss, from (DRAWS, n) draws; the best comes first. Its
    share of the draws is calibrated to searches with a known answer (Platt 1999), as the draws ignore rungs and
    hyper-parameters; the others share the rest as they share the draws.
    """
    mine, *others = np.bincount(drawn.argmin(axis=1), minlength=drawn.shape[1]) / len(drawn) + 1e-3
    chance = 1 / (1 + np.exp(-CALIBRATION.odds_offset - CALIBRATION.odds_slope * np.log(mine / (1.002 - mine))))
    return np.array([chance, *((1 - chance) * np.array(others) / sum(others))])


def interval(draws: Floats) -> tuple[float, float]:
    """Returns both ends of the middle LEVEL of the draws (m,)."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
