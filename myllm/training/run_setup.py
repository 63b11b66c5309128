"""Builds the Run that trainer.py trains, from its flags, a configuration file and a preset."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import LENGTHS, GPTConfig, TrainConfig
from myllm.datasets.data_paths import BUILTIN, Source, is_builtin
from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.overlap import check_separate
from myllm.datasets.tokenizer import Tokenizer, get_tokenizer, identity, resolve
from myllm.datasets.windows import Windows
from myllm.models.custom_model import CustomModelConfig, ModelConfig
from myllm.models.model_check import choose_model
from myllm.presets import Preset, get_preset
from myllm.system.errors import InputError, warn
from myllm.training.gpu import pick_device
from myllm.training.hparam_transfer import Transfer, carried, search_command, transferred
from myllm.training.optimizers import check_optimizers
from myllm.training.options import training_flags
from myllm.training.parallel import ProcessGroup
from myllm.training.run import Run


@dataclass(frozen=True)
class StartConfig:
    """The settings that a training starts from: those of a best_config.json, of a trial, or none."""

    values: dict[str, Any]
    """the parts of a best_config.json: preset, model, train, data; each may be missing"""
    where: str
    """the file that the settings come from, for messages"""

    @property
    def data(self) -> dict[str, Any]:
        """Returns the data part; empty where there is none."""
        return self.values.get("data") or {}


@dataclass(frozen=True)
class RunSetup:
    """A run that is ready to train, and how it was put together."""

    run: Run
    tokenizer_name: str
    tokenizer: Tokenizer
    rescaled: list[Transfer]
    """settings that differ from the start configuration because model or budget differ"""


def build_run(given: dict[str, Any], start: StartConfig, device: str, group: ProcessGroup) -> RunSetup:
    """Builds the run that flags, start configuration and preset describe; the earlier of these wins.

    Raises InputError where they do not fit each other, the data or this machine.
    """
    preset = get_preset(given.get("preset", start.values.get("preset", "nano")))
    files = {split: given.get(f"{split}_file", start.data.get(f"{split}_file", BUILTIN)) for split in ("train", "val")}
    if is_builtin(files["train"]) != is_builtin(files["val"]):
        raise InputError("--train_file and --val_file belong together: give both, or neither for the built-in corpus")
    named = given.get("tokenizer", start.data.get("tokenizer"))
    name = resolve(default_tokenizer(files["train"]) if named is None else named)
    tokenizer = get_tokenizer(name)
    if start.data.get("tokenizer_sha256") not in (None, identity(tokenizer)):
        raise InputError(f"{start.where}: found with a tokenizer of other contents than --tokenizer {name}")
    model = choose_model(given, start.values, start.where, preset, tokenizer.n_vocab)
    if model.vocab_size != tokenizer.n_vocab:
        raise InputError(
            f"{start.where}: the model has vocab_size {model.vocab_size}, --tokenizer {name} {tokenizer.n_vocab}"
        )
    training, rescaled = choose_training(given, start, model, preset)
    if isinstance(model, CustomModelConfig):
        check_optimizers(model, [training])
    train_windows, val_windows = open_windows(given, start, files, name, tokenizer, training)
    if "train" in start.values:
        training, changes = carried(start.values, training, model, preset, len(train_windows), given)
        rescaled += changes
    return RunSetup(Run(model, training, train_windows, val_windows, pick_device(device), group), name, tokenizer, rescaled)


def choose_training(
    given: dict[str, Any], start: StartConfig, model: ModelConfig, preset: Preset
) -> tuple[TrainConfig, list[Transfer]]:
    """Returns the training settings, and those among them that were rescaled. Raises InputError for a wrong one."""
    flags = training_flags(given)
    rescaled: list[Transfer] = []
    if "train" in start.values:
        training, rescaled = transferred(start.values, start.where, flags, model, preset)
    else:
        flags.setdefault("max_len", model.block_size)
        shape = model if isinstance(model, GPTConfig) else None
        preset = preset.at(flags.get("budget_tokens", preset.budget_tokens), shape, flags.get("batch_size"))
        batch_size = flags.get("batch_size", preset.batch_size)
        batch_tokens = batch_size * flags["max_len"]
        if not {*LENGTHS} & flags.keys() and batch_tokens > 0:
            flags["budget_tokens"] = max(1, preset.budget_tokens // batch_tokens) * batch_tokens
        training = preset.training(eval_windows=4 * max(1, batch_size), **flags)
    check_used(flags, training)
    if "eval_iter" in given:
        if given["eval_iter"] < 1:
            raise InputError(f"--eval_iter is {given['eval_iter']}; it must be a positive whole number of batches")
        eval_windows = given["eval_iter"] * training.batch_size
        training = dataclasses.replace(training, eval_windows=eval_windows, train_eval_windows=None)
    return training, rescaled


def check_used(flags: dict[str, Any], training: TrainConfig) -> None:
    """Raises InputError for a flag that would change nothing beside the other settings."""
    if "beta2" in flags and training.beta2_half_life is not None:
        raise InputError("--beta2 does nothing where beta2_half_life is set, which decides it; give --beta2_half_life")
    if "cooldown_ratio" in flags and training.schedule != "wsd":
        raise InputError(f"--cooldown_ratio does nothing with --schedule {training.schedule}; it belongs to wsd")
    if "eval_freq" in flags and training.budget_seconds:
        raise InputError("--eval_freq does nothing with --budget_seconds, which reports after equal parts of the time")
    if "muon_lr_ratio" in flags and training.optimizer != "muon":
        raise InputError(f"--muon_lr_ratio does nothing with --optimizer {training.optimizer}; it belongs to muon")
    for name in ("warmup_ratio", "min_lr_ratio", "schedule", "cooldown_ratio", "clip_norm"):
        if name in flags and training.version == "v1":
            raise InputError(f"--{name} does nothing with --version v1: a constant rate, without clipping; leave it out")


def open_windows(
    given: dict[str, Any],
    start: StartConfig,
    files: dict[str, Source],
    tokenizer_name: str,
    tokenizer: Tokenizer,
    training: TrainConfig,
) -> tuple[Windows, Windows]:
    """Opens the windows of train and val; warns where they are not the data of the start configuration.

    Raises InputError where the files can't be read, are too short, or are the same.
    """
    saved_files = [start.data.get(f"{split}_file") for split in files]
    known = start.data if suffixes(files.values()) == suffixes(saved_files) else {}
    how = {name: given.get(name, known.get(name)) for name in ("token_dtype", "text_column")}
    windows = []
    for split, file in files.items():
        tokens = prepare(file, split, tokenizer_name, tokenizer, **how)
        windows.append(Windows(tokens, training.max_len, training.stride))
        saved = (start.data.get("fingerprint") or {}).get(split)
        if saved and f"{split}_file" not in given and saved != tokens.fingerprint():
            warn(f"{tokens.name} is not the data that {start.where} was found on")
    check_separate(windows[0].tokens, windows[1].tokens)
    return windows[0], windows[1]


def suffixes(sources: Iterable[Source | None]) -> set[str]:
    """Returns the endings of the files' names."""
    return {Path(name).suffix for names in sources for name in ([names] if isinstance(names, str) else names or ())}


def print_rescaled(setup: RunSetup, start: StartConfig, given: dict[str, Any]) -> None:
    """Prints what differs from the start configuration, what does not, and the command that would search again."""
    run, config = setup.run, start.values
    tokens, before = run.total_steps * run.config.tokens_per_step, config.get("train", {}).get("budget_tokens")
    times = tokens / before if before and "learning_rate" not in given else 1.0
    for change in setup.rescaled:
        print(f"rescaled: {change}")
    if run.pace:
        return  # how many tokens the time makes is not known yet
    if not 0.5 < times < 2 and not any(change.name == "learning_rate" for change in setup.rescaled):
        print(f"kept: the learning rate, for {times:.3g} times the tokens: no law of the tokens holds below 10M parameters")
    elif not setup.rescaled:
        return
    kept = ", ".join(f"{name} {getattr(run.config, name):.4g}" for name in ("clip_norm", "warmup_ratio", "weight_decay"))
    print(f"kept: {run.config.tokens_per_step:,} tokens a step, {kept}")
    if run.config.version == "v1":
        return  # only the space v1 searches trainings of v1
    names = ("train_file", "val_file", "tokenizer", "token_dtype", "text_column")
    data = {name: given.get(name, start.data.get(name)) for name in names}
    flags = {}
    if not is_builtin(data["train_file"] or BUILTIN):
        flags = {name: [value] if isinstance(value, str) else value for name, value in data.items() if value is not None}
    preset = given.get("preset", config.get("preset", "nano"))
    again = search_command(run.config, run.model_config, preset, tokens, config["train"]["learning_rate"], flags)
    print(f"a law is no measurement; to search the rate again: {again}")
