"""Proposals from a Gaussian process over hyper-parameters, fitted to the losses of the trials so far."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tune.core.decision_config import DECISIONS
from tune.core.search_space import Config, Ranges
from tune.core.trials import DIVERGED, REPLICATE, Trial, Trials

CANDIDATES = 1000  # random configurations, of which the most promising is proposed
MOST_POINTS = 200  # configurations that the process is fitted to: more would take longer than milliseconds
LOSS_LIMITS = (1e-6, 1e6)  # nats per token: smaller and larger losses count alike
MOST_TOLD = 400  # trials at one rung that are considered: a search of some hundred trials considers all


class Proposals:
    """Proposes the most promising of many random configurations, by the losses expected at the last of `rung_tokens`."""

    def __init__(self, ranges: Ranges, seed: int, rung_tokens: Sequence[int]):
        self.ranges, self.seed, self.rung_tokens = ranges, seed, rung_tokens
        self._points: dict[str, list[float]] = {}  # by trial_id: a trial's configuration never changes

    def points(self, trials: Sequence[Trial]) -> np.ndarray:
        """The configurations of n trials as points (n, d) of the unit cube."""
        for trial in trials:
            if trial.trial_id not in self._points:
                self._points[trial.trial_id] = [
                    x for name, values in self.ranges.items() for x in values.encode(trial.config[name])
                ]
        return np.array([self._points[trial.trial_id] for trial in trials])

    def propose(self, index: int, trials: Trials) -> Config:
        """The configuration of trial `index`."""
        drawn = np.random.default_rng([self.seed, index]).random((CANDIDATES, len(self.ranges)))
        known, chosen = projected(trials, self.rung_tokens), 0
        if known:
            told, losses, seeds = zip(*known, strict=True)
            candidates = np.hstack([r.encode_units(drawn[:, i]) for i, r in enumerate(self.ranges.values())])
            pending = self.points(unjudged(trials, self.rung_tokens))
            chosen = most_promising(self.points(told), np.array(losses), np.array(seeds), pending, candidates)
        return {
            name: r.from_unit(float(place)) for (name, r), place in zip(self.ranges.items(), drawn[chosen], strict=True)
        }


def projected(trials: Trials, rung_tokens: Sequence[int]) -> list[tuple[Trial, float, int]]:
    """(trial, expected log-loss at the last of `rung_tokens`, seeds) of each trial that reached a rung, or diverged
    (infinite).

    A trial at an earlier rung is expected to improve as the trials that went on from there did. Of one rung at most
    MOST_TOLD trials are returned, in the order in which they began.
    """
    change = dict.fromkeys(rung_tokens, 0.0)  # of the log-loss from a rung to the last one
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
    """The running trials that have reached none of `rung_tokens` yet, except replicates."""
    running = (trial for trial in trials.running.values() if trial.source != REPLICATE)
    return [trial for trial in running if not any(tokens in trial.losses for tokens in rung_tokens)]


def thinned(order: list[Trial], best: int) -> list[Trial]:
    """At most MOST_TOLD trials of `order`: the `best` first ones, the others spread evenly over the rest."""
    if len(order) <= MOST_TOLD:
        return order
    return order[:best] + [order[int(rank)] for rank in np.linspace(best, len(order) - 1, MOST_TOLD - best)]


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) Matern 5/2 correlation of points (n, d) and (m, d) of the unit cube (Rasmussen and Williams, eq. 4.17)."""
    squared = sum(np.subtract.outer(x, y) ** 2 for x, y in zip(a.T, b.T, strict=True))  # quicker than one (n, m, d) array
    scaled: np.ndarray = 5**0.5 / DECISIONS.length_scale * np.sqrt(squared)
    correlated: np.ndarray = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return correlated


def most_promising(
    points: np.ndarray, losses: np.ndarray, seeds: np.ndarray, pending: np.ndarray, candidates: np.ndarray
) -> int:
    """The index of the candidate (m, d) with the lowest lower confidence bound of the loss (arXiv 0912.3995).

    The process is fitted to `losses` (n,), log nats per token, at `points` (n, d) of the unit cube. A loss is the mean over
    `seeds` (n,). The `pending` points (p, d) count with their expected loss, so that workers spread out.
    """
    order = np.argsort(losses, kind="stable")
    half = MOST_POINTS // 2
    if len(order) > MOST_POINTS:
        order = np.concatenate([order[:half], order[np.linspace(half, len(order) - 1, half).astype(int)]])
    points, values, noise = points[order], losses[order], DECISIONS.noise / seeds[order]
    finite = values[np.isfinite(values)]
    values = np.minimum(values, np.median(finite) if len(finite) else 0.0)  # only the order of the better half matters
    values = (values - values.mean()) / (values.std() + 1e-9)
    if len(pending):
        covariance = correlation(points, points) + np.diag(noise)
        expected = correlation(pending, points) @ np.linalg.solve(covariance, values)
        points, values = np.concatenate([points, pending]), np.concatenate([values, expected])
        noise = np.concatenate([noise, np.full(len(pending), DECISIONS.noise)])
    covariance, cross = correlation(points, points) + np.diag(noise), correlation(candidates, points)
    solved = np.linalg.solve(covariance, np.column_stack([values, cross.T]))  # (n + p, 1 + m)
    mean, variance = cross @ solved[:, 0], 1 - (cross * solved[:, 1:].T).sum(axis=1)
    return int(np.argmin(mean - DECISIONS.optimism * np.sqrt(np.maximum(variance, 0))))
