"""The ranking of a search's configurations by their losses over seeds."""

import math
import statistics
from collections.abc import Iterable

from tune.core.decision_config import DECISIONS
from tune.core.trials import REPLICATE, Trial, Trials


def by_expected_final_loss(trials: Trials) -> list[Trial]:
    """The trials that came to the full budget, the lowest mean over seeds of their final losses first. A seed that came to
    the rung counts too: its loss is expected to change as the losses of the trials that ended did, on average.
    """
    ended = trials.ranked_at(trials.budget_tokens)
    return sorted(ended, key=lambda trial: (expected_final_loss(trial, trials), trial.trial_id))


def expected_final_loss(trial: Trial, trials: Trials) -> float:
    """The mean of the final losses of a trial that ended and of its replicates, where some are only expected."""
    budget = trials.budget_tokens
    if "counted" not in trial.cache:
        early = [r for r in trial.replicates if DECISIONS.rung_share * budget <= r.tokens < budget and r.tokens in r.losses]
        losses = trial.seeds_at(budget) + [replicate.losses[replicate.tokens] for replicate in early]
        stand_at = sorted(replicate.tokens for replicate in early)
        trial.cache["counted"] = sum(losses) / len(losses), stand_at, len(losses)
    counted: tuple[float, list[int], int] = trial.cache["counted"]
    mean, stand_at, seeds = counted
    return mean + sum(map(trials.mean_change_from, stand_at)) / seeds if stand_at else mean


def ranking(trials: Trials) -> tuple[int, list[Trial]]:
    """(tokens, configurations, best first): `tokens` is the furthest mark that two configurations reached, or the only
    one.

    The order is the mean loss over seeds at `tokens`, at the end the expected one. Configurations with DECISIONS.seeds
    seeds, or the most that any has, rank before those with fewer, which may lead by luck. The baseline was not chosen by
    its loss: with fewer seeds it still ranks first if none of those is ahead of it. A configuration that diverged on any
    seed ranks last.
    """
    marks = {tokens for tokens, kind in trials.count_by_rung if kind != REPLICATE}
    tokens = max((tokens for tokens in marks if trials.count_at(tokens) > 1), default=max(marks, default=0))
    if tokens == trials.budget_tokens:
        ordered = by_expected_final_loss(trials)
    else:
        ordered = sorted(trials.ranked_at(tokens), key=lambda trial: (trial.mean_at(tokens), trial.trial_id))
    sound = [trial for trial in ordered if math.isfinite(trial.mean_at(tokens))]
    chosen = [trial for trial in sound if trial is not trials.baseline]
    trusted = min(DECISIONS.seeds, max((len(trial.seeds_at(tokens)) for trial in chosen), default=0))
    first = next((t for t in sound if t is trials.baseline or len(t.seeds_at(tokens)) >= trusted), None)

    def tier(trial: Trial) -> int:
        if not math.isfinite(trial.mean_at(tokens)):
            return 2
        return 0 if trial is first or len(trial.seeds_at(tokens)) >= trusted else 1

    return tokens, sorted(ordered, key=tier)


def seed_noise(losses: Iterable[list[float]]) -> float | None:
    """The standard deviation of the loss between seeds, nats per token, pooled over configurations; None where none has
    two. `losses` has a list a configuration, with a loss a seed; losses that are not finite are left out.
    """
    squares, degrees = 0.0, 0
    for seeds in losses:
        finite = [loss for loss in seeds if math.isfinite(loss)]
        if len(finite) > 1:
            squares += statistics.variance(finite) * (len(finite) - 1)
            degrees += len(finite) - 1
    return math.sqrt(squares / degrees) if degrees else None
