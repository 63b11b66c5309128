"""Shows the trials of a search in Weights & Biases."""

import os
from pathlib import Path
from typing import Any

from tune.core.events import Reported
from tune.monitor.trackers.base import finite_metrics


class WeightsAndBiases:
    """A Tracker: a run for each trial in a project, in a group for the search.

    A run's id is made of `run_id` and the trial's id, so a later segment resumes it. An offline run lies in `run_dir`.
    """

    def __init__(self, project: str, name: str, run_id: str, run_dir: Path):
        """Raises RuntimeError where a login is missing: wandb would ask for it, and wait."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        self.wandb, self.project, self.name, self.run_id, self.run_dir = wandb, project, name, run_id, run_dir
        self.runs: dict[str, wandb.Run] = {}

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        if trial_id not in self.runs:
            self.runs[trial_id] = self.wandb.init(
                project=self.project,
                group=f"{self.name}-{self.run_id}",
                id=f"{self.run_id}-{trial_id}",
                name=f"{self.name}-{trial_id}",
                config=config,
                dir=str(self.run_dir),
                resume="allow",
                reinit="create_new",
                settings=self.wandb.Settings(console="off", silent=True),
            )
        values = finite_metrics(event) | {"tokens_seen": event.tokens_seen}
        self.runs[trial_id].log(values, step=event.tokens_seen)

    def end(self, trial_id: str, status: str) -> None:
        run = self.runs.pop(trial_id, None)
        if run is not None:
            run.summary["status"] = status
            run.finish()
