"""Resolves the user's options into the specification of a search, checked against the data before anything starts."""

import dataclasses
import itertools
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from myllm.config import Preset, TrainConfig, get_preset
from myllm.datasets.data_paths import Source, absolute, find_files, is_builtin
from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.overlap import check_separate
from myllm.datasets.token_file import TokenFile, are_there
from myllm.datasets.tokenizer import Tokenizer, get_tokenizer, identity, resolve, token_bytes
from myllm.datasets.windows import Windows
from myllm.models.custom_model import CustomModelConfig, ModelConfig, custom_model, settings_of, with_settings
from myllm.system.errors import InputError
from myllm.system.machine import cpp_compiler, gpu_names, origin
from tune.config.options import SearchOptions
from tune.config.overrides import FLAGS, Override, SearchedSpace, check_space, extremes, parse_overrides, searched_space
from tune.config.spec import RUN_ID_DIGITS, Data, SearchSpec
from tune.core.search_space import Choice, get_space
from tune.store.tables import RESULT_COLUMNS

EMA_RATIO = 0.1  # horizon of the averaged weights of --rung_metric val_loss_ema
PACKAGES = ("torch", "ray", "tiktoken", "numpy", "pandas", "optuna")  # whose versions search.json keeps
CODE = ("python", "packages", "git_commit")  # of a search's origin
TAKEN = {"trial_id", *RESULT_COLUMNS, "fate", "measured", "end_loss", "seeds", "last_val_loss"}
"""columns of trials.csv and of a report's tables, which stand beside those of the hyper-parameters"""
NUM_REPORTS = 32  # token marks a full training
MIN_EVAL_TOKENS, MAX_EVAL_TOKENS, EVAL_SHARE = 4096, 2**20, 1 / 256  # of val, at each mark; the share is of the budget
MOST_BUILT = 32  # shapes of a user's own model that are tried before the start
TRAIN_EVAL = 4  # one window of train for so many of val: train_loss is there to be read, nothing is decided by it


def resolve_search(config: SearchOptions, cache_dir: Path) -> SearchSpec:
    """The specification of the search that `config` asks for, checked against the data.

    Raises InputError, one line, for the first fault.
    """
    preset = get_preset(config.preset)
    tokenizer_name = resolve(config.tokenizer or default_tokenizer(config.train_file))
    encoding = get_tokenizer(tokenizer_name)
    model = resolve_model(config, preset, encoding.n_vocab)
    overrides = parse_overrides({kind: getattr(config, kind) for kind in FLAGS}, model)
    model = fix_model(model, overrides)
    searched = searched_space(config, model, overrides)
    check_space(config, searched.ranges, overrides)
    changes = {name: value for name, value in searched.fixed.items() if name not in settings_of(model)}
    if taken := sorted(searched.ranges.keys() & TAKEN):
        raise InputError(
            f"{taken[0]!r} can't be searched: a search's tables have a column of that name; rename the setting, or --set it"
        )
    files = prepare_files(config, tokenizer_name, encoding, cache_dir)
    check_separate(files["train"], files["val"])
    max_len = model.block_size
    windows = {split: Windows(tokens, max_len, max_len) for split, tokens in files.items()}
    batch_sizes = check_batch_sizes(config, searched, overrides, windows["train"])
    budget, report_tokens = resolve_marks(config.budget_tokens or preset.budget_tokens, batch_sizes, max_len)
    eval_windows = int(min(MAX_EVAL_TOKENS, max(MIN_EVAL_TOKENS, budget * EVAL_SHARE))) // max_len or 1
    targets = windows["val"].ids(windows["val"].spread(eval_windows))[:, 1:]
    total_bytes = int(token_bytes(encoding)[targets].sum())
    training = resolve_training(
        preset,
        changes,
        batch_size=searched.baseline.get("batch_size", preset.batch_size),
        max_len=max_len,
        budget_tokens=budget,
        version=get_space(config.space).version,
        seed=config.seed,
        eval_windows=eval_windows,
        train_eval_windows=max(1, eval_windows // TRAIN_EVAL),
        ema_ratio=EMA_RATIO if config.rung_metric == "val_loss_ema" else 0.0,
    )
    search = SearchSpec(
        options=config,
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
        origin={"run_id": uuid.uuid4().hex[:RUN_ID_DIGITS]} | origin(PACKAGES),
        **vars(searched),
    )
    check_trials(search, overrides)
    return search


def prepare_files(config: SearchOptions, tokenizer_name: str, encoding: Tokenizer, cache_dir: Path) -> dict[str, TokenFile]:
    """The checked token files of train and val. Raises InputError."""
    how = {"token_dtype": config.token_dtype, "text_column": config.text_column}
    named = {"train": config.train_file, "val": config.val_file}
    return {split: prepare(file, split, tokenizer_name, encoding, cache_dir, **how) for split, file in named.items()}


def check_batch_sizes(
    config: SearchOptions, searched: SearchedSpace, overrides: Mapping[str, Override], train: Windows
) -> Sequence[int]:
    """The batch sizes that trials may have, in windows. Raises InputError for one that can't be."""
    drawn, preset = searched.ranges.get("batch_size"), get_preset(config.preset)
    sizes = drawn.values if isinstance(drawn, Choice) else (searched.fixed.get("batch_size", preset.batch_size),)
    if min(sizes) < 1:
        raise InputError(f"{overrides['batch_size'].flag}: batch_size is {min(sizes)}; it must be 1 or more")
    if len(train) < max(sizes):
        raise InputError(
            f"{' '.join(config.train_file)}: its {len(train)} windows of {train.max_len} tokens are fewer than the"
            f" largest batch of space {config.space} with preset {config.preset}, {max(sizes)} windows"
        )
    return sizes


def resolve_model(config: SearchOptions, preset: Preset, vocab_size: int) -> ModelConfig:
    """The model that the options name, with none of the user's overrides. Raises InputError."""
    return custom_model(config.model, vocab_size, preset.block_size) if config.model else preset.model(vocab_size)


def fix_model(model: ModelConfig, overrides: Mapping[str, Override]) -> ModelConfig:
    """The model with the settings that the user fixed. Raises InputError for a shape that can't be."""
    names = [name for name, override in overrides.items() if override.values is None and name in settings_of(model)]
    try:
        return with_settings(model, {name: overrides[name].fixed for name in names})
    except InputError as error:
        raise InputError(f"{', '.join(overrides[name].flag for name in names)}: {error}") from None


def resolve_marks(wanted: int, batch_sizes: Sequence[int], max_len: int) -> tuple[int, int]:
    """(tokens of one full training, tokens between reports): NUM_REPORTS of whole steps of every batch size, or, of a small
    budget, as many as there are. Raises InputError where it has less than two.
    """
    step = math.lcm(*batch_sizes) * max_len
    reports = min(NUM_REPORTS, wanted // step)
    if reports < 2:
        alike, largest = math.lcm(*batch_sizes), max(batch_sizes)
        listed = ", ".join(map(str, batch_sizes))
        of = f"the largest batch, {largest}" if alike == largest else f"batches of {listed} alike, {alike}"
        raise InputError(
            f"--budget_tokens is {wanted}: less than two reports, each a whole number of steps of {of} windows of {max_len}"
            f" tokens; it must be at least {2 * step}, or the batches smaller (--choices batch_size=...)"
        )
    report_tokens = wanted // (reports * step) * step
    return report_tokens * reports, report_tokens


def resolve_training(preset: Preset, fixed: dict[str, Any], **settled: Any) -> TrainConfig:
    """The preset's reference settings with the user's fixed values. Raises InputError that names these."""
    try:
        return preset.training(**(settled | fixed))
    except InputError as error:
        raise InputError(f"--set {' '.join(f'{name}={value}' for name, value in fixed.items())}: {error}") from None


def check_trials(search: SearchSpec, overrides: Mapping[str, Override]) -> None:
    """Raises InputError if a configuration within the user's ranges can't be trained, or if no rung lies before the end."""
    config = search.options
    shapes = []
    for flags, hyper_parameters in extremes(search.ranges, search.baseline, overrides, settings_of(search.model)):
        try:
            search.train_config(hyper_parameters)
            shapes.append(search.model_config(hyper_parameters))
        except InputError as error:
            raise InputError(f"{flags}: {str(error).removeprefix('trial: ')}") from None
    baseline = search.model_config(search.sample(0))
    if isinstance(baseline, CustomModelConfig):
        from myllm.models.model_check import check_builds, check_trains  # here: torch takes long, and only they need it

        check_trains(baseline)
        different = {str(shape.settings): shape for shape in shapes if isinstance(shape, CustomModelConfig)}
        for shape in itertools.islice(different.values(), MOST_BUILT):
            check_builds(shape)
    if config.resolved_rungs and not search.scheduler().rung_tokens:
        raise InputError(
            f"{'--rungs' if config.grace_period is None else '--grace_period'}: no rung lies at one of the "
            f"{search.budget_tokens // search.report_tokens} reports before the end; choose an earlier one, or a larger "
            "--budget_tokens"
        )
    if search.training.compile == "on" and config.address is None and not gpu_names() and cpp_compiler() is None:
        raise InputError("--set compile=on: there is no C++ compiler here; install g++, or name one in the variable CXX")


def changed_code(search: SearchSpec) -> str:
    """One line that lists the changes of code and packages since the search began; empty if there are none."""
    now, before = origin(PACKAGES), search.origin
    changes = {name: (before["packages"].get(name), version) for name, version in now["packages"].items()}
    changes |= {name: (before[name], now[name]) for name in CODE if name != "packages"}
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items() if old != new)


def _is_there(source: Source) -> bool:
    """True if the text or tokens of `source` can be read again. Prints a note if the files are gone."""
    try:
        return not is_builtin(source) and bool(find_files(source))
    except InputError as error:
        print(f"note: {error}; the search goes on with the tokens that were made of it")
        return False


def check_comparable(search: SearchSpec, cache_dir: Path, moved: dict[str, Any]) -> SearchSpec:
    """The search with its prepared data in place, once new trials are sure to be comparable with earlier ones.

    `moved` has the files that hold the data now, by train_file and val_file. Ranges and shapes are the stored ones.
    Raises InputError where the content of the tokenizer or of the data is another one.
    """
    places: dict[str, Any] = {name: absolute(list(files)) for name, files in moved.items()}
    data = dataclasses.replace(search.data, **places)
    encoding, prepared = get_tokenizer(data.tokenizer), dict(data.prepared)
    how = {"token_dtype": data.token_dtype, "text_column": data.text_column}
    now: dict[str, tuple[Any, Any]] = {f"tokenizer {data.tokenizer}": (identity(encoding), data.tokenizer_sha256)}
    for split, file in (("train", data.train_file), ("val", data.val_file)):
        if f"{split}_file" in moved or not are_there(prepared[split]) or _is_there(file):
            prepared[split] = prepare(file, split, data.tokenizer, encoding, cache_dir, **how).spec
        name = file if isinstance(file, str) else " ".join(file)
        now[name] = TokenFile(prepared[split]).fingerprint(), data.fingerprint[split]
    for what, (found, expected) in now.items():
        if found != expected:
            raise InputError(
                f"{what} has changed since the search began: its trials could not be compared with new ones; "
                "put it back as it was, or start a new search"
            )
    options = dataclasses.replace(search.options, **moved)
    return dataclasses.replace(search, options=options, data=dataclasses.replace(data, prepared=prepared))
