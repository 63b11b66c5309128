"""Writes the answer of a ladder as best_config.json, which trains the target as it is."""

import json
from dataclasses import asdict
from pathlib import Path

from myllm.system.files import write_text
from myllm.training.run_artifacts import DATA_KEYS
from tune.config.spec import BuiltinSearch
from tune.core.trials import Trials
from tune.ladder.plan import Plan
from tune.ladder.runs import outcome, rounded


def write_target_config(run_dir: Path, trials: Trials, search: BuiltinSearch, plan: Plan) -> None:
    """Writes best_config.json, once enough runs have ended: the target's settings, with the answer's rate and batch."""
    found = outcome(plan, trials)
    if found is None:
        return
    answer = found.answer
    training = {"batch_size": found.batch_size, "budget_tokens": found.budget_tokens}
    config = {
        "preset": search.options.preset,
        "model": vars(search.model),
        "train": vars(search.train_config({"learning_rate": rounded(answer.learning_rate.value)} | training)),
        "data": {name: getattr(search.data, name) for name in DATA_KEYS},
        "result": {name: asdict(getattr(answer, name)) for name in ("learning_rate", "batch_tokens", "loss")}
        | {"expected_regret": answer.expected_regret},
    }
    write_text(run_dir / "best_config.json", json.dumps(config, indent=2) + "\n")
