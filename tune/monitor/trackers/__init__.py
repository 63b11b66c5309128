"""Shows a search in TensorBoard, Weights & Biases and MLflow while it runs: one run a trial."""

from pathlib import Path

from tune.config.spec import SearchSpec
from tune.core.trials import Trials
from tune.monitor.trackers.base import BackgroundLogger
from tune.monitor.trackers.mlflow_tracking import Mlflow
from tune.monitor.trackers.tensorboard import TensorBoard
from tune.monitor.trackers.weights_and_biases import WeightsAndBiases


def start_trackers(run_dir: Path, search: SearchSpec, trials: Trials) -> list[BackgroundLogger]:
    """The loggers that follow a search. Call each with every event, and close it at the end."""
    project, uri, name, run_id = search.options.wandb, search.options.mlflow, search.options.name, search.run_id
    name, board = name or run_dir.name, TensorBoard(run_dir)
    found = [BackgroundLogger("tensorboard", lambda: board, trials.by_id)]
    if project:
        found.append(BackgroundLogger("--wandb", lambda: WeightsAndBiases(project, name, run_id, run_dir), trials.by_id))
    if uri:
        found.append(BackgroundLogger("--mlflow", lambda: Mlflow(uri, name, run_id), trials.by_id))
    return found
