"""Where a good configuration may lie: a Gaussian process over hyper-parameters and what the trials so far have lost."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tune.core.trials import DIVERGED, REPLICATE, Trial, Trials

LENGTH_SCALE = 1.0  # of each hyper-parameter's range; this and the next two: LOG.md, "what the constants are worth"
NOISE = 0.02  # variance of one seed's loss, as a share of the variance between configurations
OPTIMISM = 1.0  # standard deviations below the mean that a candidate is taken for
MOST_POINTS = 200  # half of them the best, half spread over the rest: a proposal takes milliseconds
LOSS_LIMITS = (1e-6, 1e6)  # nats per token: smaller and larger losses count alike
MOST_TOLD = 400  # at one rung: below it all count, so a search of some hundred trials is told of all of them


def projected(trials: Trials, rung_tokens: Sequence[int]) -> list[tuple[Trial, float, int]]:
    """(trial, log-loss to be expected at the last of `rung_tokens`, seeds) of all that have reached one, or diverged.

    One that waits at an earlier rung would change from there on as those did, on average, that went on from it. Without
    them only the good would be known, and what was left behind would look like unknown land. Diverged ones are infinite.
    In the order in which they began; where one milestone has more than MOST_TOLD, so many stand for all of them.
    """
    change = dict.fromkeys(rung_tokens, 0.0)  # of the log-loss from there to the last milestone
    for here, there in reversed(list(pairwise(rung_tokens))):
        came = thinned(trials.ranked_at(there), 0)
        both = [
            (within_limits(trial.losses[there]), within_limits(trial.losses[here]))
            for trial in came
            if here in trial.losses
        ]
        went = [math.log(later / earlier) for later, earlier in both]
        change[here] = change[there] + (sum(went) / len(went) if went else 0.0)
    found = [(trial, math.inf, 1) for trial in thinned([trial for trial in trials.drawn if trial.status == DIVERGED], 0)]
    for tokens, later in zip(rung_tokens, [*rung_tokens[1:], math.inf], strict=True):
        stay = [trial for trial in trials.ranked_at(tokens) if later not in trial.losses and trial.status != DIVERGED]
        stay.sort(key=lambda trial: (trial.mean_at(tokens), trial.trial_id))
        for trial in thinned(stay, MOST_POINTS // 2):
            loss = math.log(within_limits(trial.mean_at(tokens)))
            found.append((trial, loss + change[tokens], len(trial.seeds_at(tokens))))
    return sorted(found, key=lambda row: row[0].trial_id)


def within_limits(loss: float) -> float:
    """Returns a finite loss within LOSS_LIMITS, so that it has a logarithm; an infinite loss stays infinite."""
    return min(max(loss, LOSS_LIMITS[0]), LOSS_LIMITS[1]) if math.isfinite(loss) else loss


def unjudged(trials: Trials, rung_tokens: Sequence[int]) -> list[Trial]:
    """Those that run and have come to none of `rung_tokens` yet; without repeats."""
    running = (trial for trial in trials.running.values() if trial.source != REPLICATE)
    return [trial for trial in running if not any(tokens in trial.losses for tokens in rung_tokens)]


def thinned(order: list[Trial], best: int) -> list[Trial]:
    """All of `order`, or MOST_TOLD of them: so many of the best, the others spread evenly over the rest."""
    if len(order) <= MOST_TOLD:
        return order
    return order[:best] + [order[int(rank)] for rank in np.linspace(best, len(order) - 1, MOST_TOLD - best)]


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) Matern 5/2 correlation of points (n, d) and (m, d) of the unit cube (Rasmussen and Williams, eq. 4.17)."""
    squared = sum(np.subtract.outer(x, y) ** 2 for x, y in zip(a.T, b.T, strict=True))  # quicker than one (n, m, d) array
    scaled = 5**0.5 / LENGTH_SCALE * np.sqrt(squared)
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def most_promising(
    points: np.ndarray, losses: np.ndarray, seeds: np.ndarray, pending: np.ndarray, candidates: np.ndarray
) -> int:
    """Which candidate (m, d) has the lowest loss that can be hoped for: a lower confidence bound (arXiv 0912.3995).

    Learnt from the `losses` (n,), log nats per token, of `points` (n, d) in the unit cube, means over `seeds` (n,) of them.
    Those that are `pending` (p, d), on their way, count as if they lost what is expected of them: workers spread out.
    """
    order = np.argsort(losses, kind="stable")
    half = MOST_POINTS // 2
    if len(order) > MOST_POINTS:
        order = np.concatenate([order[:half], order[np.linspace(half, len(order) - 1, half).astype(int)]])
    points, values, noise = points[order], losses[order], NOISE / seeds[order]
    finite = values[np.isfinite(values)]
    values = np.minimum(values, np.median(finite) if len(finite) else 0.0)  # how bad the bad ones are does not matter
    values = (values - values.mean()) / (values.std() + 1e-9)
    if len(pending):
        covariance = correlation(points, points) + np.diag(noise)
        expected = correlation(pending, points) @ np.linalg.solve(covariance, values)
        points, values = np.concatenate([points, pending]), np.concatenate([values, expected])
        noise = np.concatenate([noise, np.full(len(pending), NOISE)])
    covariance, cross = correlation(points, points) + np.diag(noise), correlation(candidates, points)
    solved = np.linalg.solve(covariance, np.column_stack([values, cross.T]))  # (n + p, 1 + m)
    mean, variance = cross @ solved[:, 0], 1 - (cross * solved[:, 1:].T).sum(axis=1)
    return int(np.argmin(mean - OPTIMISM * np.sqrt(np.maximum(variance, 0))))
