"""Which configuration a search tries next: a pure function of the settings, the index, and the search so far.

Nothing is stored besides the journal: what a searcher learns from is put together again at each draw.
"""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myllm.models.custom_model import CustomModelConfig, settings_of
from myllm.system.errors import InputError
from tune.analysis.results import leaderboard
from tune.config.spec import SearchSpec
from tune.core.coordinator import Configure
from tune.core.gaussian_process import most_promising, projected, unjudged
from tune.core.search_space import Choice, Range, Ranges
from tune.core.trials import COMPLETED, DIVERGED, FAILED, PAUSED, RUNNING, Trial, Trials
from tune.store.journal import read_journal

STARTUP = 10  # judged trials before TPE draws (optuna's default); until then all searchers begin alike
CANDIDATES = 1000  # random configurations among which a proposal is chosen
UNLEARNT = (
    *("seed", "dtype", "float32_matmul", "compile", "ema_ratio", "micro_batch_size"),
    *("eval_freq", "eval_windows", "train_eval_windows"),
)
"""settings that may differ between trainings whose losses tell the same"""
WARM_SHARE = 4  # one trial in this many repeats an earlier run's, at most

Config = dict[str, Any]
Standing = tuple[str, int, float]
"""(status, tokens, val_loss in nats per token): how a trial ended, or at which rung it was judged last"""


def searcher(search: SearchSpec) -> Configure:
    """The configure(index, trials, proposed) of a search: the reference, what --warm_start found, then the searcher's.

    Raises InputError where the searcher's package is missing.
    """
    config, warm = search.options, search.warm_start
    ranges, seed = search.ranges, config.seed
    rung_tokens = search.scheduler().stops
    proposals = Proposals(ranges, seed, rung_tokens[:-1])
    tries = [trial["config"] for trial in warm if trial["tried"]]
    learns = config.searcher == "optuna"
    if learns and importlib.util.find_spec("optuna") is None:
        raise InputError("--searcher optuna needs the package optuna: pip install -r requirements.txt")

    def configure(index: int, trials: Trials, proposed: bool) -> Config:
        if 1 <= index <= len(tries):
            return dict(tries[index - 1])
        if learns and index > 0:
            known = _known(trials, warm, rung_tokens)
            if sum(standing[0] != RUNNING for _, standing in known) >= STARTUP:
                return _suggest(ranges, seed, index, known)
        if proposed and config.searcher == "gp":
            return proposals.propose(index, trials)
        return search.sample(index)

    return configure


# Proposals


class Proposals:
    """Proposes the most promising of many random configurations, by what is to be expected of the trials at the last of
    `rung_tokens`."""

    def __init__(self, ranges: Ranges, seed: int, rung_tokens: Sequence[int]):
        self.ranges, self.seed, self.rung_tokens = ranges, seed, rung_tokens
        self._places: dict[str, list[float]] = {}  # of trials, by id: a configuration never changes

    def places(self, trials: Sequence[Trial]) -> np.ndarray:
        """(n, d) where their configurations lie, one or more coordinates for each hyper-parameter."""
        for trial in trials:
            if trial.trial_id not in self._places:
                self._places[trial.trial_id] = [
                    x for name, values in self.ranges.items() for x in values.coordinates(trial.config[name])
                ]
        return np.array([self._places[trial.trial_id] for trial in trials])

    def propose(self, index: int, trials: Trials) -> Config:
        """The configuration of trial `index`."""
        drawn = np.random.default_rng([self.seed, index]).random((CANDIDATES, len(self.ranges)))
        known, chosen = projected(trials, self.rung_tokens), 0
        if known:
            told, losses, seeds = zip(*known, strict=True)
            candidates = np.hstack([r.coordinates_at(drawn[:, i]) for i, r in enumerate(self.ranges.values())])
            pending = self.places(unjudged(trials, self.rung_tokens))
            chosen = most_promising(self.places(told), np.array(losses), np.array(seeds), pending, candidates)
        return {name: r.at(float(place)) for (name, r), place in zip(self.ranges.items(), drawn[chosen], strict=True)}


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
            PAUSED: ("PRUNED", {"intermediate_values": {tokens: loss}}),
            DIVERGED: ("PRUNED", {}),
            RUNNING: ("RUNNING", {}),
        }[status]
        result |= {"state": optuna.trial.TrialState[state], "distributions": distributions}
        params = {}
        for name, r in ranges.items():  # a place is within the range: preset micro's half-life of beta2 lies below v3's
            params[name] = r.place(config[name]) if isinstance(r, Range) else r.index(config[name])
        study.add_trial(optuna.trial.create_trial(params=params, **result))
    drawn = study.ask(distributions).params
    return {name: r.at(drawn[name]) if isinstance(r, Range) else r.values[drawn[name]] for name, r in ranges.items()}


def _distribution(values: Range | Choice) -> Any:
    """Of places in a range, of indices in a list, where neighbours among numbers share what was learnt."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Range):
        return FloatDistribution(0, 1)
    indices = range(len(values.values))
    return IntDistribution(0, indices[-1]) if values.ordered else CategoricalDistribution(indices)


def _known(trials: Trials, warm: Sequence[dict[str, Any]], rung_tokens: Sequence[int]) -> list[tuple[Config, Standing]]:
    """Every distinct configuration with its standing; one of an earlier run counts anew once it has ended here too."""
    same = (t for t in warm if t.get("same", True))
    known = {_key(t["config"]): (t["config"], (t["status"], t["tokens_seen"], t["val_loss"])) for t in same}
    for trial in trials.drawn:
        if trial.status == FAILED:
            continue  # a failure is the code's or the machine's, and says nothing of the configuration
        standing = _standing(trial, rung_tokens)
        if standing[0] in (COMPLETED, DIVERGED) or _key(trial.config) not in known:
            known[_key(trial.config)] = trial.config, standing
    return list(known.values())


def _standing(trial: Trial, rung_tokens: Sequence[int]) -> Standing:
    """Where a trial drawn by this search stands, by the mean loss over its seeds.

    One that runs on past a rung stands at that rung, with those that wait there: it is among the best of them, and would
    count as bad if it were RUNNING.
    """
    judged = [tokens for tokens in rung_tokens if tokens in trial.losses]
    if trial.status == DIVERGED or not judged:
        return DIVERGED if trial.status == DIVERGED else RUNNING, 0, math.nan
    return COMPLETED if trial.status == COMPLETED else PAUSED, judged[-1], trial.mean_at(judged[-1])


# Warm start


def warm_start_trials(search: SearchSpec) -> tuple[dict[str, Any], ...]:
    """What the earlier runs of --warm_start know, read once: search.json keeps it, whatever happens to those runs.

    Distinct configurations other than the reference, each with "config", "status" (completed, paused or diverged),
    "val_loss" (nats per token, the mean over seeds; None for diverged ones), "tokens_seen", "same": whether it would train
    here as it did there, and "tried": whether the search tries it itself, in this order. Those are the best of each run's
    standings, taken in turn.

    Raises InputError that names what is wrong with the first run that cannot seed this search.
    """
    reference = _key(search.sample(0))
    runs = [_read_run(Path(folder), search) for folder in search.options.warm_start]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(best for best, _ in runs)))
    found: dict[tuple, dict[str, Any]] = {}
    for trial in (*filter(None, in_turn), *(trial for _, others in runs for trial in others)):
        if _key(trial["config"]) not in (reference, *found):
            tried = trial["status"] == COMPLETED and len(found) < max(1, search.options.trials // WARM_SHARE)
            found[_key(trial["config"])] = trial | {"tried": tried}
    return tuple(found.values())


def _read_run(folder: Path, search: SearchSpec) -> tuple[list[dict], list[dict]]:
    """(completed trials, best first; paused, stopped and diverged ones) of a run that `search` can start from."""
    try:
        earlier = SearchSpec.read(folder)
    except InputError as error:
        raise InputError(f"--warm_start: {error}; give folders of earlier runs") from None
    for what, theirs, ours in (
        ("preset", earlier.options.preset, search.options.preset),
        ("model", _model_name(earlier), _model_name(search)),
        ("tokenizer's content", earlier.data.tokenizer_sha256, search.data.tokenizer_sha256),
        ("training data", earlier.data.fingerprint["train"], search.data.fingerprint["train"]),
        ("validation data", earlier.data.fingerprint["val"], search.data.fingerprint["val"]),
    ):
        if theirs != ours:
            how = f"is {theirs}, not {ours} as in" if what in ("preset", "model") else "is not that of"
            raise InputError(f"--warm_start {folder}: its {what} {how} this search; choose the same, or leave that run out")
    ranges = search.ranges
    if not ranges.keys() & earlier.ranges.keys():
        raise InputError(
            f"--warm_start {folder}: it searched {', '.join(earlier.ranges)}, and this search none of these; leave it out"
        )
    trials = Trials(earlier.budget_tokens, earlier.options.trials, events=read_journal(folder))
    rung_tokens = earlier.scheduler().stops
    rows = {}
    for trial in trials.drawn:
        status, tokens, loss = _standing(trial, rung_tokens)
        known = {"status": status, "tokens_seen": tokens, "val_loss": None if math.isnan(loss) else loss}
        rows[trial.trial_id] = _carried(trial.config, earlier, search, ranges) | known
    completed = [trial_id for trial_id in leaderboard(trials).index if rows[trial_id]["status"] == COMPLETED]
    if not completed:
        raise InputError(f"--warm_start {folder}: no trial of it has completed; let one end first, or leave that run out")
    others = [row for row in rows.values() if row["status"] in (PAUSED, DIVERGED)]
    return [rows[trial_id] for trial_id in completed], others


def _model_name(search: SearchSpec) -> str:
    model = search.model
    return f"{model.class_name} ({model.sha256[:8]})" if isinstance(model, CustomModelConfig) else "GPT-2's"


def _carried(config: Config, earlier: SearchSpec, search: SearchSpec, ranges: Ranges) -> dict[str, Any]:
    """An earlier run's configuration in this search's names and ranges, and whether it is still the same training.

    What was not searched there has the value that it was trained with; what lies outside of a range here goes to its end.
    """
    before = vars(earlier.training) | settings_of(earlier.model) | config
    here = search.sample(0)
    here |= {name: values.nearest(before[name]) for name, values in ranges.items() if before.get(name) is not None}
    now = vars(search.training) | settings_of(search.model) | here
    return {"config": here, "same": all(before.get(name) == now[name] for name in now if name not in UNLEARNT)}


def _key(config: Config) -> tuple:
    """The configuration as something to compare and look up."""
    return tuple(sorted(config.items()))
