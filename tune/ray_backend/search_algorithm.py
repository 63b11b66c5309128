"""The search as Ray sees it: a search algorithm that hands out segments of trials."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import SearchAlgorithm

from tune.core.trials import Trial
from tune.ray_backend.failures import RayTrialRun
from tune.ray_backend.session import SearchSession
from tune.ray_backend.trainable import CHECKPOINT, SLOTS


class RaySearchAlgorithm(SearchAlgorithm):
    """Gives Ray the segments of a session. `check_alive` raises what ends the search; Ray's every question calls it."""

    def __init__(self, session: SearchSession, check_alive: Callable[[], None]):
        self.session, self.check_alive = session, check_alive
        self.runs: dict[str, RayTrialRun] = {}  # segments that Ray holds, by Ray's trial id
        self.start_next: RayTrialRun | None = None  # the segment that was handed out last, until Ray has a process for it

    def add_configurations(self, experiments: Any) -> None:
        """Takes the experiment whose trials this algorithm makes."""
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    def is_finished(self) -> bool:
        """True where Ray has ended the search, or nothing is left to do."""
        return super().is_finished() or self.session.is_over

    def next_trial(self) -> RayTrial | None:
        """The next segment for a free worker, or None for now."""
        self.check_alive()
        for run in list(self.runs.values()):
            if run.status == RayTrial.ERROR:  # Ray gives up without a word where a process can't be reused
                self.on_trial_complete(run.trial_id, error=True)
        if super().is_finished() or self.session.fatal:
            return None
        trial = self.session.next_trial()
        return self._segment(trial) if trial else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A segment has ended, well or badly."""
        self.session.on_end(self.runs.pop(trial_id), failed=error)

    def signs(self) -> tuple[frozenset[str], int]:
        """The ids of the segments that run, and a number that grows with each report and end."""
        return frozenset(name for name, run in self.runs.items() if run.status == RayTrial.RUNNING), self.session.heard

    def _segment(self, trial: Trial) -> RayTrialRun:
        """The trial's next segment, from its newest sound checkpoint."""
        checkpoint = self.session.newest_sound(trial)
        slots, spec = self.session.slots[trial.trial_id], self._experiment.spec
        config = trial.config | ({CHECKPOINT: checkpoint} if checkpoint else {}) | ({SLOTS: slots} if slots > 1 else {})
        run = RayTrialRun(
            self._experiment.run_identifier,
            config=config,
            trial_id=f"{trial.trial_id}.{self.session.started}",
            storage=self._experiment.storage,
            placement_group_factory=spec.get("resources_per_trial"),
            checkpoint_config=spec["checkpoint_config"],
            trial_dirname_creator=lambda run: run.trial_id,
        )
        run.trial = trial
        self.runs[run.trial_id] = self.start_next = run
        return run
