"""Small things that several tests need. Nothing here needs a network or a GPU."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from myllm.config import GPTConfig, TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.presets import PRESETS
from myllm.training.train import Run
from tune.core.coordinator import Coordinator
from tune.core.events import REPORTED, Reported, SessionStarted, TrialStarted
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.baseline import WithBaseline
from tune.core.trials import CONTINUE, SAMPLED, Trials

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SHIPPED_NANO = PRESETS["nano"]
PRESETS["nano"] = dataclasses.replace(SHIPPED_NANO, learning_rate=3e-3, batch_size=16)
"""nano's baseline in tests that start no command: a better baseline of the shipped preset changes no expectation"""
os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start: on a busy machine two threads wait for each other
if "TIKTOKEN_CACHE_DIR" not in os.environ and (SHARED / "tiktoken_cache").is_dir():
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken_cache")


def pytest_collection_modifyitems(items):
    import torch

    torch.set_num_threads(1)  # as in the commands: two threads add up in another order
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture
def gpt2_tokenizer():
    """The real GPT-2 tokenizer, where it can be had without waiting for a network."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("needs the GPT-2 files in TIKTOKEN_CACHE_DIR")
    import tiktoken

    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    folder = SHARED / "data" / "tinyshakespeare"
    if not folder.is_dir():
        pytest.skip("needs the tinyshakespeare files")
    return folder


@pytest.fixture(scope="session")
def byte_files(tmp_path_factory) -> tuple[Path, Path]:
    """(train.bin, val.bin): learnable ids below 257 with the byte tokenizer's name beside them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, 4).tolist()) for _ in range(30)]
    for name, count in (("train.bin", 6000), ("val.bin", 1500)):
        text = b" ".join(words[i] for i in rng.integers(0, 30, count))
        np.frombuffer(text, np.uint8).astype("<u2").tofile(folder / name)
        (folder / name).with_suffix(".json").write_text('{"dtype": "<u2", "tokenizer": "byte"}')
    return folder / "train.bin", folder / "val.bin"


@pytest.fixture(scope="session")
def undisturbed(byte_files, tmp_path_factory):
    """undisturbed(slots, **options): the search with these options that nothing befell. Each is run once."""
    from harness import FaultSearch  # beside the fault tests

    searches = {}

    def find(slots=1, **options):
        key = slots, *sorted(options.items())
        if key not in searches:
            searches[key] = FaultSearch(tmp_path_factory.mktemp("undisturbed") / "run", byte_files, slots, **options)
            searches[key].finish()
        return searches[key]

    return find


OLDER = ROOT / "tests" / "recorded" / "release-0"
"""a search of before 0.1.0, written on another machine, and its data"""


@pytest.fixture
def older_run(tmp_path):
    """(the run's folder, flags that name its data where it is now)."""
    run_dir = shutil.copytree(OLDER / "run", tmp_path / "release-0")
    data = [shutil.copy(OLDER / name, tmp_path) for name in ("train.txt", "val.txt")]
    return run_dir, ["--train_file", data[0], "--val_file", data[1]]


TINY = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257)


@pytest.fixture
def make_run(byte_files):
    """Builds a tiny Run; keyword arguments change its TrainConfig."""

    def make(model: GPTConfig = TINY, **changes) -> Run:
        values = dict(learning_rate=1e-2, batch_size=8, max_len=16, stride=16, eval_freq=10, eval_windows=8)
        if "epochs" not in changes:
            values["budget_tokens"] = 8 * 16 * 40
        config = TrainConfig(**(values | changes))
        windows = [Windows(TokenFile(path), config.max_len, config.stride) for path in byte_files]
        return Run(model, config, *windows)

    return make


@pytest.fixture
def command(monkeypatch):
    """command(*arguments): trainer.py's main with them, in this process."""

    from myllm.training import trainer

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["trainer.py", *map(str, arguments), "--device", "cpu"])
        return trainer.main()

    return run


def run_command_line(*arguments: str | Path, timeout: float = 300, **kwargs) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS` from the project's folder; returns the finished process with its output as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **kwargs)


def summary(run_dir: Path) -> str:
    """What is said of a search."""
    from tune.analysis.results import load
    from tune.reporting.summarize import summarize
    from tune.reporting.summary_text import summary_text

    return summary_text(summarize(run_dir, *load(run_dir)))


# Searches without Ray: 32 reports of 100 tokens a training

BUDGET, MARK = 3200, 100


def index_of(trial):
    """The number of the trial's configuration, from 0."""
    return int(trial.parent_id.removeprefix("t"))


def begun(trial_id, source=SAMPLED, segment_end_tokens=BUDGET, config=None, **more):
    """A trial's first event."""
    return TrialStarted(
        trial_id=trial_id, source=source, segment_end_tokens=segment_end_tokens, config=config or {}, **more
    )


def report(trial_id, tokens, loss, decision=CONTINUE, **changes):
    """A report event."""
    values = {"trial_id": trial_id, "decision": decision, "tokens_seen": tokens, "val_loss": loss, "diverged": False}
    return Reported(**dict.fromkeys(REPORTED, 1.0) | values | changes)


def new_search(
    name="explore-finish", rungs=None, num_samples=9, workers=1, confirm=None, events=(), configure=None, record=None
):
    """A Coordinator whose events go to `record`, a list; with `confirm` the rule has the reference beside it."""
    scheduler = SCHEDULERS[name](SCHEDULERS[name].default_rungs if rungs is None else rungs, BUDGET, MARK)
    scheduler = scheduler if confirm is None else WithBaseline(scheduler, confirm)
    trials = Trials(BUDGET, num_samples, events=[SessionStarted(session=0, workers=workers), *events])
    record = [] if record is None else record

    def append(event):
        record.append(event)
        return event

    return Coordinator(trials, scheduler, configure or (lambda index, trials, proposed: {}), append, seed=7)
