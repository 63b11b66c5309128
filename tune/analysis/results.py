"""The results of a run folder as tables, the leaderboard, and the best configuration. Imports no ray."""

import json
import math
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from myllm.system.errors import InputError
from myllm.system.files import write_text
from myllm.text.commands import command
from tune.analysis.posterior import CONSIDERED, expected_losses, interval, probability_of_best
from tune.config.spec import BuiltinSearch, SearchSpec, read_search
from tune.core.events import Event
from tune.core.ranking import ranking
from tune.core.trials import AUDIT, DIVERGED, REPLICATE, SAMPLED, STATUSES, SUGGESTED, Trials
from tune.store.journal import read_journal
from tune.store.tables import HISTORY_COLUMNS, by_id, trial_columns, trial_row, write_tables

if TYPE_CHECKING:  # pandas takes half a second to import: only who reads tables waits for it
    import pandas as pd

UNITS = {
    "trial_id": "name of a training: one configuration on one seed; the index of trials and leaders",
    "source": "sampled evenly, suggested by the searcher, a replicate of `parent_id` on another seed, or an audit of it",
    "parent_id": "the trial that a replicate repeats, or that an audit lets go on; empty for others",
    "seed": "of initialisation and data order",
    "status": "completed (full budget), paused (may go on), stopped (for good), diverged, failed, running",
    "val_loss": "nats per token, at its last report; of leaders: mean over seeds at tokens_seen",
    "val_bpb": "bits per byte of text, likewise; comparable between tokenizers",
    "val_loss_ema": "nats per token, of averaged weights; NaN where none are kept",
    "train_loss": "nats per token, on fixed windows of the training data",
    "best_val_loss": "nats per token, the lowest of its reports",
    "tokens_seen": "tokens trained on; of leaders: where they are compared",
    "step": "optimizer steps",
    "train_seconds": "seconds of training and evaluation, without starting and waiting",
    "tok_per_sec": "tokens a second since the report before",
    "lr": "learning rate at the report",
    "learning_rate": "the peak of a trial's schedule",
    "grad_norm": "of the gradient before clipping",
    "checkpoint": "path of its newest below the storage's root; empty where none is kept",
    "reason": "why it failed",
    "spread": "nats per token between the best and the worst seed",
    "seeds": "trainings of this configuration that came as far",
    "losses": "nats per token, one a seed",
    "low": "nats per token, lower end of the interval of the expected val_loss",
    "high": "nats per token, its upper end",
    "probability_best": "of having the lowest expected val_loss of these",
    "regret": "nats per token that choosing it is expected to cost, beside the truly best of these",
    "gain_low": "nats per token, lower end of the interval of the gain over the baseline",
    "gain_high": "nats per token, its upper end",
}
"""what each column of the tables counts; hyper-parameters are as TrainConfig documents them"""


def load(run_dir: Path) -> tuple[SearchSpec, Trials, list[Event]]:
    """Returns (settings, trials, events) of a run folder. Raises InputError for another folder, or without any event."""
    search, events = read_search(run_dir), read_journal(run_dir)
    if not events:
        raise InputError(f"{run_dir} has no results yet; go on with: {command('tune/search.py', '--resume', run_dir)}")
    return search, search.trials(events), events


@dataclass(frozen=True)
class RunTables:
    """The tables of a search, for pandas. UNITS describes each column; losses are nats per token."""

    search: SearchSpec  # the settings of the search
    trials: "pd.DataFrame"  # a row a trial, indexed by trial_id: hyper-parameters, source, status, last losses
    history: "pd.DataFrame"  # a row a report: trial_id, tokens_seen and the measurements
    leaderboard: "pd.DataFrame"
    """a row a configuration that came as far as the best, best first, indexed by trial_id, with intervals (90%)"""


def run_tables(search: SearchSpec, trials: Trials) -> RunTables:
    """Returns the tables of a search."""
    import pandas as pd

    table, history = tables(trials, search.options.seed)
    for name, values in (("source", (SAMPLED, SUGGESTED, REPLICATE, AUDIT)), ("status", STATUSES)):
        table[name] = pd.Categorical(table[name], categories=values)
    types = {"trial_id": "string", "tokens_seen": "int64", "step": "int64"}
    table = table.astype(types | dict.fromkeys(("parent_id", "checkpoint", "reason"), "string")).set_index("trial_id")
    ahead = leaderboard(trials)
    return RunTables(search, table, history.astype(types), ahead.join(posterior_summary(ahead, trials.baseline_id)))


def tables(trials: Trials, seed: int = 0) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Returns (trials, history) of a search with `seed`: a row a trial, and a row a report, without repeated reports."""
    import pandas as pd

    rows = [trial_row(trial, seed) for trial in by_id(trials)]
    reports = [report for trial in by_id(trials) for report in trial.own_reports]
    history = pd.DataFrame(map(attrgetter(*HISTORY_COLUMNS), reports), columns=HISTORY_COLUMNS)
    return pd.DataFrame(rows, columns=trial_columns(trials)), history


def leaderboard(trials: Trials, most: int | None = None) -> "pd.DataFrame":
    """Returns the configurations in the order of `ranking`, indexed by trial_id: all, or the `most` best and the baseline.
    Columns: tokens_seen, where losses are compared; val_loss and val_bpb there, means over seeds; spread, the largest
    minus the smallest val_loss; seeds, their number; losses, the val_loss of each seed.
    """
    import pandas as pd

    tokens, ordered = ranking(trials)
    chosen, baseline = ordered[:most], trials.baseline
    if baseline and tokens in baseline.losses and all(trial is not baseline for trial in chosen):
        chosen.append(baseline)
    rows = []
    for trial in chosen:
        seeds = [t for t in (trial, *trial.replicates) if tokens in t.losses or t.status == DIVERGED]
        at_mark = [t.reports[tokens] if tokens in t.losses else None for t in seeds]
        losses, bits = ([getattr(report, n, math.inf) for report in at_mark] for n in ("val_loss", "val_bpb"))
        if not trials.has_seeds:  # a repetition with the same loss to the last digit is no second look
            losses = list(dict.fromkeys(losses))
        spread = max(losses) - min(losses)
        rows.append((trial.trial_id, tokens, np.mean(losses), np.mean(bits), spread, len(losses), losses))
    columns = ["trial_id", "tokens_seen", "val_loss", "val_bpb", "spread", "seeds", "losses"]
    return pd.DataFrame(rows, columns=columns).set_index("trial_id")


def posterior_summary(table: "pd.DataFrame", baseline_id: str) -> "pd.DataFrame":
    """Returns the posterior of the CONSIDERED best of `leaderboard` and the baseline, in the same order; NaN where none
    has two seeds.

    Columns, nats per token but for the probability: low and high, the interval of the expected val_loss; probability_best,
    of having the lowest; regret, the expected difference to the truly best; gain_low and gain_high, the interval of the
    gain.
    """
    import pandas as pd

    finite = table[np.isfinite(table["val_loss"].astype(float))]
    shown = finite[(np.arange(len(finite)) < CONSIDERED) | (finite.index == baseline_id)]
    ids = list(shown.index)
    baseline = ids.index(baseline_id) if baseline_id in ids[1:] else None
    drawn = expected_losses(shown["losses"].tolist(), baseline)
    names = ["low", "high", "probability_best", "regret", "gain_low", "gain_high"]
    found = pd.DataFrame(math.nan, index=shown.index, columns=names)
    if drawn is None:
        return found
    lowest = drawn.min(axis=1)
    found["probability_best"] = probability_of_best(drawn)
    for at, trial_id in enumerate(ids):
        found.loc[trial_id, ["low", "high"]] = interval(drawn[:, at])
        found.loc[trial_id, "regret"] = (drawn[:, at] - lowest).mean()
        if baseline is not None and at != baseline:
            found.loc[trial_id, ["gain_low", "gain_high"]] = interval(drawn[:, baseline] - drawn[:, at])
    return found


def write_results(run_dir: Path, trials: Trials, search: SearchSpec) -> None:
    """Writes trials.csv, history.csv and, once a trial has reported, best_config.json."""
    write_tables(run_dir, trials, search.options.seed)
    write_best(run_dir, trials, search)


def write_best(run_dir: Path, trials: Trials, search: SearchSpec) -> None:
    """Writes best_config.json, once a trial has reported; of a ladder once it has an answer."""
    if isinstance(search, BuiltinSearch) and search.ladder:
        from tune.analysis.ladder import write_target_config  # here: scipy takes long

        return write_target_config(run_dir, trials, search, search.ladder)
    table = leaderboard(trials, CONSIDERED)
    if table.empty:
        return
    best = trials.by_id[table.index[0]]
    result = table.join(posterior_summary(table, trials.baseline_id)).drop(columns="losses").loc[best.trial_id]
    known = {name: value for name, value in result.items() if math.isfinite(value)}
    config = search.best_config(best.config) | {"result": {"trial_id": best.trial_id} | known}
    write_text(run_dir / "best_config.json", json.dumps(config, indent=2, default=lambda v: v.item()) + "\n")
