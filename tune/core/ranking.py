"""Who is best: the order of a search's configurations, over their seeds. No Ray, no files, no clocks."""

import math
import statistics
from collections.abc import Iterable

from tune.core.trials import REPLICATE, Trial, Trials

TRUSTED_SEEDS = 3  # a configuration that ended on so many is behind one that ended on fewer only where that has a
LEAD = 0.5  # of so many standard errors, and a second seed; with at most FEW workers not even there:
FEW = 2  # a third seed then still comes in time, and lucky pairs cost more than sound ones gain
COUNTED_FROM = 1 / 4  # of the budget on a seed counts with the loss that it is expected to end at


def by_expected_final_loss(trials: Trials) -> list[Trial]:
    """The trials that came to the full budget, the lowest mean over seeds of their final losses first.

    A seed that is at least COUNTED_FROM of the way counts, too, with its expected final loss. From where it stands its loss
    is expected to change as the losses of the trials that ended did, on average.
    """
    ended = trials.ranked_at(trials.budget_tokens)
    return sorted(ended, key=lambda trial: (expected_final_loss(trial, trials), trial.trial_id))


def expected_final_loss(trial: Trial, trials: Trials) -> float:
    """The mean of the final losses of a trial that ended and of its replicates, where some are only expected."""
    budget = trials.budget_tokens
    if "counted" not in trial.cache:
        early = [r for r in trial.replicates if COUNTED_FROM * budget <= r.tokens < budget and r.tokens in r.losses]
        losses = trial.seeds_at(budget) + [replicate.losses[replicate.tokens] for replicate in early]
        stand_at = sorted(replicate.tokens for replicate in early)
        trial.cache["counted"] = sum(losses) / len(losses), stand_at, len(losses)
    mean, stand_at, seeds = trial.cache["counted"]
    return mean + sum(map(trials.change, stand_at)) / seeds if stand_at else mean


def ranking(trials: Trials) -> tuple[int, list[Trial]]:
    """(tokens, the configurations that came so far, best first): the furthest that two have come, or the only one.

    By the mean loss over seeds there, at the end as `by_expected_final_loss` has them. But those that have at least
    TRUSTED_SEEDS seeds there, or the most that any has, come before those that have fewer: the best of many is the
    luckiest. In a search of more than FEW workers those with several seeds whose mean is ahead of the best of them by
    LEAD standard errors come first. Those that diverged on a seed come last, and their seeds are trusted for nothing.
    """
    marks = {tokens for tokens, kind in trials.count_by_rung if kind != REPLICATE}
    tokens = max((tokens for tokens in marks if trials.count_at(tokens) > 1), default=max(marks, default=0))
    if tokens == trials.budget_tokens:
        ordered = by_expected_final_loss(trials)
    else:
        ordered = sorted(trials.ranked_at(tokens), key=lambda trial: (trial.mean_at(tokens), trial.trial_id))
    seeds = {trial.trial_id: trial.seeds_at(tokens) for trial in ordered}
    sound = [trial for trial in ordered if math.isfinite(trial.mean_at(tokens))]
    trusted = min(TRUSTED_SEEDS, max((len(seeds[trial.trial_id]) for trial in sound), default=0))
    best = next((trial for trial in sound if len(seeds[trial.trial_id]) >= trusted), None)
    noise = seed_noise(seeds.values()) or 0.0 if trials.workers > FEW else math.inf  # that nobody leads by

    def place(trial: Trial) -> int:
        own = len(seeds[trial.trial_id])
        if not math.isfinite(trial.mean_at(tokens)):
            return 3
        if own >= trusted:
            return 1
        error = noise * math.sqrt(1 / own + 1 / len(seeds[best.trial_id]))
        return 0 if own > 1 and best.mean_at(tokens) - trial.mean_at(tokens) > LEAD * error else 2

    return tokens, sorted(ordered, key=place)


def seed_noise(losses: Iterable[list[float]]) -> float | None:
    """The standard deviation of the loss between seeds, nats per token, pooled over configurations.

    `losses` has one list a configuration, with one loss a seed; losses that are not finite are left out. None where no
    configuration has two.
    """
    squares, degrees = 0.0, 0
    for seeds in losses:
        finite = [loss for loss in seeds if math.isfinite(loss)]
        if len(finite) > 1:
            squares += statistics.variance(finite) * (len(finite) - 1)
            degrees += len(finite) - 1
    return math.sqrt(squares / degrees) if degrees else None
