"""What leaving trials behind cost, and how well rungs ranked: from those that an audit let go on to the end.

Two kinds of trials were seen to the end: those that the rule finished, because they were ahead, and a random few of those
that it left behind (`--audit_fraction`). Each of these stands for as many as were left behind for one that was audited: so
weighted, both together are like all trials of the search. Losses are of one seed each, whose luck is in all that is said,
but for the best's, a mean over its seeds. How often the intervals hold: experiments/LOG.md, "the audit".
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import betabinom

from tune.analysis.posterior import LEVEL, interval
from tune.config.spec import SearchSpec
from tune.core.clock import SearchClock
from tune.core.ranking import ranking
from tune.core.trials import COMPLETED, DIVERGED, PAUSED, STOPPED, Event, Trial, Trials
from tune.text.format import amount, share_text

DRAWS = 1000
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the budget, where a rung might have been
FACTORS = (2, 4, 8)  # one in so many that might have gone on there
FEWEST = 5  # audited from which on is said how rungs ranked, and seen to the end from which on what it may have cost
RELIABLE = 0.9  # probability of keeping the best from which on a rung would have done


def share_interval(count: int, seen: int, of: int) -> tuple[float, float]:
    """Which share of `of` has what `count` of `seen` random ones among them have: those not seen are beta-binomial, with
    Jeffreys' prior (Brown, Cai, DasGupta 2001, "Interval estimation for a binomial proportion").
    """
    if seen == of:
        return count / of, count / of
    unseen = betabinom(of - seen, count + 0.5, seen - count + 0.5)
    low = count + unseen.ppf((1 - LEVEL) / 2) if count else 0
    high = count + unseen.ppf((1 + LEVEL) / 2) if count < seen else of
    return float(low / of), float(high / of)


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(...,) rank correlation of x and y, both (n,), with weights (..., n); 0 where either does not vary."""
    total, centered = weights.sum(axis=-1, keepdims=True), []
    for values in (x, y):
        _, starts, place = np.unique(np.sort(values), return_index=True, return_inverse=True)
        order = np.argsort(values, kind="stable")
        mass = np.add.reduceat(weights[..., order], starts, axis=-1)  # of each value
        ranks = (np.cumsum(mass, axis=-1) - mass / 2)[..., place[np.argsort(order)]]
        centered.append(ranks - (weights * ranks).sum(axis=-1, keepdims=True) / total)
    a, b = centered
    scale = np.sqrt((weights * a * a).sum(axis=-1) * (weights * b * b).sum(axis=-1))
    return (weights * a * b).sum(axis=-1) / np.where(scale > 0, scale, 1.0)


def lowest_unseen(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, at: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(DRAWS,) of the lowest loss at the end of trials that stood `at` (k,), as others came from `x` (n,) to `y` (n,).

    By a weighted linear regression, drawn with its parameters, of logarithms: of how far a loss lies above a floor, which
    is as far below the lowest as their median is above it. So the good differ less than the bad do, as they really do.
    """

    def floor(values: np.ndarray, lowest: float) -> float:
        order = np.argsort(values)
        mass = np.cumsum(weights[order])
        return 2 * lowest - max(values[order[np.searchsorted(mass, mass[-1] / 2)]], lowest + 1e-4)

    start, end = floor(x, min(x.min(), at.min())), floor(y, y.min())
    u, v, w = np.log(x - start), np.log(y - end), weights / weights.mean()
    center = np.average(u, weights=w)
    design = np.stack([np.ones(len(u)), u - center], axis=1)
    inverse = np.linalg.inv(design.T @ (design * w[:, None]) + np.diag([0.0, 1e-3]))
    fitted = inverse @ (design.T @ (w * v))
    variance = (w * (v - design @ fitted) ** 2).sum() / rng.chisquare(max(1, len(u) - 2), DRAWS)
    drawn = fitted + np.sqrt(variance)[:, None] * (rng.standard_normal((DRAWS, 2)) @ np.linalg.cholesky(inverse).T)
    expected = drawn @ np.stack([np.ones(len(at)), np.log(at - start) - center])
    return end + np.exp(expected + np.sqrt(variance)[:, None] * rng.standard_normal(expected.shape)).min(axis=1)


@dataclass(frozen=True)
class Sample:
    """What was seen to the end of a search."""

    trials: Trials
    left: list[Trial]
    """configurations that were left behind"""
    audited: list[Trial]
    """the audits of some of them, as far as they have ended"""
    finished: list[Trial]
    """configurations that the rule brought to the end"""

    @cached_property
    def ended(self) -> list[Trial]:
        """All that were seen to the end."""
        return [*self.finished, *self.audited]

    @cached_property
    def finals(self) -> np.ndarray:
        """(n,) losses of those at the end; of one that diverged infinite."""
        return np.array([trial.losses.get(self.trials.budget_tokens, math.inf) for trial in self.ended])

    @cached_property
    def weights(self) -> np.ndarray:
        """(n,) how many trials of the search each of those stands for."""
        each = len(self.left) / max(1, len(self.audited))
        return np.repeat([1.0, each], [len(self.finished), len(self.audited)])

    def at(self, tokens: int) -> np.ndarray:
        """(n,) their losses there."""
        return np.array([trial.losses.get(tokens, math.inf) for trial in self.ended])

    def share_below(self, loss: float) -> dict[str, float]:
        """How many of those left behind would have ended below `loss`."""
        count, seen = int((self.finals[len(self.finished) :] < loss).sum()), len(self.audited)
        low, high = share_interval(count, seen, len(self.left))
        return {"count": count, "share": count / seen, "low": low, "high": high}

    def cost(self, best: float) -> dict[str, float | None]:
        """By how much the lowest of those left behind would have ended below `best`, nats per token.

        low: as was seen; high: and 95 in 100 that, with those that were not audited, it is no more.
        """
        seen = max(0.0, best - min(self.finals[len(self.finished) :]))
        audited = {trial.parent_id for trial in self.audited}
        lowest, rng = np.full(DRAWS, math.inf), np.random.default_rng(0)
        for mark in sorted({trial.tokens for trial in self.left}):
            at = np.array([t.losses[mark] for t in self.left if t.tokens == mark and t.trial_id not in audited])
            at, known = at[np.isfinite(at)], np.isfinite(self.finals) & np.isfinite(self.at(mark))
            if not len(at):
                continue  # all of them were seen
            if known.sum() < FEWEST:
                return {"low": seen, "high": None}
            found = lowest_unseen(self.at(mark)[known], self.finals[known], self.weights[known], at, rng)
            lowest = np.minimum(lowest, found)
        unseen = best - float(np.quantile(lowest, (1 - LEVEL) / 2)) if np.isfinite(lowest).all() else seen
        return {"low": seen, "high": max(seen, unseen)}

    def rung(self, tokens: int, factors: Iterable[int]) -> dict[str, Any]:
        """How a rung at `tokens` would have ranked them: the rank correlation with the end, and the probability that the
        one with the lowest loss at the end is among the best one in so many there.

        The first by a Bayesian bootstrap of those audited, the second by one of all: which one is the best is luck, too.
        """
        early, rng, seen = self.at(tokens), np.random.default_rng(0), len(self.audited)
        parts = [n for n in (len(self.finished), seen) if n]
        again = np.hstack([rng.multinomial(n, np.full(n, 1 / n), DRAWS) for n in parts])  # how often each is drawn
        best = np.where(again > 0, self.finals, math.inf).argmin(axis=1)
        drawn = again * self.weights
        before = (drawn * (early < early[best][:, None])).sum(axis=1) / drawn.sum(axis=1)
        spread = np.hstack([np.ones((DRAWS, len(self.finished))), seen * rng.dirichlet(np.ones(seen), DRAWS)])
        low, high = interval(correlation(early, self.finals, spread * self.weights))
        return {
            "tokens_seen": tokens,
            "share": tokens / self.trials.budget_tokens,
            "correlation": float(correlation(early, self.finals, self.weights)),
            "low": low,
            "high": high,
            "kept": {str(factor): float((before < 1 / factor).mean()) for factor in factors},
        }

    def rungs(self, factors: dict[int, int]) -> list[dict[str, Any]]:
        """Of the search's own, milestone -> factor, and of those that it might have had; none from too few trials.

        Each has also "one_in": the factor of the search's own, else None.
        """
        common = set.intersection(*(set(trial.losses) for trial in self.ended)) - {self.trials.budget_tokens}
        if len(self.audited) < FEWEST or not common:
            return []
        near = {min(common, key=lambda mark: abs(mark - share * self.trials.budget_tokens)) for share in SHARES}
        asked = sorted({*FACTORS, *factors.values()})
        return [self.rung(mark, asked) | {"one_in": factors.get(mark)} for mark in sorted(near | (common & factors.keys()))]


def sample_of(trials: Trials) -> Sample:
    """The audit of a search, as far as it has come."""
    left = [trial for trial in trials.drawn if trial.status in (PAUSED, STOPPED) and trial.losses]
    audits = [trials.audits[trial.trial_id] for trial in left if trial.trial_id in trials.audits]
    audited = [audit for audit in audits if audit.status in (COMPLETED, DIVERGED)]
    return Sample(trials, left, audited, [trial for trial in trials.drawn if trial.status == COMPLETED])


def audit_facts(search: SearchSpec, trials: Trials, events: Iterable[Event]) -> dict[str, Any] | None:
    """What is said of an audit, in JSON's types; see summary.schema.json. None where there was none."""
    if not trials.audits:
        return None
    sample, budget = sample_of(trials), trials.budget_tokens
    compared, ordered = ranking(trials)
    found: dict[str, Any] = {
        "left_behind": len(sample.left),
        "chosen": len(trials.audits),
        "ended": len(sample.audited),
        "seconds": SearchClock(events).audit,
        "tokens": sum(audit.tokens - audit.begun_at for audit in trials.audits.values()),
        "below_best": None,
        "below_worst": None,
        "cost": None,
        "better": [],
        "rungs": sample.rungs(search.scheduler().factors) if sample.audited else [],
    }
    best = ordered[0].mean_at(budget) if ordered and compared == budget else math.inf
    if sample.audited and math.isfinite(best):
        found["below_best"] = sample.share_below(best)
        found["below_worst"] = sample.share_below(max(trial.losses[budget] for trial in sample.finished))
        found["cost"] = sample.cost(best)
        better = [audit for audit in sample.audited if audit.losses.get(budget, math.inf) < best]
        better.sort(key=lambda audit: audit.losses[budget])
        found["better"] = [{"trial_id": audit.trial_id, "val_loss": audit.losses[budget]} for audit in better]
    return found


def rung_ranking(rungs: list[dict[str, Any]]) -> str:
    """Whether the search's own rungs ranked well, and which would have, in a sentence; empty where it has none."""
    own = [(rung, rung["kept"][str(rung["one_in"])]) for rung in rungs if rung["one_in"]]
    if not own:
        return ""
    weak, probability = min(own, key=lambda pair: pair[1])
    if probability >= RELIABLE:
        return f"The rungs ranked well: each kept what ends best with probability {probability:.2f} or more."
    where, one_in = share_text(weak["share"], 1), weak["one_in"]
    said = f"The rung at {where}, one in {one_in}, keeps what ends best with probability {probability:.2f}"
    later = [rung for rung in rungs if rung["share"] > weak["share"] and rung["kept"][str(one_in)] >= RELIABLE]
    if later:
        there, kept = share_text(later[0]["share"], 1), later[0]["kept"][str(one_in)]
        return f"{said}; one at {there} instead would have with {kept:.2f}."
    softer = [factor for factor in map(int, weak["kept"]) if factor < one_in and weak["kept"][str(factor)] >= RELIABLE]
    if softer:
        return f"{said}; one in {max(softer)} there with {weak['kept'][str(max(softer))]:.2f}."
    return f"{said}; none of those looked at would have with {RELIABLE:.2f}."


def audit_lines(audit: dict[str, Any]) -> list[str]:
    """The same for people, a line each."""
    lines = [
        f"{audit['ended']} of the {audit['left_behind']} left behind, drawn by lot, went on to the end: "
        f"{audit['seconds']:,.0f} s, {amount(audit['tokens'])} tokens; it decided nothing"
    ]
    below, worst, cost = audit["below_best"], audit["below_worst"], audit["cost"]
    if below:
        lines.append(
            f"{below['count']} of them ended below the best: of all left behind {below['low']:.0%} to {below['high']:.0%} "
            f"would have ({LEVEL:.0%}); {worst['count']} below the worst that was finished: {worst['low']:.0%} to "
            f"{worst['high']:.0%}"
        )
        high = f"{cost['low']:.4f} to {cost['high']:.4f}" if cost["high"] is not None else f"{cost['low']:.4f} or more"
        if cost["high"] == 0:
            said = "by their losses where they were left, none had ended below the best"
        else:
            said = f"had all gone on, the lowest had ended {high} nats/token below the best"
        lines.append(f"{said} ({LEVEL:.0%}; luck included)")
    elif audit["ended"]:
        lines.append("no two trials of the search itself came to the end: nothing to compare them with")
    for row in audit["better"][:1]:
        lines.append(
            f"trial {row['trial_id']} ended at {row['val_loss']:.4f}, below the best, on one seed: an audit names no best; "
            "its settings are in trials.csv"
        )
    if audit["rungs"]:
        each = (
            f"{share_text(r['share'], 1)} {r['correlation']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
            for r in audit["rungs"]
        )
        lines.append(f"rank correlation with the end at {', '.join(each)}")
    elif audit["ended"]:
        lines.append(
            f"too few were audited to say how rungs ranked: {FEWEST} at least, "
            "search.py --resume with a larger --audit_fraction"
        )
    return [*lines, *filter(None, [rung_ranking(audit["rungs"])])]
