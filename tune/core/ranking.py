"""Who is best: the order of a search's configurations, over their seeds. No Ray, no files, no clocks."""

import heapq
import math
import statistics
from collections.abc import Iterable, Iterator

from tune.core.trials import REPLICATE, Trial, Trials

TRUSTED_SEEDS = 3  # a configuration that ended on so many is behind one that ended on fewer only where that has a
LEAD = 0.5  # of so many standard errors, and a second seed; with at most FEW workers not even there:
FEW = 2  # a third seed then still comes in time, and lucky pairs cost more than sound ones gain
COUNTED_FROM = 1 / 4  # of the budget on a seed counts with the loss that it is expected to end at


def by_expected_final_loss(trials: Trials) -> Iterator[Trial]:
    """Those that came to the full budget, the lowest mean over seeds of their losses first; of equals the earlier trial.

    A seed that has come COUNTED_FROM of the way counts, too: from where it stands its loss is expected to change as those
    of the configurations did, on average, that ended. What is expected moves with each that ends, but alike for all whose
    seeds stand at the same marks: each such group keeps its order, and the groups are merged.
    """

    def placed(seeds: int, marks: tuple[int, ...], rows: Iterable[tuple]) -> Iterator[tuple[float, str, Trial]]:
        shift = sum(trials.change(mark) for mark in marks) / seeds
        return ((mean + shift, trial_id, trial) for *_, mean, trial_id, trial in rows)

    order = trials.order(by_seeds_and_mean, trials.budget_tokens)
    return (trial for *_, trial in heapq.merge(*(placed(*group, rows) for group, rows in order.groups(2))))


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
        ordered = list(by_expected_final_loss(trials))
    else:  # sorted anew: the furthest mark moves on, and an order of each would have to be kept
        came = (trial for trial in trials.drawn if tokens in trial.losses)
        ordered = sorted(came, key=lambda trial: (trial.mean_at(tokens), trial.trial_id))
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


def by_seeds_and_mean(trial: Trial, budget: int) -> tuple | None:
    """(seeds, the marks where those stand that count before they end, mean loss there and at the end, trial_id)."""
    if budget not in trial.losses:
        return None
    early = [r for r in trial.replicates if COUNTED_FROM * budget <= r.tokens < budget and r.tokens in r.losses]
    losses = trial.seeds_at(budget) + [repeat.losses[repeat.tokens] for repeat in early]
    return len(losses), tuple(sorted(repeat.tokens for repeat in early)), sum(losses) / len(losses), trial.trial_id
