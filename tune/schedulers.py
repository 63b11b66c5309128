"""Who goes on at a rung. Plain classes without Ray: a search feeds them reports, live or read back from its journal.

Their whole memory is the sequence of reports and promotions, so a resumed search decides what an uninterrupted one would
have. A ladder is a list of rungs: at a share of the budget, one in so many goes on.
"""

import math
from dataclasses import dataclass, field

from myllm.errors import InputError

CONTINUE, PAUSE, STOP = "continue", "pause", "stop"
Ladder = tuple[tuple[float, int], ...]
"""(share of the budget, one in how many goes on), ascending"""

RATE_WORTH = 0.05  # nats per token that an e times higher peak learning rate gains from mid-schedule to the end (LOG.md)
FAIR_FINALISTS = 3  # from so many on, half of them are chosen with that in mind
FEW_TRIALS = 32
LADDER_OF_FEW: Ladder = ((3 / 16, 8),)
LADDER_OF_MANY: Ladder = ((1 / 32, 2), (1 / 16, 6), (3 / 16, 3))


def default_ladder(num_samples: int) -> Ladder:
    """asha's ladder for a search of that many trials, by replays of full curves (experiments/LOG.md).

    Early rungs are cheap and often wrong, warm-up not yet over: they pay where there are many trials to choose from.
    """
    return LADDER_OF_FEW if num_samples < FEW_TRIALS else LADDER_OF_MANY


def parse_ladder(text: str) -> Ladder:
    """The ladder that `0.03125:2,0.125:8` describes. Raises InputError where it is none."""
    right = "shares of the budget, ascending, each with one in how many goes on, like 0.03125:2,0.125:8"
    try:
        pairs = [part.split(":") for part in text.split(",")]
        ladder = tuple((float(share), int(one_in)) for share, one_in in pairs)
    except ValueError:
        raise InputError(f"--rungs is {text!r}; it must be {right}") from None
    shares = [share for share, _ in ladder]
    if not all(0 < share < 1 for share in shares) or shares != sorted(set(shares)) or min(k for _, k in ladder) < 2:
        raise InputError(f"--rungs is {text!r}; it must be {right}: shares between 0 and 1, one in 2 or more")
    return ladder


def geometric_ladder(grace_period: float, reduction_factor: int) -> Ladder:
    """Rungs at grace_period * reduction_factor**k shares of the budget, at each one in reduction_factor goes on."""
    ladder, share = [], grace_period
    while share < 1:
        ladder.append((share, reduction_factor))
        share *= reduction_factor
    return tuple(ladder)


def format_ladder(ladder: Ladder) -> str:
    """The text that parse_ladder reads."""
    return ",".join(f"{share:g}:{one_in}" for share, one_in in ladder)


@dataclass
class Rung:
    """One rung and the losses (nats per token) that trials reached it with, in the order of their arrival."""

    mark: int
    """tokens_seen at which trials are compared"""
    one_in: int
    """one in this many goes on"""
    losses: dict[str, float] = field(default_factory=dict)
    """the mean over seeds of those that were looked at again"""
    seeds: dict[str, int] = field(default_factory=dict)
    """how many seeds, of those"""
    promoted: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)

    def waiting(self) -> list[str]:
        """The trials that still wait, the lowest loss first; of equals the earliest."""
        gone = self.promoted | self.withdrawn
        return sorted((trial_id for trial_id in self.losses if trial_id not in gone), key=self.losses.__getitem__)

    def rank(self, trial_id: str) -> int:
        """How many trials come before `trial_id`."""
        return sorted(self.losses, key=self.losses.__getitem__).index(trial_id)


class Fifo:
    """Every trial runs to the end of its budget. Also what the other schedulers share."""

    def __init__(self, ladder: Ladder = (), budget_tokens: int = 1, report_tokens: int = 1, late: bool = False):
        marks: dict[int, int] = {}
        for share, one_in in ladder:  # a rung lies at the first report mark at or after its share
            mark = math.ceil(share * budget_tokens / report_tokens - 1e-9) * report_tokens
            if mark < budget_tokens:
                marks[mark] = max(one_in, marks.get(mark, 0))
        self.rungs = [Rung(mark, one_in) for mark, one_in in sorted(marks.items())]
        self._rung_at = {rung.mark: rung for rung in self.rungs}
        self.offspring: set[str] = set()
        self._rates: dict[str, float] = {}

    def enter(self, trial_id: str, learning_rate: float | None, offspring: bool = False) -> None:
        """Remembers a new trial's peak learning rate, where that is known; offspring is compared at the last rung alone."""
        self._rates[trial_id] = learning_rate or 1.0
        if offspring:
            self.offspring.add(trial_id)

    def decision(self, trial_id: str, tokens_seen: int, loss: float) -> str:
        """What `trial_id` would do after its report of the finite `loss` at `tokens_seen`. Changes nothing."""
        return CONTINUE

    def record(self, trial_id: str, tokens_seen: int, loss: float, decision: str) -> None:
        """Remembers a report and the decision on it."""

    def turn(self) -> str | None:
        """The paused trial whose turn it is to go on, if any."""
        return None

    def final_turn(self, at_least: int, slowest: float) -> str | None:
        """The same once no new trial will come: now at least `at_least` trials go on at the last rung, thrice as many at
        the one before, and so on.

        A rung is not judged before the running trial with the fewest tokens, `slowest` of them, is past it.
        """
        return None

    def contenders(self, at_least: int, more: int = 0) -> tuple[list[str], int]:
        """(those that wait at the last rung; how many of them final_turn would let go on, and `more`): these come first."""
        return [], 0

    def prospects(self) -> list[str]:
        """Those that came to the last rung, the most promising first: by the loss there and the learning rate."""
        return []

    def let_go_on(self, finalists: int | None) -> None:
        """Lets so many trials in all go on at the last rung in the end; None: as many as the ladder says."""

    def look(self, trial_id: str, loss: float) -> None:
        """Remembers the loss of a waiting trial's configuration on another seed, at the last rung."""

    def goes_on(self, level: int, arriving: int, at_least: int) -> int:
        """How many more trials would go on from rung `level` in the end if `arriving` more came to it and then no more."""
        return arriving

    def promote(self, trial_id: str) -> None:
        """Remembers that a paused trial goes on."""

    def withdraw(self, trial_id: str) -> None:
        """Takes a paused trial out of the competition: it goes on whatever happens, and counts at this rung alone."""

    def out_of_reach(self, trial_id: str, at_least: int) -> bool:
        """Whether a paused trial would not be promoted even if twice the trials came to its rung, all of them worse."""
        return True


class AshaStop(Fifo):
    """Asynchronous successive halving that stops (as Ray's ASHAScheduler; Li et al., arXiv 1810.05934).

    At a rung a trial goes on if its loss is among the best 1/one_in of the losses seen there so far, its own included, and
    at least the best one; of equal losses the earlier is the better.
    """

    def decision(self, trial_id: str, tokens_seen: int, loss: float) -> str:
        rung = self._rung_at.get(tokens_seen)
        if rung is None:
            return CONTINUE
        better = sum(other <= loss for other in rung.losses.values())
        return CONTINUE if better < max(1, (len(rung.losses) + 1) // rung.one_in) else STOP

    def record(self, trial_id: str, tokens_seen: int, loss: float, decision: str) -> None:
        rung = self._rung_at.get(tokens_seen)
        if rung is not None and math.isfinite(loss):
            rung.losses[trial_id] = loss


class Asha(Fifo):
    """Asynchronous successive halving that pauses and promotes (Li et al., arXiv 1810.05934, algorithm 2).

    Every trial pauses at a rung, unless it is its turn at once. As long as fewer than one in `one_in` of the trials that
    came to a rung were promoted from it, it is the turn of the best one that waits there; higher rungs come first, of equal
    losses the earlier. So never more than 1 in `one_in` goes on, and nobody before somebody better who waits. Diverged
    trials are not recorded and count for nothing.

    In the end the finalists are chosen among all that wait at the last rung. Halfway down its schedule a high learning rate
    still looks worse than it will end, so of three or more half are the best once that is allowed for; the mean over seeds
    tells those that bear their rate from those that were lucky.

    With `late` nobody goes on before the search knows that no new trial will come: then final_turn sees all who could, as
    in successive halving (Jamieson and Talwalkar, arXiv 1502.07943), and new trials have kept the slots busy meanwhile.
    """

    def __init__(self, ladder: Ladder, budget_tokens: int, report_tokens: int, late: bool = False):
        super().__init__(ladder, budget_tokens, report_tokens)
        self._late = late  # only this one promotes, so the others have no use for it
        self._paused_at: dict[str, Rung] = {}
        self._withdrawn: set[str] = set()
        self._finalists: int | None = None  # that there is time for

    def decision(self, trial_id: str, tokens_seen: int, loss: float) -> str:
        rung = self._rung_of(trial_id, tokens_seen)
        if rung is None:
            return CONTINUE
        rung.losses[trial_id] = loss  # as if it were there already
        turn = self.turn()
        del rung.losses[trial_id]
        return CONTINUE if turn == trial_id else PAUSE

    def record(self, trial_id: str, tokens_seen: int, loss: float, decision: str) -> None:
        rung = self._rung_of(trial_id, tokens_seen)
        if rung is None or not math.isfinite(loss):
            return
        rung.losses[trial_id] = loss
        if decision == PAUSE:
            self._paused_at[trial_id] = rung
        else:
            rung.promoted.add(trial_id)

    def _rung_of(self, trial_id: str, tokens_seen: int) -> Rung | None:
        """The rung at which the trial competes there, if it does."""
        rung = self._rung_at.get(tokens_seen)
        if trial_id in self._withdrawn or (trial_id in self.offspring and rung is not self.rungs[-1]):
            return None
        return rung

    def turn(self) -> str | None:
        for rung in reversed(self.rungs if not self._late else []):
            if len(rung.promoted) < len(rung.losses) // rung.one_in:
                return next(iter(rung.waiting()), None)
        return None

    def final_turn(self, at_least: int, slowest: float) -> str | None:
        for level, rung in enumerate(self.rungs):
            if slowest < rung.mark:
                return None
            if self.goes_on(level, 0, at_least):
                return (self.contenders(at_least)[0] if rung is self.rungs[-1] else rung.waiting())[0]
        return None

    def contenders(self, at_least: int, more: int = 0) -> tuple[list[str], int]:
        rung, places = self.rungs[-1], self.goes_on(len(self.rungs) - 1, 0, at_least) + more
        finalists = len(rung.promoted) + places
        half = finalists // 2 if finalists >= FAIR_FINALISTS else 0
        best = [trial_id for trial_id in self.prospects() if trial_id not in rung.withdrawn][:half]
        return sorted(rung.waiting(), key=lambda trial_id: trial_id not in best), places

    def prospects(self) -> list[str]:
        losses = self.rungs[-1].losses
        return sorted(losses, key=lambda trial_id: losses[trial_id] - RATE_WORTH * math.log(self._rates.get(trial_id, 1.0)))

    def let_go_on(self, finalists: int | None) -> None:
        self._finalists = finalists

    def look(self, trial_id: str, loss: float) -> None:
        rung = self.rungs[-1]
        seeds = rung.seeds[trial_id] = rung.seeds.get(trial_id, 1) + 1
        rung.losses[trial_id] += (loss - rung.losses[trial_id]) / seeds

    def goes_on(self, level: int, arriving: int, at_least: int) -> int:
        rung = self.rungs[level]
        there = len(rung.losses) + arriving
        bred = sum(trial_id in rung.losses for trial_id in self.offspring)
        places = max(self._least(level, at_least), (there - bred) // rung.one_in)
        if rung is self.rungs[-1] and self._finalists is not None:
            return max(0, min(self._finalists - len(rung.promoted), len(rung.waiting())))
        taken = len(rung.promoted) + sum(rung.rank(trial_id) < places for trial_id in rung.withdrawn)
        waiting = there - len(rung.promoted) - len(rung.withdrawn)
        return max(0, min(places - taken, waiting))

    def _least(self, level: int, at_least: int) -> int:
        """How many go on at least from rung `level` in the end, when `at_least` do from the last."""
        return at_least * 3 ** (len(self.rungs) - 1 - level)

    def promote(self, trial_id: str) -> None:
        self._paused_at.pop(trial_id).promoted.add(trial_id)

    def withdraw(self, trial_id: str) -> None:
        self._withdrawn.add(trial_id)
        self._paused_at.pop(trial_id).withdrawn.add(trial_id)

    def out_of_reach(self, trial_id: str, at_least: int) -> bool:
        rung = self._paused_at.get(trial_id)
        if rung is None:
            return True
        places = max(self._least(self.rungs.index(rung), at_least), 2 * len(rung.losses) // rung.one_in)
        promising = rung is self.rungs[-1] and trial_id in self.prospects()[:places]
        return not promising and rung.rank(trial_id) >= places


SCHEDULERS = {"asha": Asha, "asha-stop": AshaStop, "fifo": Fifo}
