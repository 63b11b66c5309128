"""Which configuration a search trains next: a pure function of its settings, the trial's index and the trials so far.

A searcher remembers nothing. It reads all that it learns from anew at each draw.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

from myllm.system.errors import InputError
from tune.core.coordinator import Configure
from tune.core.search_space import Config, Ranges, even_draw
from tune.core.searchers.gaussian_process import Proposals
from tune.core.searchers.tpe import STARTUP_TRIALS, known_configurations, suggest
from tune.core.trials import RUNNING, Trials


def searcher(
    name: str, ranges: Ranges, baseline: Config, seed: int, stops: Sequence[int], warm_start: Sequence[dict[str, Any]] = ()
) -> Configure:
    """The configure(index, trials, proposed) of the searcher called `name`: random, gp or optuna. Trial 0 has the
    `baseline`, the next trials the configurations of `warm_start` marked "tried"; `stops` are the rungs and the full
    budget, in tokens. Raises InputError where the searcher's package is missing.
    """
    proposals = Proposals(ranges, seed, stops[:-1])
    repeated = [trial["config"] for trial in warm_start if trial["tried"]]
    if name == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError("--searcher optuna needs the package optuna: pip install -r requirements.txt")

    def configure(index: int, trials: Trials, proposed: bool) -> Config:
        if index == 0:
            return dict(baseline)
        if index <= len(repeated):
            return dict(repeated[index - 1])
        if name == "optuna":
            known = known_configurations(trials, warm_start, stops)
            if sum(standing[0] != RUNNING for _, standing in known) >= STARTUP_TRIALS:
                return suggest(ranges, seed, index, known)
        if proposed and name == "gp":
            return proposals.propose(index, trials)
        return even_draw(ranges, seed, index)

    return configure
