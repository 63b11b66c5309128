"""What the user asked for, checked against the data and the machine, and resolved: before anything heavy starts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from myllm.config import get_preset
from myllm.data import TokenFile, Windows, default_tokenizer, prepare
from myllm.errors import InputError
from myllm.machine import origin
from myllm.sources import absolute
from myllm.token_file import are_there
from myllm.tokenizer import get_tokenizer, identity, resolve, token_bytes
from tune.options import SearchConfig
from tune.settings import Data, Search
from tune.spaces import Choice, get_space, ranges_of

EMA_RATIO = 0.1  # horizon of the averaged weights of --rung_metric val_loss_ema
PACKAGES = ("torch", "ray", "tiktoken", "numpy", "pandas", "optuna")  # whose versions search.json keeps
CODE = ("python", "packages", "git_commit")  # of a search's origin
NUM_REPORTS = 32  # token marks a full training
MIN_EVAL_TOKENS, MAX_EVAL_TOKENS, EVAL_SHARE = 4096, 2**20, 1 / 256  # of val, at each mark; the share is of the budget
TRAIN_EVAL = 4  # one window of train for so many of val: train_loss is there to be read, nothing is decided by it


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and how many train at once."""

    cpus_per_trial: int
    gpus_per_trial: float
    workers: int


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
    workers = min(by_gpu, num_cpus // cpus)
    return Resources(cpus, gpus, min(workers, config.max_concurrent or workers))


def prepare_search(config: SearchConfig, cache_dir: Path) -> Search:
    """Checks all of `config` against the data and resolves it.

    Raises InputError with one line for the first thing that is wrong.
    """
    preset, space = get_preset(config.preset), get_space(config.space)
    tokenizer_name = resolve(config.tokenizer or default_tokenizer(config.train_file))
    encoding = get_tokenizer(tokenizer_name)
    files = {
        split: prepare(
            file, split, tokenizer_name, encoding, cache_dir, token_dtype=config.token_dtype, text_column=config.text_column
        )
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
            f"{' '.join(config.train_file)}: its {len(windows['train'])} windows of {max_len} tokens are fewer than the"
            f" largest batch of space {config.space} with preset {config.preset}, {largest} windows"
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
    targets = windows["val"].ids(windows["val"].spread(eval_windows))[:, 1:]
    total_bytes = int(token_bytes(encoding)[targets].sum())
    training = preset.training(
        budget_tokens=budget,
        version=space.version,
        seed=config.seed,
        eval_windows=eval_windows,
        train_eval_windows=max(1, eval_windows // TRAIN_EVAL),
        ema_ratio=EMA_RATIO if config.rung_metric == "val_loss_ema" else 0.0,
    )
    return Search(
        config=config,
        model=model,
        training=training,
        data=Data(
            train_file=absolute(config.train_file),
            val_file=absolute(config.val_file),
            token_dtype=config.token_dtype,
            text_column=config.text_column,
            tokenizer=tokenizer_name,
            tokenizer_sha256=identity(encoding),
            fingerprint={split: tokens.fingerprint() for split, tokens in files.items()},
            prepared={split: tokens.spec for split, tokens in files.items()},
            bytes_per_token=max(1, total_bytes) / targets.size,
        ),
        report_tokens=report_tokens,
        ranges=ranges_of(config.space, preset),
        origin=origin(PACKAGES),
    )


def changed_code(search: Search) -> str:
    """What of the code is not as it was when the search began, in one line; empty where nothing is."""
    now, before = origin(PACKAGES), search.origin
    changes = {name: (before["packages"].get(name), version) for name, version in now["packages"].items()}
    changes |= {name: (before[name], now[name]) for name in CODE if name != "packages"}
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items() if old != new)


def check_comparable(search: Search, cache_dir: Path) -> Search:
    """The search with its prepared data in place, once it is sure that new trials would be comparable with earlier ones.

    Raises InputError that names what has changed: the preset's shape, the space's ranges, or the data.
    """
    config, data = search.config, search.data
    preset, encoding = get_preset(config.preset), get_tokenizer(data.tokenizer)
    now = {
        f"the shape of preset {config.preset}": (preset.model(encoding.n_vocab), search.model),
        f"space {config.space}": (ranges_of(config.space, preset), search.ranges),
        f"tokenizer {data.tokenizer}": (identity(encoding), data.tokenizer_sha256),
    }
    how = {"token_dtype": data.token_dtype, "text_column": data.text_column}
    prepared = dict(data.prepared)
    for split, file in (("train", data.train_file), ("val", data.val_file)):
        if not are_there(prepared[split]):
            prepared[split] = prepare(file, split, data.tokenizer, encoding, cache_dir, **how).spec
        now[file if isinstance(file, str) else " ".join(file)] = (
            TokenFile(prepared[split]).fingerprint(),
            data.fingerprint[split],
        )
    for what, (found, expected) in now.items():
        if found != expected:
            raise InputError(f"{what} has changed since the search began: its trials could not be compared with new ones")
    return dataclasses.replace(search, data=dataclasses.replace(data, prepared=prepared))
