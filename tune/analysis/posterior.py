"""What a few seeds tell of the expected losses of configurations: draws from their joint posterior. No files, no trials.

A loss is the configuration's expected loss plus the noise of one seed. Few have been seen on several seeds, and those were
picked for their low losses. So noise and losses are learnt from all at once: the variances between seeds are scaled inverse
chi-squared around a common one (Smyth 2004, "Linear models and empirical Bayes methods"), and the expected losses normal
around a common mean (Gelman et al., Bayesian Data Analysis, chapter 5), which pulls the best towards the others by as much
as its lead may be luck. How often the intervals hold: experiments/LOG.md, "the loss's interval".
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
LEVEL = 0.9  # of every interval
SEEN_ONCE = 2.0
"""noise of a configuration with one seed, in that of the repeated ones: these are among the best, and the best are calm"""
REFERENCE = 2.5
"""that of the reference, which nobody picked"""
HIDDEN = 1.15  # noise of what was seen on several seeds, in what these show
SKEWED = (0.85, 1.6)
"""of that, how far the truth may lie below and above, unless nobody picked: now and then a seed goes much worse, and who
came past rungs, and is the best in the end, was spared that so far"""
CONSIDERED = 50  # of the best; the others have no chance, and would only say how bad the bad are
FREEDOMS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])  # how alike the configurations' variances may be, in degrees of freedom
SCALES = np.logspace(-3, 1, 41)  # of the common variance, in that of all seeds pooled
SPREADS = np.logspace(-2, 1, 25)  # of the expected losses, in that of the means seen
CHANCE = (0.83, 0.63)
"""the odds that the one called best is the best: their logarithm is the first, and the second times that of the draws"""


def expected_losses(losses: Sequence[Sequence[float]], reference: int | None = None) -> np.ndarray | None:
    """(DRAWS, n) expected losses of n configurations, given the finite `losses` of each, one a seed.

    That of the `reference`, which nobody picked for its loss, is not pulled towards the others. None where no
    configuration has two seeds: nothing is known of the noise then. The draws are the same at each call.
    """
    seeds = np.array([len(of_one) for of_one in losses])
    if not len(seeds) or seeds.max() < 2:
        return None
    rng = np.random.default_rng(0)
    size = max(abs(loss) for of_one in losses for loss in of_one)
    unit = 2.0 ** round(math.log2(size)) if size and not 1e-6 < size < 1e6 else 1.0  # squares of 1e300 are infinite
    scaled = [np.array(of_one) / unit for of_one in losses]
    means = np.array([np.mean(of_one) for of_one in scaled])
    squares = np.array([np.sum((of_one - mean) ** 2) for of_one, mean in zip(scaled, means, strict=True)])
    picked = np.array([index != reference for index in range(len(seeds))])
    scales = np.where(picked, np.where(seeds == 1, SEEN_ONCE, 1.0), REFERENCE)
    variances = _variances(squares, seeds - 1, scales, rng) * np.where(seeds == 1, 1.0, HIDDEN) ** 2 / seeds  # of the means
    noise = rng.standard_normal(variances.shape)
    noise *= np.where(picked & (seeds > 1), np.where(noise < 0, *SKEWED), 1.0)
    drawn = means + np.sqrt(variances) * noise
    if picked.sum() > 2 and np.ptp(means[picked]) > 1e-100:
        drawn[:, picked] = _pulled(means[picked], variances[:, picked], noise[:, picked], rng)
    return drawn * unit


def _variances(squares: np.ndarray, free: np.ndarray, scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(DRAWS, n) variances between seeds, from the sums of squares (n,) and their degrees of freedom (n,).

    What is alike are the variances in `scales` (n,) squared: some are noisier than others.
    """
    from scipy.special import betaln  # here: it takes as long to import as all of a search's own files

    squares = squares / scales**2
    pooled = max(squares.sum() / free.sum(), 1e-18)
    squares = np.maximum(squares, 1e-4 * pooled * free)  # two equal losses do not prove that there is no noise
    freedom, common = (grid.reshape(-1, 1) for grid in np.meshgrid(FREEDOMS, pooled * SCALES, indexing="ij"))
    d1 = free[free > 0]
    ratio = squares[free > 0] / common / freedom  # a sample variance over the common one has an F distribution
    log_p = d1 / 2 * np.log(ratio) - (d1 + freedom) / 2 * np.log1p(ratio) - betaln(d1 / 2, freedom / 2)
    chosen = rng.choice(len(freedom), DRAWS, p=_shares(log_p.sum(axis=1)))
    return (freedom[chosen] * common[chosen] + squares) / rng.chisquare(freedom[chosen] + free) * scales**2


def _pulled(means: np.ndarray, variances: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(DRAWS, n) expected losses that are normal around a common mean, both unknown; `variances` are those of `means`."""
    spreads = (means.std(ddof=1) * SPREADS) ** 2
    log_p, centers, weights = np.empty((3, len(spreads), len(variances)))
    for at, spread in enumerate(spreads):  # each a variance of the expected losses; its prior: half-Cauchy
        weight = 1 / (spread + variances)
        weights[at] = weight.sum(axis=1)
        centers[at] = (weight * means).sum(axis=1) / weights[at]
        misfit = (weight * (means - centers[at][:, None]) ** 2).sum(axis=1)
        log_p[at] = (np.log(weight).sum(axis=1) - np.log(weights[at]) - misfit + np.log(spread)) / 2
        log_p[at] -= np.log1p(SPREADS[at] ** 2)
    below = np.cumsum(_shares(log_p), axis=0) < rng.random(len(variances))
    at, draw = np.minimum(below.sum(axis=0), len(spreads) - 1), np.arange(len(variances))
    center = centers[at, draw] + rng.standard_normal(len(draw)) / np.sqrt(weights[at, draw])
    kept = spreads[at][:, None] / (spreads[at][:, None] + variances)  # share of a lead that is no luck
    return center[:, None] + kept * (means - center[:, None]) + np.sqrt(kept * variances) * noise


def _shares(log_p: np.ndarray) -> np.ndarray:
    """Probabilities along the first axis."""
    shares = np.exp(log_p - log_p.max(axis=0))
    return shares / shares.sum(axis=0)


def probability_of_best(drawn: np.ndarray) -> np.ndarray:
    """(n,) probabilities of having the lowest expected loss, from (DRAWS, n) of these; the first is the one called best.

    Its share of the draws is too modest, as rungs and hyper-parameters know more than losses at the end do, and where it is
    nearly all, too sure. So its odds are those that came true in simulated searches (Platt 1999, "Probabilistic outputs for
    support vector machines"; LOG.md, "probability of being the best"). The others share what is left.
    """
    mine, *others = np.bincount(drawn.argmin(axis=1), minlength=drawn.shape[1]) / len(drawn) + 1e-3
    chance = 1 / (1 + np.exp(-CHANCE[0] - CHANCE[1] * np.log(mine / (1.002 - mine))))
    return np.array([chance, *((1 - chance) * np.array(others) / sum(others))])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle LEVEL of them."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
