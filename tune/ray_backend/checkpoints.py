"""The checkpoints of a running search: which one a trial goes on from, and which are deleted."""

import os
import sys

from tune.core.coordinator import Coordinator
from tune.core.events import CheckpointsDeleted, CheckpointStored
from tune.core.trials import AUDIT, Trial
from tune.store.checkpoints import Storage, worth_keeping


class CheckpointKeeper:
    """Keeps the checkpoints that are worth their room, or with `keep_all` every one."""

    def __init__(self, coordinator: Coordinator, storage: Storage, keep_all: bool):
        self.coordinator, self.storage, self.keep_all = coordinator, storage, keep_all
        self.trials = coordinator.trials
        self.written_here: set[str] = set()
        """checkpoints of this run of the command, which need no test"""

    def newest_sound(self, trial: Trial) -> str | None:
        """Path of the trial's newest undamaged checkpoint, relative to the storage; None: it begins anew."""
        inherited = self.trials.by_id[trial.parent_id].checkpoints if trial.source == AUDIT and trial.parent_id else {}
        for _, path in sorted((inherited | trial.checkpoints).items(), reverse=True):
            damage = None if path in self.written_here else self.storage.damage(path)
            if damage is None:
                return path
            print(f"warning: trial {trial.trial_id}: checkpoint {path} {damage}; going back further", file=sys.stderr)
        return None

    def stored(self, trial: Trial, tokens: int, path: str) -> None:
        """Journals that the trial's state after `tokens` lies in the folder `path`."""
        relative = os.path.relpath(path, self.storage.path)
        replaced = trial.checkpoints.get(tokens)  # by the same state, made again after a crash
        self.written_here.add(relative)
        self.coordinator.record(CheckpointStored(trial_id=trial.trial_id, tokens_seen=tokens, path=relative))
        if replaced and replaced != relative:
            self.storage.delete(replaced)
        self.delete_worthless(trial)

    def delete_worthless(self, trial: Trial) -> None:
        """Deletes the checkpoints of a trial that are not worth their room."""
        if self.keep_all or not trial.checkpoints:
            return
        may_audit = self.coordinator.scheduler.may_audit(self.trials, trial)
        kept = worth_keeping(self.trials, trial, may_audit)
        deleted = {tokens: path for tokens, path in trial.checkpoints.items() if tokens not in kept}
        if deleted:
            self.coordinator.record(CheckpointsDeleted(trial_id=trial.trial_id, tokens_seen=sorted(deleted)))
            for path in deleted.values():
                self.storage.delete(path)

    def cleanup(self) -> None:
        """Deletes the worthless checkpoints of every trial, and the files that a crash left behind."""
        for trial in self.trials.by_id.values():
            self.delete_worthless(trial)
        if not self.keep_all:
            self.storage.sweep({path for trial in self.trials.by_id.values() for path in trial.checkpoints.values()})
