"""The time of a full training of each configuration, beside its loss."""

import math
from typing import TYPE_CHECKING

from tune.core.ranking import ranking
from tune.core.trials import Trial, Trials

if TYPE_CHECKING:  # only who reads tables waits for pandas
    import pandas as pd

FASTER = 1.25  # times as fast as the best, from which on the summary names a configuration


def training_speeds(trials: Trials, in_seconds: bool = False) -> "pd.DataFrame":
    """Returns the configurations that `ranking` compares, in its order, indexed by trial_id.

    Columns: val_loss, nats per token, the mean over seeds; seconds of a full training, evaluations included, the mean over
    seeds, scaled to the whole budget where losses are compared before; tokens of it, likewise; is_front, True where no
    configuration has a lower loss in as little time. `in_seconds` says that trainings have a time, so that the front counts
    tokens instead.
    """
    import pandas as pd

    at, ordered = ranking(trials)
    rows, scale = [], trials.budget_tokens / at if at else 1.0
    for trial in ordered:
        seeds = [seed for seed in (trial, *trial.replicates) if at in seed.losses]
        seconds = sum(seconds_in_one_slot(seed, at) for seed in seeds) / len(seeds)
        tokens = sum(seed.reports[at].tokens_seen for seed in seeds) / len(seeds)
        rows.append((trial.trial_id, trial.mean_at(at), scale * seconds, scale * tokens))
    table = pd.DataFrame(rows, columns=["trial_id", "val_loss", "seconds", "tokens"]).set_index("trial_id")
    lowest, cost = math.inf, "tokens" if in_seconds else "seconds"
    front = set()
    for trial_id, loss in table.sort_values([cost, "val_loss"])["val_loss"].items():
        if loss < lowest:
            lowest = loss
            front.add(trial_id)
    return table.assign(is_front=table.index.isin(front))


def seconds_in_one_slot(trial: Trial, at: int) -> float:
    """Returns the seconds of a trial's training up to `at`. A part that more processes than usual have shared counts at the
    pace of the rest.
    """
    reports = [trial.reports[tokens] for tokens in sorted(trial.reports) if tokens <= at]
    usual = min(report.processes for report in reports)
    tokens = seconds = passed = 0.0
    position = 0
    for report in reports:
        if report.processes == usual:
            tokens, seconds = tokens + report.position - position, seconds + report.train_seconds - passed
        position, passed = report.position, report.train_seconds
    return passed if tokens == at else at * seconds / tokens


def fastest_alike(speeds: "pd.DataFrame", low: "pd.Series") -> tuple[str, float, float] | None:
    """Returns (trial_id, nats per token behind the best, times as fast) of the fastest configuration within the noise of
    the best; None where none is FASTER times as fast.

    A configuration is within the noise where the lower end of the interval of its expected loss, `low` by trial_id, is at
    or below the loss of the best.
    """
    if speeds.empty:
        return None
    best = speeds.iloc[0]
    alike = speeds[low.reindex(speeds.index) <= best["val_loss"]]
    if alike.empty:
        return None
    trial_id = alike["seconds"].idxmin()
    found = alike.loc[trial_id]
    times = best["seconds"] / found["seconds"] if found["seconds"] > 0 else 0.0
    return (trial_id, float(found["val_loss"] - best["val_loss"]), float(times)) if times >= FASTER else None
