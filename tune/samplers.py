"""Which configuration a search tries next: a pure function of the settings, the index, and the search so far.

Nothing is stored besides the journal: what TPE learns from is put together again at each draw.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myllm.config import get_preset
from myllm.errors import InputError
from tune.results import read_tables, standings
from tune.spaces import Choice, LogUniform, get_space, sample
from tune.state import COMPLETED, DIVERGED, FAILED, INTERRUPTED, STOPPED, SearchState

STARTUP = 10  # judged trials before TPE draws (optuna's default); until then random does: the two searchers begin alike
PARENTS = 8  # the best at the last rung, of whom offspring are
JITTER = 0.065  # standard deviation between an inherited value and its parent's, as a share of the range
WARM_SHARE = 4  # one trial in this many repeats an earlier run's, at most
COMPARED = {
    "space": ("config", "space"),
    "preset": ("config", "preset"),
    "tokenizer": ("data", "tokenizer"),
    "budget_tokens": ("train", "budget_tokens"),
    "training data": ("data", "fingerprint", "train"),
    "validation data": ("data", "fingerprint", "val"),
    "set of ranges": ("ranges",),
}
"""what an earlier run must share with a search that starts from it: its name, and where search.json has it"""

Config = dict[str, Any]
Ranges = Mapping[str, LogUniform | Choice]
Draw = Callable[[int, SearchState], Config]
Standing = tuple[str, int, float]
"""(status, tokens, val_loss in nats per token): how a trial ended, or at which rung it was judged last"""


def sampler(search: dict[str, Any]) -> Draw:
    """The draw(index, state) that search.json asks for: the reference, then what --warm_start found, then the searcher's.

    Raises InputError where the searcher's package is missing.
    """
    config, warm = search["config"], search.get("warm_start", [])
    space, preset, seed = get_space(config["space"]), get_preset(config["preset"]), config["seed"]
    tries = [trial["config"] for trial in warm if trial["tried"]]
    learns = config.get("searcher") == "optuna"
    if learns and importlib.util.find_spec("optuna") is None:
        raise InputError("--searcher optuna needs the package optuna: pip install -r requirements.txt")

    def draw(index: int, state: SearchState) -> Config:
        if 1 <= index <= len(tries):
            return dict(tries[index - 1])
        if learns and index > 0:
            known = _known(state, warm)
            if sum(standing[0] != INTERRUPTED for _, standing in known) >= STARTUP:
                return _suggest(space.ranges(preset), seed, index, known)
        return sample(space, preset, seed, index)

    return draw


# Offspring


def breeder(search: dict[str, Any]) -> Draw:
    """breed(index, state): each value that of one of the best at the last rung, the better the likelier, moved a little.

    Uniform crossover and mutation, with the population on a rung of successive halving (as in DEHB, Awad et al., arXiv
    2105.09821, which mutates by differences). What the values of good configurations have in common early, such as the
    batch size, is inherited at once; what is rare among random draws, a high rate with a long warm-up, is put together.
    """
    config = search["config"]
    ranges = get_space(config["space"]).ranges(get_preset(config["preset"]))

    def breed(index: int, state: SearchState) -> Config:
        rng = np.random.default_rng([config["seed"], index])
        parents = [state.configs[trial_id] for trial_id in state.scheduler.prospects()[:PARENTS]]
        weights = np.arange(len(parents), 0.0, -1.0)
        chosen = rng.choice(len(parents), size=len(ranges), p=weights / weights.sum())
        ways = rng.normal(0.0, JITTER, size=len(ranges))
        return {
            name: values.near(parents[parent][name], float(way))
            for (name, values), parent, way in zip(ranges.items(), chosen, ways, strict=True)
        }

    return breed


# TPE


def _suggest(ranges: Ranges, seed: int, index: int, known: list[tuple[Config, Standing]]) -> Config:
    """TPE's configuration for trial `index`, given all that is `known`.

    Optuna 5.0 ranks (samplers/_tpe/sampler.py, _split_trials) COMPLETE trials before all PRUNED ones; these by their last
    step, the largest first, then by the value there; those without a value last. So a diverged trial is PRUNED without one:
    as COMPLETE, however large its loss, it would come before every trial that waits at a rung, and with a value at a late
    step before those judged earlier. RUNNING trials count as bad (the constant liar).
    """
    import optuna  # here: it takes a second, and only this searcher needs it

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    tpe = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=0, seed=seed)
    study = optuna.create_study(sampler=tpe, storage=optuna.storages.InMemoryStorage(), direction="minimize")
    distributions = {name: _distribution(values) for name, values in ranges.items()}
    for config, (status, tokens, loss) in known:
        state, result = {
            COMPLETED: ("COMPLETE", {"value": loss}),
            STOPPED: ("PRUNED", {"intermediate_values": {tokens: loss}}),
            DIVERGED: ("PRUNED", {}),
            INTERRUPTED: ("RUNNING", {}),
        }[status]
        result |= {"state": optuna.trial.TrialState[state], "distributions": distributions}
        params = {name: _to_optuna(values, config[name]) for name, values in ranges.items()}
        study.add_trial(optuna.trial.create_trial(params=params, **result))
    drawn = study.ask(distributions).params
    return {name: ranges[name].values[drawn[name]] if _ordered(ranges[name]) else drawn[name] for name in ranges}


def _ordered(values: LogUniform | Choice) -> bool:
    """Whether these are numbers to choose from. TPE gets their places in order, so that neighbours, batches of 16 and 32,
    share what was learnt; to a categorical distribution each is a stranger to the others."""
    return isinstance(values, Choice) and all(isinstance(value, (int, float)) for value in values.values)


def _distribution(values: LogUniform | Choice) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, LogUniform):
        return FloatDistribution(values.low, values.high, log=True)
    return IntDistribution(0, len(values.values) - 1) if _ordered(values) else CategoricalDistribution(values.values)


def _to_optuna(values: LogUniform | Choice, value: Any) -> Any:
    """Into the range, as optuna refuses others: preset micro's reference half-life of beta2 lies below v3's."""
    if isinstance(values, LogUniform):
        return min(max(value, values.low), values.high)
    if _ordered(values):
        return min(range(len(values.values)), key=lambda place: abs(values.values[place] - value))
    return value


def _known(state: SearchState, warm: Sequence[dict[str, Any]]) -> list[tuple[Config, Standing]]:
    """Every distinct configuration with its standing; one of an earlier run counts anew once it has ended here too."""
    known = {_key(t["config"]): (t["config"], (t["status"], t["tokens_seen"], t["val_loss"])) for t in warm}
    for trial_id, config in state.configs.items():
        if trial_id in state.confirms or state.status[trial_id] == FAILED:
            continue  # a failure is the code's or the machine's, and says nothing of the configuration
        standing = _standing(state, trial_id)
        if standing[0] in (COMPLETED, DIVERGED) or _key(config) not in known:
            known[_key(config)] = config, standing
    return list(known.values())


def _standing(state: SearchState, trial_id: str) -> Standing:
    """Where a trial drawn by this search stands; one that was confirmed by the mean loss over seeds.

    One that runs on past a rung stands at that rung, with those that wait there: it is among the best of them, and would
    count as bad if it were RUNNING.
    """
    status, losses = state.status[trial_id], {r["tokens_seen"]: r["val_loss"] for r in state.reports[trial_id].values()}
    if status == COMPLETED:
        seeds = [t for t, of in state.confirms.items() if of == trial_id and state.status[t] == COMPLETED]
        return COMPLETED, state.tokens_seen(trial_id), float(np.mean([state.last_loss(t) for t in (trial_id, *seeds)]))
    judged = [rung.mark for rung in state.scheduler.rungs if rung.mark in losses]
    if status == DIVERGED or not judged:
        return DIVERGED if status == DIVERGED else INTERRUPTED, 0, math.nan
    return STOPPED, judged[-1], losses[judged[-1]]


# Warm start


def warm_start_trials(search: dict[str, Any]) -> list[dict[str, Any]]:
    """What the earlier runs of --warm_start know, read once: search.json keeps it, whatever happens to those runs.

    Distinct configurations other than the reference, each with "config", "status" (completed, stopped or diverged),
    "val_loss" (nats per token; of completed ones the mean over seeds; None for diverged ones), "tokens_seen", and "tried":
    whether the search tries it itself, in this order. Those are the best of each run's standings, taken in turn.

    Raises InputError that names what is wrong with the first run that cannot seed this search.
    """
    config = search["config"]
    space, preset = get_space(config["space"]), get_preset(config["preset"])
    names, reference = tuple(space.ranges(preset)), _key(sample(space, preset, config["seed"], 0))
    runs = [_read_run(Path(folder), search, names) for folder in config.get("warm_start", ())]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(leaders for leaders, _ in runs)))
    found: dict[tuple, dict[str, Any]] = {}
    for trial in (*filter(None, in_turn), *(trial for _, others in runs for trial in others)):
        if _key(trial["config"]) not in (reference, *found):
            tried = trial["status"] == COMPLETED and len(found) < max(1, search["num_samples"] // WARM_SHARE)
            found[_key(trial["config"])] = trial | {"tried": tried}
    return list(found.values())


def _read_run(folder: Path, search: dict[str, Any], names: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """(completed trials, best first; stopped and diverged ones) of a run that `search` can start from."""
    from tune.settings import read_search  # here: settings are above this module, and load Ray

    try:
        earlier = read_search(folder)
    except InputError as error:
        raise InputError(f"--warm_start: {error}; give folders of earlier runs") from None
    for what, path in COMPARED.items():
        theirs, ours = _at(earlier, path), _at(search, path)
        if theirs != ours:
            how = "is not that of" if isinstance(ours, dict) else f"is {theirs}, not {ours} as in"
            raise InputError(f"--warm_start {folder}: its {what} {how} this search; choose the same, or leave that run out")
    try:
        trials, _ = read_tables(folder)
        found, table = {}, standings(trials)
        for row in trials[trials["confirms"] == ""].to_dict("records"):
            result = {name: row[name] for name in ("status", "val_loss", "tokens_seen")}
            found[row["trial_id"]] = {"config": {name: row[name] for name in names}} | result
        leaders = [found[trial_id] | {"val_loss": float(table["val_loss"][trial_id])} for trial_id in table.index]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"--warm_start {folder}: its trials.csv or history.csv is missing or damaged; --resume writes them anew"
        ) from None
    if not leaders:
        raise InputError(f"--warm_start {folder}: no trial of it has completed; let one end first, or leave that run out")
    stopped = [trial for trial in found.values() if trial["status"] == STOPPED]
    return leaders, stopped + [trial | {"val_loss": None} for trial in found.values() if trial["status"] == DIVERGED]


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name, {})
    return values


def _key(config: Config) -> tuple:
    """The configuration as something to compare and look up."""
    return tuple(sorted(config.items()))
