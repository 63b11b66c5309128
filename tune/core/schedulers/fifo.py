"""Random search: every trial trains to the full budget."""

from tune.core.schedulers.base import Action, Clock, Scheduler, Start
from tune.core.trials import Trials


class Fifo(Scheduler):
    """Starts trials one after the other and stops none of them."""

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        fits = trials.draws_left > 0 and clock.left >= trials.budget_tokens
        return Start(segment_end_tokens=trials.budget_tokens) if fits else None
