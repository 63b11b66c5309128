"""TPE, the tree-structured Parzen estimator of Optuna, and what it is told of each configuration."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tune.core.search_space import Choice, Config, Range, Ranges
from tune.core.trials import COMPLETED, DIVERGED, FAILED, PAUSED, RUNNING, Trial, Trials

STARTUP_TRIALS = 10  # judged trials before TPE draws (optuna's default); until then all searchers draw alike

Standing = tuple[str, int, float]
"""(status, tokens, val_loss in nats per token) of a trial at its end, or at the last rung that it reached"""


def suggest(ranges: Ranges, seed: int, index: int, known: list[tuple[Config, Standing]]) -> Config:
    """TPE's configuration for trial `index`, given the `known` configurations and their standings.

    Optuna 5.0 ranks COMPLETE trials before PRUNED ones, these by their last step, then by the value there, and last those
    without a value. A diverged trial is PRUNED without a value. RUNNING trials count as bad (the constant liar).
    """
    import optuna  # the import takes a second, and only this searcher needs optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    tpe = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=0, seed=seed)
    study = optuna.create_study(sampler=tpe, storage=optuna.storages.InMemoryStorage(), direction="minimize")
    distributions = {name: _distribution(values) for name, values in ranges.items()}
    for config, (status, tokens, loss) in known:
        told: dict[str, tuple[str, dict[str, Any]]] = {
            COMPLETED: ("COMPLETE", {"value": loss}),
            PAUSED: ("PRUNED", {"intermediate_values": {tokens: loss}}),
            DIVERGED: ("PRUNED", {}),
            RUNNING: ("RUNNING", {}),
        }
        state, result = told[status]
        params = {}
        for name, r in ranges.items():  # to_unit clips: preset micro's half-life of beta2 lies below v3's range
            params[name] = r.to_unit(config[name]) if isinstance(r, Range) else r.index(config[name])
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state], params=params, distributions=distributions, **result
            )
        )
    drawn = study.ask(distributions).params
    return {name: r.from_unit(drawn[name]) if isinstance(r, Range) else r.values[drawn[name]] for name, r in ranges.items()}


def _distribution(values: Range | Choice) -> Any:
    """Optuna's distribution of a position in a range, or of an index in a list, where neighbouring numbers share losses."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Range):
        return FloatDistribution(0, 1)
    indices = range(len(values.values))
    return IntDistribution(0, indices[-1]) if values.ordered else CategoricalDistribution(indices)


def known_configurations(
    trials: Trials, warm: Sequence[dict[str, Any]], rung_tokens: Sequence[int]
) -> list[tuple[Config, Standing]]:
    """Every distinct configuration with its standing. What this search found of one replaces what an earlier run did."""
    same = (t for t in warm if t.get("same", True))
    known = {config_key(t["config"]): (t["config"], (t["status"], t["tokens_seen"], t["val_loss"])) for t in same}
    for trial in trials.drawn:
        if trial.status == FAILED:
            continue  # a failure is the code's or the machine's, and says nothing of the configuration
        standing = standing_of(trial, rung_tokens)
        if standing[0] in (COMPLETED, DIVERGED) or config_key(trial.config) not in known:
            known[config_key(trial.config)] = trial.config, standing
    return list(known.values())


def standing_of(trial: Trial, rung_tokens: Sequence[int]) -> Standing:
    """The standing of a trial, by the mean loss over its seeds.

    A trial that runs on past a rung counts as paused at that rung: it is among the best there, and RUNNING counts as bad.
    """
    judged = [tokens for tokens in rung_tokens if tokens in trial.losses]
    if trial.status == DIVERGED or not judged:
        return DIVERGED if trial.status == DIVERGED else RUNNING, 0, math.nan
    return COMPLETED if trial.status == COMPLETED else PAUSED, judged[-1], trial.mean_at(judged[-1])


def config_key(config: Config) -> tuple[tuple[str, Any], ...]:
    """The configuration as a key of a dictionary."""
    return tuple(sorted(config.items()))
