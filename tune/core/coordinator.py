"""Asks the scheduler, journals its answers and hands out trials, in live and in simulated searches."""

from collections.abc import Callable
from typing import Any

from tune.core.events import (
    OPTIONAL,
    REPORTED,
    Event,
    Reported,
    TrialFailed,
    TrialResumed,
    TrialStarted,
    WorkerLost,
    position_of,
)
from tune.core.schedulers.base import Audit, Clock, Replicate, Resume, Scheduler, Start
from tune.core.search_space import Config
from tune.core.trials import AUDIT, CONTINUE, PAUSE, PAUSED, REPLICATE, RUNNING, SAMPLED, STOP, SUGGESTED, Trial, Trials

SEED_STEP = 1_000_003  # added to the search's seed for each replicate of a configuration
Configure = Callable[[int, Trials, bool], Config]
"""(index of the trial, the trials so far, True if the searcher suggests) -> the trial's hyper-parameters"""


class Coordinator:
    """One search. `append` stores an event and returns it as stored; the coordinator acts only afterwards."""

    def __init__(
        self,
        trials: Trials,
        scheduler: Scheduler,
        configure: Configure,
        append: Callable[[Event], Event],
        seed: int = 0,
        max_failures: int = 3,
    ):
        self.trials, self.scheduler, self.configure, self.append = trials, scheduler, configure, append
        self.seed, self.max_failures = seed, max_failures
        self.active: set[str] = set()  # ids of the trials that workers hold now; the only state that is not in the events

    def record(self, event: Event) -> None:
        """Stores an event, then applies it to the trials."""
        self.trials.apply(self.append(event))

    def next_trial(self, clock: Clock) -> Trial | None:
        """The trial that a free worker begins or continues from its last checkpoint; None: the worker waits."""
        trial = self._left_over(clock) or self._ask(clock)
        if trial is not None:
            self.active.add(trial.trial_id)
        return trial

    def is_over(self, clock: Clock) -> bool:
        """True if nothing is left to do."""
        return not self.active and not self.has_more(clock)

    def has_more(self, clock: Clock) -> bool:
        """True if there is work for one more worker."""
        return self._left_over(clock) is not None or self.scheduler.suggest(self.trials, clock) is not None

    def _left_over(self, clock: Clock) -> Trial | None:
        """A running trial that no worker holds, after an earlier session or a lost process, while there is time."""
        held = (trial for trial in self.trials.running.values() if clock.left > 0)
        audits = (trial for trial in self.trials.audits.values() if trial.status == RUNNING)  # audits have no time limit
        return next((trial for trial in (*held, *audits) if trial.trial_id not in self.active), None)

    def on_report(self, trial: Trial, result: dict[str, Any], clock: Clock) -> str:
        """The decision on a report. A trial that went back to a checkpoint gets its earlier decision again."""
        tokens = position_of(result["tokens_seen"], result.get("budget_seconds"))
        if tokens in trial.reports:
            return CONTINUE if trial.status == RUNNING and tokens < trial.segment_end_tokens else STOP
        if result["diverged"] or tokens >= trial.budget_tokens:
            decision = STOP
        elif tokens >= trial.segment_end_tokens:
            decision = PAUSE
        elif trial.source in (REPLICATE, AUDIT):
            decision = CONTINUE
        else:
            decision = self.scheduler.on_report(self.trials, trial, tokens, result[self.trials.metric])
        kept = {name: result[name] for name in (*REPORTED, *OPTIONAL) if name in result}
        self.record(Reported(trial_id=trial.trial_id, decision=decision, **kept))
        at_once = decision == PAUSE and self.trials.has_seeds  # else all pause, and repetitions in one piece differ
        if at_once and self._ask(clock, only=trial):  # the trial goes on without storing its state
            return CONTINUE
        return decision

    def on_end(self, trial: Trial) -> None:
        """Notes that no worker holds `trial` any more."""
        self.active.discard(trial.trial_id)

    def on_failure(self, trial: Trial, may_pass: bool, reason: str) -> None:
        """Journals that a trial's process ended with an error: it goes back to its last checkpoint, or fails for good."""
        if trial.status != RUNNING:
            return  # the trial had ended its segment
        kind = WorkerLost if may_pass and trial.lost < self.max_failures else TrialFailed
        self.record(kind(trial_id=trial.trial_id, reason=reason))

    def _ask(self, clock: Clock, only: Trial | None = None) -> Trial | None:
        """Does what the scheduler suggests. With `only`, does nothing but let that trial go on."""
        action = self.scheduler.suggest(self.trials, clock)
        if only is not None and not (isinstance(action, Resume) and action.trial_id == only.trial_id):
            return None
        by_id = self.trials.by_id
        match action:
            case Resume(trial_id, end):
                if by_id[trial_id].status != PAUSED:
                    raise ValueError(f"trial {trial_id} is {by_id[trial_id].status}: it can't go on")
                if trial_id in self.active and only is None:
                    return None  # still storing its state
                self.record(TrialResumed(trial_id=trial_id, segment_end_tokens=end))
            case Replicate(parent_id, end):
                number, config = len(by_id[parent_id].replicates) + 1, by_id[parent_id].config
                trial_id = f"{parent_id}-{'seed' if self.trials.has_seeds else 'again'}{number if number > 1 else ''}"
                if self.trials.has_seeds:
                    config = config | {"seed": (self.seed + number * SEED_STEP) % 2**31}
                self._begin(trial_id, REPLICATE, end, config, parent_id)
            case Audit(parent_id):
                if parent_id in self.active:
                    return None  # still storing its state
                trial_id = f"{parent_id}-audit"
                self._begin(trial_id, AUDIT, self.trials.budget_tokens, by_id[parent_id].config, parent_id)
            case Start(end, proposed, chosen):
                index = len(self.trials.drawn)
                prefix = "" if self.trials.baseline_id[:1].isdigit() else "t"  # none in runs before 0.1.0
                trial_id = f"{prefix}{index:05d}"
                config = self.configure(index, self.trials, proposed) if chosen is None else chosen
                self._begin(trial_id, SUGGESTED if proposed else SAMPLED, end, config)
            case _:
                return None
        return by_id[trial_id]

    def _begin(self, trial_id: str, source: str, end: int, config: Config, parent_id: str = "") -> None:
        """Records that a trial begins, up to `end` tokens."""
        self.record(
            TrialStarted(trial_id=trial_id, source=source, parent_id=parent_id, segment_end_tokens=end, config=config)
        )
