"""Shows the trials of a search in MLflow."""

import os
from typing import Any

from tune.core.events import Reported
from tune.monitor.trackers.base import finite_metrics


class Mlflow:
    """A Tracker: a run for each trial, in the experiment of the search's name.

    A run is found again by its tags `run_id` (the search) and `trial_id`. Searches of one name share the experiment.
    """

    def __init__(self, uri: str, name: str, run_id: str):
        """Raises an MlflowException where no server answers."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 take four minutes
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, across the screen
        from mlflow.tracking import MlflowClient

        self.client, self.run_id = MlflowClient(tracking_uri=uri), run_id
        self.runs: dict[str, str] = {}  # trial_id -> MLflow's id of its run
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        from mlflow.entities import Metric

        run = self._run(trial_id, config)
        when, step = int(1000 * event.time), event.tokens_seen
        metrics = [Metric(name, value, when, step) for name, value in finite_metrics(event).items()]
        self.client.log_batch(run, metrics=metrics)

    def end(self, trial_id: str, status: str) -> None:
        if trial_id in self.runs:
            self.client.set_tag(self.runs[trial_id], "status", status)
            if status == "paused":
                self.client.update_run(self.runs.pop(trial_id), status="SCHEDULED")
            else:
                self.client.set_terminated(self.runs[trial_id], "FAILED" if status == "failed" else "FINISHED")

    def _run(self, trial_id: str, config: dict[str, Any]) -> str:
        """MLflow's id of the trial's run, which is created where there is none."""
        if trial_id not in self.runs:
            tags = {"run_id": self.run_id, "trial_id": trial_id}
            query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
            found = self.client.search_runs([self.experiment], query, max_results=1)
            if found:
                self.runs[trial_id] = found[0].info.run_id
                self.client.update_run(self.runs[trial_id], status="RUNNING")
            else:
                run = self.client.create_run(self.experiment, tags=tags, run_name=trial_id)
                self.runs[trial_id] = run.info.run_id
                for name, value in config.items():
                    self.client.log_param(run.info.run_id, name, value)
        return self.runs[trial_id]
