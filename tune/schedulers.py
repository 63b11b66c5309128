"""Who goes on at a rung. Plain classes without Ray: a search feeds them reports, live or read back from the journal.

Their whole memory is the sequence of reports, so a resumed search decides what an uninterrupted one would have.
"""

import math

CONTINUE, STOP = "continue", "stop"


class Fifo:
    """Every trial runs to the end of its budget."""

    rungs: tuple[int, ...] = ()

    def report(self, trial_id: str, tokens_seen: int, loss: float) -> str:
        """What `trial_id` does after its report of `loss` (nats per token) at `tokens_seen`."""
        return CONTINUE


class Asha:
    """Asynchronous successive halving that stops (Li et al., arXiv 1810.05934, in its stopping form).

    Rungs lie at grace_period * reduction_factor**k shares of the budget, each moved up to the next report mark. At a
    rung a trial goes on if its loss is among the best 1/reduction_factor of the losses seen there so far, its own
    included, and at least the best one; of equal losses the earlier is the better. Non-finite losses never go on and
    never count. `protected` trials always go on, and take nobody's place.
    """

    def __init__(
        self,
        budget_tokens: int,
        report_tokens: int,
        grace_period: float,
        reduction_factor: int,
        protected: frozenset[str] = frozenset(),
    ):
        self.reduction_factor, self.protected = reduction_factor, protected
        marks = []
        share = grace_period
        while share < 1:
            marks.append(math.ceil(share * budget_tokens / report_tokens - 1e-9) * report_tokens)
            share *= reduction_factor
        self.rungs = tuple(sorted({mark for mark in marks if mark < budget_tokens}))
        self._losses: dict[int, dict[str, float]] = {rung: {} for rung in self.rungs}

    def report(self, trial_id: str, tokens_seen: int, loss: float) -> str:
        """What `trial_id` does after its report of `loss` (nats per token) at `tokens_seen`. Asked once a mark."""
        if not math.isfinite(loss):
            return STOP
        if tokens_seen not in self._losses or trial_id in self.protected:
            return CONTINUE
        rung = self._losses[tokens_seen]
        rung[trial_id] = loss
        better = sum(other <= loss for name, other in rung.items() if name != trial_id)
        allowed = max(1, len(rung) // self.reduction_factor)
        return CONTINUE if better < allowed else STOP
