"""What --warm_start takes from the folders of earlier runs."""

import itertools
import math
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError
from tune.config.overrides import HOW
from tune.config.spec import SearchSpec, read_search
from tune.core.ranking import ranking
from tune.core.search_space import Config
from tune.core.searchers.tpe import config_key, standing_of
from tune.core.trials import COMPLETED, DIVERGED, PAUSED
from tune.store.journal import read_journal

IRRELEVANT = {"seed", "ema_ratio", "eval_freq", "eval_windows", "train_eval_windows"}.union(HOW)
"""settings that may differ between two trainings whose losses are comparable"""
NAMED = ("preset", "model", "program", "unit", "budget")
"""what two searches must have in common, and what a person can name; the rest are fingerprints"""
WARM_SHARE = 4  # at most one trial in this many repeats a configuration of an earlier run


def warm_start_trials(search: SearchSpec) -> tuple[dict[str, Any], ...]:
    """The distinct configurations of the earlier runs, except the baseline. search.json keeps them: the runs may vanish.

    Each has "config", "status", "val_loss" (nats per token, mean over seeds; None if diverged), "tokens_seen", "same" (it
    would train here as it did there) and "tried" (the search trains it, in this order). The best of each run are taken in
    turn. Raises InputError for the first run that cannot seed this search.
    """
    baseline = config_key(search.sample(0))
    runs = [_read_run(Path(folder), search) for folder in search.options.warm_start]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(best for best, _ in runs)))
    found: dict[Any, dict[str, Any]] = {}
    for trial in (*filter(None, in_turn), *(trial for _, others in runs for trial in others)):
        if config_key(trial["config"]) not in (baseline, *found):
            tried = trial["status"] == COMPLETED and len(found) < max(1, search.options.trials // WARM_SHARE)
            found[config_key(trial["config"])] = trial | {"tried": tried}
    return tuple(found.values())


def _read_run(folder: Path, search: SearchSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(completed trials, best first; paused and diverged trials) of an earlier run. Raises InputError for an unfit one."""
    try:
        earlier = read_search(folder)
    except InputError as error:
        raise InputError(f"--warm_start: {error}; give folders of earlier runs") from None
    theirs_by, ours_by = earlier.compared_by(), search.compared_by()
    for what in dict.fromkeys((*ours_by, *theirs_by)):
        theirs, ours = theirs_by.get(what), ours_by.get(what)
        if theirs != ours:
            how = f"is {theirs}, not {ours} as in" if what in NAMED else "is not that of"
            raise InputError(f"--warm_start {folder}: its {what} {how} this search; choose the same, or leave that run out")
    if not search.ranges.keys() & earlier.ranges.keys():
        raise InputError(
            f"--warm_start {folder}: it searched {', '.join(earlier.ranges)}, and this search none of these; leave it out"
        )
    trials = earlier.trials(read_journal(folder))
    rows = {}
    for trial in trials.drawn:
        status, tokens, loss = standing_of(trial, earlier.scheduler().stops)
        known = {"status": status, "tokens_seen": tokens, "val_loss": None if math.isnan(loss) else loss}
        rows[trial.trial_id] = _carried(trial.config, earlier, search) | known
    completed = [trial.trial_id for trial in ranking(trials)[1] if rows[trial.trial_id]["status"] == COMPLETED]
    if not completed:
        raise InputError(f"--warm_start {folder}: no trial of it has completed; let one end first, or leave that run out")
    others = [row for row in rows.values() if row["status"] in (PAUSED, DIVERGED)]
    return [rows[trial_id] for trial_id in completed], others


def _carried(config: Config, earlier: SearchSpec, search: SearchSpec) -> dict[str, Any]:
    """An earlier run's configuration in this search's names and ranges, and whether it is still the same training.

    A hyper-parameter that the earlier run did not search has the value of its training. A value beyond a range is clipped.
    """
    before = earlier.all_settings(config)
    here = search.sample(0)
    here |= {name: values.clip(before[name]) for name, values in search.ranges.items() if before.get(name) is not None}
    now = search.all_settings(here)
    return {"config": here, "same": all(before.get(name) == now[name] for name in now if name not in IRRELEVANT)}
