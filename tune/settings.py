"""A search's settings: options checked against the data, resolved, and written to search.json before anything starts."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from myllm.config import Preset, get_preset
from myllm.data import TokenFile, Windows, default_tokenizer, prepare
from myllm.errors import InputError
from myllm.sources import absolute
from myllm.token_file import are_there
from myllm.tokenizer import get_tokenizer, identity, resolve, token_bytes
from tune.options import SearchConfig
from tune.results import write_atomically
from tune.schedulers import format_ladder
from tune.spaces import Choice, get_space
from tune.trainable import Task

RUNS_DIR = Path(__file__).resolve().parent.parent / "experiments" / "runs"
EMA_RATIO = 0.1  # horizon of the averaged weights of --rung_metric val_loss_ema
PACKAGES = ("torch", "ray", "tiktoken", "numpy", "pandas", "optuna")  # whose versions search.json keeps
NUM_REPORTS = 32  # token marks a full training
MIN_EVAL_TOKENS, MAX_EVAL_TOKENS, EVAL_SHARE = 4096, 2**20, 1 / 256  # of val, at each mark; the share is of the budget
TRAIN_EVAL = 4  # one window of train for so many of val: train_loss is there to be read, nothing is decided by it


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and how many run at once."""

    cpus_per_trial: int
    gpus_per_trial: float
    slots: int


def settle_resources(config: SearchConfig, num_cpus: int, num_gpus: int) -> Resources:
    """The trials' share of `num_cpus` cores and `num_gpus` GPUs. Raises InputError where not one trial fits."""
    gpus = config.gpus_per_trial
    if gpus is None:
        gpus = 1 if num_gpus else 0
    if gpus > num_gpus:
        raise InputError(f"--gpus_per_trial is {gpus:g}, but there are {num_gpus} GPUs")
    by_gpu = (int(1 / gpus + 1e-9) * num_gpus if gpus < 1 else num_gpus // int(gpus)) if gpus else num_cpus
    cpus = config.cpus_per_trial or (max(1, num_cpus // by_gpu) if gpus else 1)
    if cpus > num_cpus:
        raise InputError(f"--cpus_per_trial is {cpus}, but there are {num_cpus} CPU cores")
    slots = min(by_gpu, num_cpus // cpus)
    return Resources(cpus, gpus, min(slots, config.max_concurrent or slots))


def prepare_search(config: SearchConfig, cache_dir: Path) -> dict[str, Any]:
    """Checks all of `config` against the data and resolves it into what search.json holds.

    Raises InputError with one line for the first thing that is wrong.
    """
    preset, space = get_preset(config.preset), get_space(config.space)
    tokenizer_name = resolve(config.tokenizer or default_tokenizer(config.train_file))
    encoding = get_tokenizer(tokenizer_name)
    files = {
        split: prepare(file, split, tokenizer_name, encoding, cache_dir)
        for split, file in (("train", config.train_file), ("val", config.val_file))
    }
    model = preset.model(encoding.n_vocab)
    max_len = model.block_size
    windows = {split: Windows(tokens, max_len, max_len) for split, tokens in files.items()}
    batch_sizes = space.ranges(preset)["batch_size"]
    assert isinstance(batch_sizes, Choice)
    largest = max(batch_sizes.values)
    if len(windows["train"]) < largest:
        raise InputError(
            f"{config.train_file}: its {len(windows['train'])} windows of {max_len} tokens are fewer than the largest batch"
            f" of space {config.space} with preset {config.preset}, {largest} windows"
        )
    wanted = config.budget_tokens or preset.budget_tokens
    report_tokens = wanted // (NUM_REPORTS * largest * max_len) * largest * max_len
    if report_tokens == 0:
        raise InputError(
            f"--budget_tokens is {wanted}: less than one step of the largest batch per report; it must be at least"
            f" {NUM_REPORTS * largest * max_len} ({NUM_REPORTS} reports of {largest} windows of {max_len} tokens)"
        )
    budget = report_tokens * NUM_REPORTS
    eval_windows = int(min(MAX_EVAL_TOKENS, max(MIN_EVAL_TOKENS, budget * EVAL_SHARE))) // max_len or 1
    _, targets = windows["val"].batch(windows["val"].spread(eval_windows))
    total_bytes = int(token_bytes(encoding)[targets.numpy()].sum())
    train = preset.training(
        budget_tokens=budget,
        version=space.version,
        seed=config.seed,
        eval_windows=eval_windows,
        train_eval_windows=max(1, eval_windows // TRAIN_EVAL),
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
        ema_ratio=EMA_RATIO if config.rung_metric == "val_loss_ema" else 0.0,
    )
    return {
        "config": dataclasses.asdict(config),
        "model": dataclasses.asdict(model),
        "train": dataclasses.asdict(train),
        "rungs": format_ladder(config.ladder),
        "num_samples": config.trials,
        "confirm": config.confirmations,
        "num_reports": NUM_REPORTS,
        "report_tokens": report_tokens,
        "bytes_per_token": max(1, total_bytes) / targets.numel(),
        "ranges": ranges_of(config.space, preset),
        "data": {
            "train_file": absolute(config.train_file),
            "val_file": absolute(config.val_file),
            "tokenizer": tokenizer_name,
            "tokenizer_sha256": identity(encoding),
            "fingerprint": {split: tokens.fingerprint() for split, tokens in files.items()},
        },
        "prepared": {split: tokens.spec for split, tokens in files.items()},
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpus": available_cpus(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def task_of(search: dict[str, Any], resources: Resources, rungs: tuple[int, ...]) -> Task:
    """What every trial of the search `search` (search.json) needs to know."""
    return Task(
        model=search["model"],
        train=search["train"],
        train_file=search["prepared"]["train"],
        val_file=search["prepared"]["val"],
        report_tokens=search["report_tokens"],
        bytes_per_token=search["bytes_per_token"],
        rungs=rungs,
        threads=resources.cpus_per_trial,
        device="cuda" if resources.gpus_per_trial else "cpu",
    )


def read_search(run_dir: Path) -> dict[str, Any]:
    """The search.json of a run folder. Raises InputError where it is no run folder."""
    path = run_dir / "search.json"
    if not path.is_file():
        raise InputError(f"{run_dir} is no run folder: it has no search.json")
    try:
        search = json.loads(path.read_text())
        search["config"], search["train"]["budget_tokens"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged") from None
    return search


def write_search(run_dir: Path, search: dict[str, Any]) -> None:
    write_atomically(run_dir / "search.json", json.dumps(search, indent=2) + "\n")


def check_comparable(search: dict[str, Any], cache_dir: Path) -> None:
    """Makes sure that new trials of a search would be comparable with its earlier ones; brings its prepared data back.

    Raises InputError that names what has changed: the preset's shape, the space's ranges, or the data.
    """
    config, data = search["config"], search["data"]
    preset, encoding = get_preset(config["preset"]), get_tokenizer(data["tokenizer"])
    now = {
        f"the shape of preset {config['preset']}": (dataclasses.asdict(preset.model(encoding.n_vocab)), search["model"]),
        f"space {config['space']}": (ranges_of(config["space"], preset), search["ranges"]),
    }
    if "tokenizer_sha256" in data:
        now[f"tokenizer {data['tokenizer']}"] = identity(encoding), data["tokenizer_sha256"]
    for split in ("train", "val"):
        if not are_there(search["prepared"][split]):
            tokens = prepare(data[f"{split}_file"], split, data["tokenizer"], encoding, cache_dir)
            search["prepared"][split] = tokens.spec
        now[data[f"{split}_file"]] = TokenFile(search["prepared"][split]).fingerprint(), data["fingerprint"][split]
    for what, (found, expected) in now.items():
        if found != expected:
            raise InputError(f"{what} has changed since the search began: its trials could not be compared with new ones")


def ranges_of(space: str, preset: Preset) -> dict[str, str]:
    """Each hyper-parameter of a space with its range for a preset, as text."""
    return {name: str(distribution) for name, distribution in get_space(space).ranges(preset).items()}


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of this project's checkout, with '+' where files were changed; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed else "")
