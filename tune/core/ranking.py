"""The ranking of a search's configurations by their losses over seeds."""

import math
import statistics
from collections.abc import Iterable

from tune.core.decision_config import DECISIONS
from tune.core.trials import REPLICATE, Trial, Trials


def by_final_loss(trials: Trials) -> list[Trial]:
    """The trials that came to the full budget, the lowest mean over seeds of their final losses first."""
    budget = trials.budget_tokens
    return sorted(trials.ranked_at(budget), key=lambda trial: (trial.mean_at(budget), trial.trial_id))


def ranking(trials: Trials) -> tuple[int, list[Trial]]:
    """(tokens, configurations, best first): `tokens` is the furthest mark that two configurations reached, or the only
    one.

    The order is the mean loss over seeds at `tokens`. Configurations with DECISIONS.seeds seeds, or the most that any has,
    rank before those with fewer. A configuration that diverged on any seed ranks last.
    """
    marks = {tokens for tokens, kind in trials.count_by_rung if kind != REPLICATE}
    tokens = max((tokens for tokens in marks if trials.count_at(tokens) > 1), default=max(marks, default=0))
    ordered = sorted(trials.ranked_at(tokens), key=lambda trial: (trial.mean_at(tokens), trial.trial_id))
    sound = [trial for trial in ordered if math.isfinite(trial.mean_at(tokens))]
    trusted = min(DECISIONS.seeds, max((len(trial.seeds_at(tokens)) for trial in sound), default=0))

    def tier(trial: Trial) -> int:
        if not math.isfinite(trial.mean_at(tokens)):
            return 2
        return 0 if len(trial.seeds_at(tokens)) >= trusted else 1

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
