"""Estimates what early stopping cost, and how well rungs ranked, from the trials that an audit trained to the end.

Final losses are known of the trials that the rule finished and of a random sample of those left behind. Each sampled trial
weighs as many trials as it stands for. How often the intervals hold: experiments/LOG.md, "the audit".
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from tune.analysis.posterior import LEVEL, Floats, interval
from tune.config.spec import SearchSpec
from tune.core.clock import SearchClock
from tune.core.events import Event
from tune.core.ranking import ranking
from tune.core.trials import COMPLETED, DIVERGED, PAUSED, STOPPED, Trial, Trials

DRAWS = 1000  # samples of the bootstrap and of the regression's posterior
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the budget: rungs that the search might have had
FACTORS = (2, 4, 8)  # a rung that the search might have had lets one in 2, 4 or 8 go on
FEWEST = 5  # audited trials needed to judge rungs, and trials seen to the end needed to bound the cost


@dataclass(frozen=True)
class ShareBelow:
    """The trials left behind that would have ended below a loss."""

    count: int  # audited trials that ended below the loss
    share: float  # of the audited trials
    low: float  # lower end of the 90% interval of the share of all trials left behind
    high: float  # upper end of the 90% interval of the share of all trials left behind


@dataclass(frozen=True)
class StoppingCost:
    """Nats per token by which the lowest of all trials left behind would have ended below the best."""

    low: float  # nats per token that the audited trials showed
    high: float | None
    """nats per token that 95 in 100 searches would not exceed; null where fewer than 5 trials were seen to the end"""


@dataclass(frozen=True)
class AuditedTrial:
    """An audited trial that ended below the best."""

    trial_id: str
    val_loss: float  # nats per token, on one seed


@dataclass(frozen=True)
class RungQuality:
    """How well the losses at a rung ranked the configurations."""

    tokens_seen: int  # tokens of a trial at the rung
    share: float  # of the budget
    correlation: float
    """rank correlation of the loss at the rung with the loss at the end, over all configurations, audited ones weighted"""
    low: float  # lower end of the 90% interval of the correlation
    high: float  # upper end of the 90% interval of the correlation
    kept: dict[str, float]
    """factor -> probability that the configuration that ends best is among the best one in `factor` at the rung"""
    one_in: int | None  # one in `one_in` trials went on at this rung of the search; null where the search has no rung there


@dataclass(frozen=True)
class Audit:
    """What a random sample of the configurations left behind came to. Losses are of one seed; the best's is a mean."""

    left_behind: int  # configurations that are paused or stopped
    chosen: int  # audits that have begun
    ended: int  # audits that have ended, of configurations that are still left behind
    seconds: float  # wall clock; part of cost.seconds, no part of --time_budget
    tokens: int  # trained on by audits; part of cost.tokens
    below_best: ShareBelow | None
    """trials that ended below the best's mean; null where the search itself has no two that came to the end"""
    below_worst: ShareBelow | None  # trials that ended below the highest loss of those that the search finished
    cost: StoppingCost | None
    better: tuple[AuditedTrial, ...]
    """audited trials that ended below the best, the lowest first; none of them is named the best"""
    rungs: tuple[RungQuality, ...]  # rungs of the search and others; empty where fewer than 5 trials were audited


def share_interval(count: int, seen: int, of: int) -> tuple[float, float]:
    """Returns the interval of the share of `of` trials that have a property, where `count` of `seen` random ones have it:
    the others are beta-binomial, with Jeffreys' prior (Brown, Cai, DasGupta 2001).
    """
    if seen == of:
        return count / of, count / of
    unseen = betabinom(of - seen, count + 0.5, seen - count + 0.5)
    low = count + unseen.ppf((1 - LEVEL) / 2) if count else 0
    high = count + unseen.ppf((1 + LEVEL) / 2) if count < seen else of
    return float(low / of), float(high / of)


def weighted_rank_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Returns the rank correlation (...,) of x (n,) and y (n,) with weights (..., n); 0 where x or y does not vary."""
    total, centered = weights.sum(axis=-1, keepdims=True), []
    for values in (x, y):
        _, starts, place = np.unique(np.sort(values), return_index=True, return_inverse=True)
        order = np.argsort(values, kind="stable")
        mass = np.add.reduceat(weights[..., order], starts, axis=-1)  # weight of each value
        ranks = (np.cumsum(mass, axis=-1) - mass / 2)[..., place[np.argsort(order)]]
        centered.append(ranks - (weights * ranks).sum(axis=-1, keepdims=True) / total)
    a, b = centered
    scale = np.sqrt((weights * a * a).sum(axis=-1) * (weights * b * b).sum(axis=-1))
    found: Floats = (weights * a * b).sum(axis=-1) / np.where(scale > 0, scale, 1.0)
    return found


def draw_lowest_unseen(x: Floats, y: Floats, weights: Floats, at: Floats, rng: np.random.Generator) -> Floats:
    """Draws (DRAWS,) the lowest final loss of trials that stood `at` (k,), as other trials came from `x` (n,) to `y` (n,):
    by a weighted linear regression of logarithms of the distance to a floor below the lowest loss, so that good trials
    differ less.
    """

    def floor(values: Floats, lowest: float) -> float:
        order = np.argsort(values)
        mass = np.cumsum(weights[order])
        median = float(values[order[np.searchsorted(mass, mass[-1] / 2)]])
        return 2 * lowest - max(median, lowest + max(1e-4, 1e-9 * abs(lowest)))

    start, end = floor(x, min(x.min(), at.min())), floor(y, y.min())
    u, v, w = np.log(x - start), np.log(y - end), weights / weights.mean()
    center = np.average(u, weights=w)
    design = np.stack([np.ones(len(u)), u - center], axis=1)
    inverse = np.linalg.inv(design.T @ (design * w[:, None]) + np.diag([0.0, 1e-3]))
    fitted = inverse @ (design.T @ (w * v))
    variance = (w * (v - design @ fitted) ** 2).sum() / rng.chisquare(max(1, len(u) - 2), DRAWS)
    drawn = fitted + np.sqrt(variance)[:, None] * (rng.standard_normal((DRAWS, 2)) @ np.linalg.cholesky(inverse).T)
    expected = drawn @ np.stack([np.ones(len(at)), np.log(at - start) - center])
    final = end + np.exp(expected + np.sqrt(variance)[:, None] * rng.standard_normal(expected.shape))
    lowest: Floats = final.min(axis=1)
    return lowest


class AuditSample:
    """The trials of a search whose final loss is known, and the trials left behind that they stand for."""

    def __init__(self, trials: Trials):
        self.budget_tokens = trials.budget_tokens
        self.left_behind = [trial for trial in trials.drawn if trial.status in (PAUSED, STOPPED) and trial.losses]
        audits = [trials.audits[trial.trial_id] for trial in self.left_behind if trial.trial_id in trials.audits]
        self.audited = [audit for audit in audits if audit.status in (COMPLETED, DIVERGED)]
        """audits that have ended, of some of the configurations left behind"""
        self.finished = [trial for trial in trials.drawn if trial.status == COMPLETED]
        self.ended = [*self.finished, *self.audited]  # n trials
        self.finals = self.losses_at(trials.budget_tokens)
        each = len(self.left_behind) / max(1, len(self.audited))
        self.weights = np.repeat([1.0, each], [len(self.finished), len(self.audited)])
        """(n,) number of trials of the search that each of the n trials stands for"""

    def losses_at(self, tokens: int) -> Floats:
        """Returns (n,) losses at `tokens`, nats per token; infinite for a trial without one."""
        return np.array([trial.losses.get(tokens, math.inf) for trial in self.ended])

    def share_below(self, loss: float) -> ShareBelow:
        """Estimates the share of the trials left behind that would have ended below `loss`."""
        count, seen = int((self.finals[len(self.finished) :] < loss).sum()), len(self.audited)
        return ShareBelow(count, count / seen, *share_interval(count, seen, len(self.left_behind)))

    def stopping_cost(self, best: float) -> StoppingCost:
        """Estimates how far the lowest of the trials left behind would have ended below `best`, nats per token."""
        seen = float(max(0.0, best - min(self.finals[len(self.finished) :])))
        audited = {trial.parent_id for trial in self.audited}
        lowest, rng = np.full(DRAWS, math.inf), np.random.default_rng(0)
        for mark in sorted({trial.tokens for trial in self.left_behind}):
            at = np.array([t.losses[mark] for t in self.left_behind if t.tokens == mark and t.trial_id not in audited])
            at, early = at[np.isfinite(at)], self.losses_at(mark)
            known = np.isfinite(self.finals) & np.isfinite(early)
            if not len(at):
                continue  # every trial left there was audited
            if known.sum() < FEWEST:
                return StoppingCost(seen, None)
            found = draw_lowest_unseen(early[known], self.finals[known], self.weights[known], at, rng)
            lowest = np.minimum(lowest, found)
        unseen = best - float(np.quantile(lowest, (1 - LEVEL) / 2)) if np.isfinite(lowest).all() else seen
        return StoppingCost(seen, max(seen, unseen))

    def rung_quality(self, tokens: int, factors: Iterable[int], one_in: int | None = None) -> RungQuality:
        """Estimates how well a rung at `tokens` ranks the trials, by a Bayesian bootstrap of the audited trials, and the
        probability that it keeps the best one, by a bootstrap of all trials, as luck decides also which one is the best.
        """
        early, rng, seen = self.losses_at(tokens), np.random.default_rng(0), len(self.audited)
        parts = [n for n in (len(self.finished), seen) if n]
        again = np.hstack([rng.multinomial(n, np.full(n, 1 / n), DRAWS) for n in parts])  # times that each trial is drawn
        best = np.where(again > 0, self.finals, math.inf).argmin(axis=1)
        drawn = again * self.weights
        before = (drawn * (early < early[best][:, None])).sum(axis=1) / drawn.sum(axis=1)
        spread = np.hstack([np.ones((DRAWS, len(self.finished))), seen * rng.dirichlet(np.ones(seen), DRAWS)])
        low, high = interval(weighted_rank_correlation(early, self.finals, spread * self.weights))
        correlation = float(weighted_rank_correlation(early, self.finals, self.weights))
        kept = {str(factor): float((before < 1 / factor).mean()) for factor in factors}
        return RungQuality(tokens, tokens / self.budget_tokens, correlation, low, high, kept, one_in)

    def rung_qualities(self, factors: dict[int, int]) -> tuple[RungQuality, ...]:
        """Judges the search's rungs (tokens -> factor) and those near SHARES of the budget; empty below FEWEST audits."""
        common = set.intersection(*(set(trial.losses) for trial in self.ended)) - {self.budget_tokens}
        if len(self.audited) < FEWEST or not common:
            return ()
        near = {min(common, key=lambda mark: abs(mark - share * self.budget_tokens)) for share in SHARES}
        asked = sorted({*FACTORS, *factors.values()})
        return tuple(self.rung_quality(mark, asked, factors.get(mark)) for mark in sorted(near | (common & factors.keys())))


def summarize_audit(search: SearchSpec, trials: Trials, events: Iterable[Event]) -> Audit | None:
    """Returns what an audit found; None where there was none."""
    if not trials.audits:
        return None
    sample, budget = AuditSample(trials), trials.budget_tokens
    compared, ordered = ranking(trials)
    best = ordered[0].mean_at(budget) if ordered and compared == budget else math.inf
    is_judged = bool(sample.audited) and math.isfinite(best)
    below = sorted((audit.losses[budget], audit.trial_id) for audit in sample.audited if budget in audit.losses)
    return Audit(
        left_behind=len(sample.left_behind),
        chosen=len(trials.audits),
        ended=len(sample.audited),
        seconds=SearchClock(events).audit,
        tokens=sum(_trained(audit) for audit in trials.audits.values()),
        below_best=sample.share_below(best) if is_judged else None,
        below_worst=sample.share_below(max(t.losses[budget] for t in sample.finished)) if is_judged else None,
        cost=sample.stopping_cost(best) if is_judged else None,
        better=tuple(AuditedTrial(trial_id, loss) for loss, trial_id in below if is_judged and loss < best),
        rungs=sample.rung_qualities(search.scheduler().factors) if sample.audited else (),
    )


def _trained(audit: Trial) -> int:
    """Returns the tokens that an audit has trained on."""
    last, first = (getattr(audit.reports.get(at), "tokens_seen", 0) for at in (audit.tokens, audit.begun_at))
    return int(last - first)
