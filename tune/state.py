"""What a search knows and what it does next: computed from events alone, without Ray, files or clocks.

A live search appends each event to its journal first; a resumed one reads them back; a replay makes them up.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tune.schedulers import CONTINUE, PAUSE, STOP, Fifo

COMPLETED, STOPPED, DIVERGED, FAILED, INTERRUPTED = "completed", "stopped", "diverged", "failed", "interrupted"
STATUSES = (COMPLETED, STOPPED, DIVERGED, FAILED, INTERRUPTED)
DEFAULT_TRIAL = "00000"
"""the preset's reference configuration, always the first"""
UNLIMITED_TRIALS = 100_000  # as many as the digits of a trial's id hold
CONFIRM_SEED_STEP = 1_000_003  # from the search's seed to that of its confirmations, and on to that of further looks
LOOKS = 2  # fresh seeds that tell, at the last rung, whether a configuration is sound or was lucky
REPORTED = (
    *("step", "tokens_seen", "train_loss", "val_loss", "val_loss_ema", "val_bpb", "learning_rate", "grad_norm"),
    *("train_seconds", "tok_per_sec", "diverged"),
)
"""what a report event keeps of a trial's metrics"""
Event = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a search sets out to do."""

    num_samples: int
    """trials to draw, confirmations apart"""
    budget_tokens: int
    """tokens of one full training"""
    draw: Callable[[int, "SearchState"], dict[str, Any]]
    """(index, the search so far) -> the hyper-parameters of trial `index`"""
    breed: Callable[[int, "SearchState"], dict[str, Any]] | None = None
    """the same for offspring of the best at the last rung: where configurations are confirmed, a closed search tries those
    for as long as there is time"""
    confirm: int = 0
    """best configurations that run again on a fresh seed; where it is not 0, in the end the best at the last rung run up to
    it on LOOKS fresh seeds before some go on, and the mean over the seeds decides"""
    seed: int = 0
    """the search's seed; repetitions run on seed + k * CONFIRM_SEED_STEP, confirmations with k = 1"""
    rung_metric: str = "val_loss"
    """the metric that rungs compare, in nats per token"""
    max_failures: int = 3
    """times that a trial is started again after it was lost"""
    reference: str | None = DEFAULT_TRIAL
    """the trial that always ends and is confirmed, so that the gain shows"""


class SearchState:
    """The search so far. `append(event, **values)` makes each event last and returns it."""

    def __init__(self, plan: Plan, scheduler: Fifo, append: Callable[..., Event], events: Iterable[Event] = ()):
        self.plan, self.scheduler, self.append = plan, scheduler, append
        self.events: list[Event] = []
        self.configs: dict[str, dict[str, Any]] = {}
        self.confirms: dict[str, str] = {}  # a confirmation, or a look -> the trial whose configuration it repeats
        self.reports: dict[str, dict[int, Event]] = {}  # by optimizer step
        self.checkpoints: dict[str, dict[int, str]] = {}  # by optimizer step
        self.lost: dict[str, int] = {}  # times that a trial's process was lost
        self.reasons: dict[str, str] = {}  # why a trial failed
        self.status: dict[str, str] = {}
        self.closed = False  # no more trials are drawn
        self.bred = plan.breed is None  # and no more offspring
        self.confirm = plan.confirm
        self.slots = 1  # trials at once, in this session
        self.running: set[str] = set()
        """trials that hold a slot at this moment; the only thing here that is not in the events"""
        for event in events:
            self._apply(event)

    def record(self, event: str, **values: Any) -> None:
        """Makes an event last, then acts on it."""
        self._apply(self.append(event, **values))

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        kind, trial_id = event["event"], event.get("trial_id")
        if kind == "trial":
            self.configs[trial_id], self.reports[trial_id], self.checkpoints[trial_id] = event["config"], {}, {}
            self.status[trial_id] = INTERRUPTED
            if "confirms" in event:
                self.confirms[trial_id] = event["confirms"]
            else:
                self.scheduler.enter(trial_id, event["config"].get("learning_rate"), "offspring" in event)
        elif kind == "promote":
            self.status[trial_id] = INTERRUPTED
            if trial_id not in self.confirms:
                (self.scheduler.withdraw if event["guaranteed"] else self.scheduler.promote)(trial_id)
        elif kind == "report":
            self.reports[trial_id][event["step"]] = event
            if event["diverged"]:
                self.status[trial_id] = DIVERGED
            elif event["tokens_seen"] >= self.plan.budget_tokens:
                self.status[trial_id] = COMPLETED
            elif event["decision"] != CONTINUE:
                self.status[trial_id] = STOPPED
            loss = math.inf if event["diverged"] else event[self.plan.rung_metric]
            if trial_id not in self.confirms and not event["diverged"]:
                self.scheduler.record(trial_id, event["tokens_seen"], loss, event["decision"])
            elif self._is_look(trial_id) and event["decision"] != CONTINUE:
                self.scheduler.look(self.confirms[trial_id], loss)
        elif kind == "checkpoint":
            self.checkpoints[trial_id][event["step"]] = event["path"]
        elif kind == "pruned":
            for step in event["steps"]:
                self.checkpoints[trial_id].pop(step, None)
        elif kind in ("close", "reopen"):
            self.closed, self.bred = kind == "close", self.plan.breed is None
            self.scheduler.let_go_on(None)  # how many finish is planned when it is known who comes to the last rung
        elif kind == "bred":
            self.bred = True
        elif kind == "finalists":
            self.scheduler.let_go_on(event["trials"])
        elif kind == "session":
            self.slots = event["slots"]
        elif kind == "confirm":
            self.confirm = event["trials"]
        elif kind == "lost":
            self.lost[trial_id] = self.lost.get(trial_id, 0) + 1
        elif kind == "failed":
            self.status[trial_id], self.reasons[trial_id] = FAILED, event["reason"]

    # What happens to a trial

    def decide(self, trial_id: str, result: dict[str, Any]) -> str:
        """The decision on a report. One made before (the trial went back to a checkpoint) is given again, not remade."""
        known = self.reports[trial_id].get(result["step"])
        if known is not None:
            promoted = known["decision"] == PAUSE and self.status[trial_id] == INTERRUPTED
            return CONTINUE if promoted else known["decision"]
        loss, decision = result[self.plan.rung_metric], CONTINUE
        if result["diverged"] or result["tokens_seen"] >= self.plan.budget_tokens:
            decision = STOP
        elif trial_id not in self.confirms:
            decision = self.scheduler.decision(trial_id, result["tokens_seen"], loss)
            if decision == STOP and trial_id == self.plan.reference:
                decision = CONTINUE
        elif self._is_look(trial_id) and result["tokens_seen"] == self.scheduler.rungs[-1].mark:
            decision = PAUSE
        self.record("report", trial_id=trial_id, decision=decision, **{name: result[name] for name in REPORTED})
        return decision

    def failure(self, trial_id: str, may_pass: bool, reason: str) -> None:
        """A trial's process ended with an error: it starts again from its last checkpoint, or fails for good."""
        if self.status[trial_id] != INTERRUPTED:
            return  # it had done all it had to
        if may_pass and self.lost.get(trial_id, 0) < self.plan.max_failures:
            self.record("lost", trial_id=trial_id, reason=reason)
        else:
            self.record("failed", trial_id=trial_id, reason=reason)

    # What happens next

    def next_trial(self) -> str | None:
        """The trial that a free slot starts, or takes up again where its last checkpoint is; None: none for now."""
        step = self._next_step()
        if step is None:
            return None
        event, values = step
        if event:
            self.record(event, **values)
        self.running.add(values["trial_id"])
        return values["trial_id"]

    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return INTERRUPTED not in self.status.values() and not self.running and self._next_step() is None

    def _next_step(self) -> tuple[str, dict[str, Any]] | None:
        """(event to record first, or '', and its values), in the order of what matters more."""
        unfinished = [trial_id for trial_id, status in self.status.items() if status == INTERRUPTED]
        for trial_id in unfinished:
            if trial_id not in self.running:
                return "", {"trial_id": trial_id}
        promoted = self.scheduler.turn()
        if promoted is not None:
            return self._promotion(promoted)
        index = len(self.configs) - len(self.confirms)
        if index < self.plan.num_samples and not self.closed:
            return "trial", {"trial_id": f"{index:05d}", "config": self.plan.draw(index, self)}
        if self.status.get(self.plan.reference) == STOPPED:
            return self._promotion(self.plan.reference, guaranteed=True)
        unfinished = [trial_id for trial_id in unfinished if trial_id not in self.confirms]
        slowest = min((self.tokens_seen(trial_id) for trial_id in unfinished), default=math.inf)
        promoted = self.scheduler.final_turn(self.finalists, slowest)
        contenders, places = self.scheduler.contenders(self.finalists) if self.confirm else ([], 0)
        if self.breeds and (promoted is None or promoted in contenders):
            return "trial", {"trial_id": f"{index:05d}", "config": self.plan.breed(index, self), "offspring": True}
        if promoted is not None:
            if promoted in contenders and places < len(contenders):
                look = self._look(contenders, places)
                if look is not None:
                    return look
                if any(self.status[trial_id] == INTERRUPTED for trial_id in self.confirms):
                    return None
            return self._promotion(promoted)
        if unfinished:
            return None
        for original in self._to_confirm():
            return self._repetition(original)
        return None

    def _repetition(self, original: str, number: int = 1) -> tuple[str, dict[str, Any]]:
        """The step that starts a trial's configuration on a fresh seed, or lets that go on from the last rung.

        The first is the one that may be a confirmation later.
        """
        trial_id = f"{original}-seed{number if number > 1 else ''}"
        if trial_id in self.confirms:
            return "promote", {"trial_id": trial_id, "guaranteed": True}
        config = self.configs[original] | {"seed": (self.plan.seed + number * CONFIRM_SEED_STEP) % 2**31}
        return "trial", {"trial_id": trial_id, "config": config, "confirms": original}

    def _look(self, contenders: list[str], places: int) -> tuple[str, dict[str, Any]] | None:
        """The step that looks again at the best one that was looked at too seldom, while one of the first `places` was, or
        is being looked at; None where all of those are known, or looking on would take more time than is planned for."""
        repeated = {trial_id: self.repetitions(trial_id) for trial_id in contenders}
        first = [self.status[look] for trial_id in contenders[:places] for look in repeated[trial_id]]
        unsure = [trial_id for trial_id in contenders if len(repeated[trial_id]) < LOOKS]
        known = len(first) == LOOKS * places and INTERRUPTED not in first
        spent = sum(self.status[trial_id] != COMPLETED for trial_id in self.confirms)
        if known or not unsure or spent >= self.most_looks(places):
            return None
        return self._repetition(unsure[0], len(repeated[unsure[0]]) + 1)

    def most_looks(self, places: int) -> int:
        """How many looks there may be before `places` more trials go on from the last rung."""
        return LOOKS * (len(self.scheduler.rungs[-1].promoted) + places + self.slots)

    def repetitions(self, original: str) -> list[str]:
        """The trials that repeat the configuration of `original`, the one that may be its confirmation first."""
        return [trial_id for trial_id, of in self.confirms.items() if of == original]

    def _is_look(self, trial_id: str) -> bool:
        """Whether a trial repeats one that waits at the last rung: it goes there and no further, to help choose."""
        return self.status.get(self.confirms.get(trial_id, "")) == STOPPED

    def _promotion(self, trial_id: str, guaranteed: bool = False) -> tuple[str, dict[str, Any]] | None:
        """The step that lets a paused trial go on; None, a moment's wait, while it is still storing its state."""
        return None if trial_id in self.running else ("promote", {"trial_id": trial_id, "guaranteed": guaranteed})

    def _to_confirm(self) -> list[str]:
        """The best completed trials and the reference, without those that have their confirmation already.

        Those that begin it come before those that go on with a look: the longest first keeps the slots busy.
        """
        completed = [t for t, status in self.status.items() if status == COMPLETED and t not in self.confirms]
        wanted = sorted(completed, key=self.last_loss)[: self.confirm]
        if wanted and self.plan.reference in completed and self.plan.reference not in wanted:
            wanted.append(self.plan.reference)
        if len(wanted) < 2:  # nothing to choose between
            return []
        again = {of: self.status[trial_id] for trial_id, of in reversed(self.confirms.items())}  # of several the first
        wanted = [trial_id for trial_id in wanted if again.get(trial_id, STOPPED) == STOPPED]
        return sorted(wanted, key=again.__contains__)

    # What is known

    @property
    def breeds(self) -> bool:
        """Whether the search tries offspring now, its draws being over and enough of them at the last rung."""
        if self.bred or not self.closed or not self.confirm:
            return False
        if len(self.configs) - len(self.confirms) >= self.plan.num_samples:
            return False
        return len(self.scheduler.rungs[-1].waiting()) >= 2 * self.finalists

    @property
    def finalists(self) -> int:
        """Trials that go on at the last rung in the end, however few came to it: a number that leaves no slot idle."""
        return math.ceil(max(self.confirm, 1) / self.slots) * self.slots

    def last_report(self, trial_id: str) -> Event | None:
        """The trial's report with the most tokens."""
        reports = self.reports[trial_id]
        return reports[max(reports)] if reports else None

    def tokens_seen(self, trial_id: str) -> int:
        """Tokens up to the trial's last report."""
        report = self.last_report(trial_id)
        return report["tokens_seen"] if report else 0

    def last_loss(self, trial_id: str) -> float:
        """val_loss (nats per token) of the trial's last report; NaN before the first."""
        report = self.last_report(trial_id)
        return report["val_loss"] if report else math.nan

    def kept_checkpoints(self, trial_id: str) -> set[int]:
        """The optimizer steps of the checkpoints worth their room.

        Of a trial that runs the last two (the older in case the newer is damaged) and the best; of a completed one the last
        and the best; of one that waits at a rung the last, while it would be promoted if twice the trials came there;
        of others none. A trial promoted without any begins anew.
        """
        steps, status = sorted(self.checkpoints[trial_id]), self.status[trial_id]
        if status in (DIVERGED, FAILED) or not steps:
            return set()
        if status == STOPPED:
            if trial_id in self.confirms:
                of = self.confirms[trial_id]
                gone = trial_id != self.repetitions(of)[0] or not self.kept_checkpoints(of)
            else:
                gone = trial_id != self.plan.reference and self.scheduler.out_of_reach(trial_id, 2 * self.finalists)
            return set() if gone else {steps[-1]}
        reports = self.reports[trial_id]
        best = min(steps, key=lambda step: reports[step]["val_loss"] if step in reports else math.inf)
        return {best, *steps[-1 if status == COMPLETED else -2 :]}
