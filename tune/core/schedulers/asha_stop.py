"""Asynchronous successive halving that stops, as Ray's ASHAScheduler (Li et al., arXiv 1810.05934)."""

import bisect

from tune.core.schedulers.fifo import Fifo
from tune.core.trials import CONTINUE, STOP, Trial, Trials


class AshaStop(Fifo):
    """At a rung a trial goes on if its loss is among the best 1/factor of the losses there so far, its own included.
    The best one always goes on. Of equal losses the earlier ranks first. All other trials stop for good.
    """

    default_rungs = ((1 / 16, 4), (1 / 4, 4))

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        if tokens not in self.factors:
            return CONTINUE
        better = bisect.bisect_right(trials.ranked_at(tokens), loss, key=lambda other: other.losses[tokens])
        return CONTINUE if better < max(1, (trials.count_at(tokens) + 1) // self.factors[tokens]) else STOP
