"""Builders and worlds that tests of several modules share."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
from conftest import BUDGET, MARK, ROOT, begun, new_search, report

from myllm.presets import PRESETS
from tune.config.options import SearchOptions
from tune.config.overrides import parse_overrides, searched_space
from tune.config.spec import BuiltinSearch, Data
from tune.core.search_space import SPACES
from tune.core.simulator import play
from tune.core.trials import STOP
from tune.reporting.summary import summary_schema
from tune.store.journal import FILE_NAME

RUNGS = "0.0625:2,0.25:4"
MILESTONES = (200, 800, BUDGET)
NANO = PRESETS["nano"]
RECORDED = ROOT / "tests" / "recorded" / "nano-v2"
SCHEMA = summary_schema()
HEAD = "import torch\nimport torch.nn.functional as F\n"
BIGRAM = (
    HEAD
    + """
class Bigram(torch.nn.Module):
    settings = {"width": 8, "source": "plain"}

    def __init__(self, settings, vocab_size):
        super().__init__()
        width = settings["width"]
        assert width < 100, "too wide"
        self.table, self.head = torch.nn.Embedding(vocab_size, width), torch.nn.Linear(width, vocab_size)

    def forward(self, ids, targets):
        return F.cross_entropy(self.head(self.table(ids)).flatten(0, 1), targets.flatten())
"""
)


def search_of(preset="nano", space="v2", **changes):
    """The settings of a search, without data."""
    config = SearchOptions(preset=preset, space=space, **changes)
    training = PRESETS[preset].training(version=SPACES[space].version)
    data = Data("builtin", "builtin", "byte", "0", {}, {}, 1.0)
    model = PRESETS[preset].model(257)
    searched = searched_space(config, model, {}, PRESETS[preset])
    return BuiltinSearch(
        options=config,
        model=model,
        training=training,
        data=data,
        report_tokens=training.budget_tokens // 32,
        **vars(searched),
    )


def asha_search(searcher="optuna", space="v1", preset="nano", seed=1, num_samples=40, warm_start=(), **changes):
    """The settings of a search of so many trials with asha; its losses are made up."""
    options = dict(space=space, preset=preset, seed=seed, num_samples=num_samples, warm_start=tuple(map(str, warm_start)))
    config = SearchOptions(searcher=searcher, scheduler="asha", rungs=RUNGS, **options)
    data = Data("builtin", "builtin", "byte", "0", {"train": {"tokens": 7}, "val": {"tokens": 5}}, {}, 1.0)
    training = dataclasses.replace(PRESETS[preset].training(), batch_size=1, max_len=MARK, budget_tokens=BUDGET)
    model = PRESETS[preset].model(257)
    search = BuiltinSearch(
        options=config,
        model=model,
        training=training,
        data=data,
        report_tokens=MARK,
        **vars(searched_space(config, model, {}, PRESETS[preset])),
    )
    return dataclasses.replace(search, **changes)


def overridden(search, **texts):
    """The search with overrides of the user's: range, choices, set."""
    searched = searched_space(
        search.options, search.model, parse_overrides(texts, search.model), PRESETS[search.options.preset]
    )
    return dataclasses.replace(search, **vars(searched))


def log_rate(config, preset="nano"):
    """log10 of the learning rate over the preset's, from -1 to 1."""
    return math.log10(config["learning_rate"] / PRESETS[preset].learning_rate)


def loss_of(config, tokens, preset="nano"):
    """A made-up surface: best at 1.6 times the reference rate, more for larger batches; a fifth of the range diverges."""
    rate, batch = log_rate(config, preset), math.log2(config["batch_size"] / PRESETS[preset].batch_size)
    if rate > 0.6:
        return math.nan
    return 3 + 2 * (rate - 0.2 - 0.1 * batch) ** 2 + 0.05 * (batch + 1) ** 2 + 1 - (tokens / BUDGET) ** 0.3


def searched(search, workers=1, end=math.inf, events=(), record=None, num_samples=None):
    """The search on that surface, with asha."""
    config = search.options
    asked = dict(num_samples=num_samples or config.num_samples, workers=workers, events=events, record=record)
    coordinator = new_search("asha", config.resolved_rungs, configure=search.searcher(), **asked)
    play(coordinator, lambda trial, tokens: loss_of(trial.config, tokens, config.preset), end)
    return coordinator.trials


def draws_of(search, trials, indices, proposed=False):
    return [search.searcher()(index, trials, proposed) for index in indices]


def config_at(rate, batch=16):
    return {"learning_rate": NANO.learning_rate * rate, "batch_size": batch}


def write_run(folder, rates_and_losses, search=None, others=()):
    """A run folder: the reference, then completed trials, then `others` (events)."""
    folder.mkdir()
    events = []
    for index, (rate, loss) in enumerate(rates_and_losses):
        events += [begun(f"{index:05d}", config=config_at(rate)), report(f"{index:05d}", BUDGET, loss, STOP)]
    write_events(folder, *events, *others)
    (search or asha_search("random", seed=99, num_samples=8)).write(folder)
    return str(folder)


def write_events(folder, *events):
    """Writes a journal."""
    (folder / FILE_NAME).write_text("".join(json.dumps(event.to_json()) + "\n" for event in events))


def copied(folder: Path, name: str = "nano-v2") -> Path:
    """The recorded run, where it may be written to."""
    return shutil.copytree(RECORDED, folder / name, ignore=shutil.ignore_patterns("golden.*"))


def write_ids(path, ids, dtype="<u2"):
    np.asarray(ids, dtype=dtype).tofile(path)
    return path


def write_llmc(path, ids, magic=20240520, version=1, dtype="<u2", count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())
    return path
