"""Carries the result of a search to another model size or another budget: which values move, by which rule.

From 10M parameters on, the rate moves as N^-.5 D^.2 and the batch as D^.5 (myllm/scaling_laws.py). N counts parameters
without embeddings and head, D the tokens of the training. Below 10M the rate is divided by the width, and is never raised
(Yang et al., arXiv 2203.03466, table 3: of hidden matrices there, here of all, as one rate was searched). Between a model
below 10M and one above no rule holds: the larger one gets Step Law's point, the smaller one its preset's baseline.

All laws of the rate are AdamW's. Muon's rate stays, with the widest interval; its batch moves as AdamW's, as the best
batch follows the tokens (nanochat, which trains with Muon, has D^.383 from arXiv 2505.13738).

The clip norm and the shares of the steps (warm-up, cooldown) stay. What was measured is in experiments/LOG.md. To be sure
one searches the rate again: `search_command`.
"""

import dataclasses
import math
import shlex
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from myllm.config import LENGTHS, GPTConfig, TrainConfig, from_dict
from myllm.models.custom_model import CustomModelConfig, ModelConfig, difference, read_model, settings_of
from myllm.models.model_check import parameter_shapes
from myllm.presets import PRESETS, Preset, matrix_params
from myllm.scaling_laws import LOWEST_PARAMS, Size, law_sds, movement, step_law_point

WIDTH_LAW = "1/width, Yang et al., arXiv 2203.03466"
SIZE_LAW = "rate N^-.5 D^.2, batch D^.5, a compromise of published laws"
MUON = "no published law moves Muon's rate"
Z90 = 1.645
"""standard deviations on either side that hold 90% of a normal distribution"""
LEAST = 0.01
"""share of the rate below which a change is none: budgets are rounded to whole steps"""


@dataclass(frozen=True)
class Transfer:
    """A setting that differs from the result of the search."""

    name: str
    old: float
    new: float
    why: str
    """the rule, with its source"""
    sd: float = 0.0
    """standard deviation of the logarithm of the best value around the rule's; 0 where there is no question"""

    def __str__(self) -> str:
        moved = f"{self.old:.4g} -> {self.new:.4g}" if self.old != self.new else f"stays {self.old:.4g}"
        low, high = (self.new * math.exp(z * self.sd) for z in (-Z90, Z90))
        return f"{self.name} {moved}{f' (90%: {low:.2g} to {high:.2g})' if self.sd else ''}: {self.why}"


def matrices(model: ModelConfig) -> dict[str, torch.Size]:
    """Returns the shape of each matrix of `model`, by name. Matrices that grow with the vocabulary are left out."""
    shapes = parameter_shapes(model)
    return {name: shape for name, shape in shapes.items() if len(shape) == 2 and model.vocab_size not in shape}


def params_of(model: ModelConfig) -> int:
    """Returns the parameters of the matrices of `model`, without embeddings and head."""
    if isinstance(model, GPTConfig):
        return matrix_params(model)
    return sum(shape.numel() for shape in matrices(model).values())


def times_as_wide(model: ModelConfig, before: ModelConfig) -> float:
    """Returns the median ratio of input widths of matrices with the same name in `model` and `before`.

    Matrices that grow with the vocabulary are left out. The ratio is 1 where no names agree.
    """
    sizes = [{name: shape[1] for name, shape in matrices(one).items()} for one in (model, before)]
    ratios = [sizes[0][name] / sizes[1][name] for name in sizes[0].keys() & sizes[1].keys()]
    return float(statistics.median(ratios or [1.0]))


def transferred(
    config: dict[str, Any], where: str, flags: dict[str, Any], model: ModelConfig, preset: Preset
) -> tuple[TrainConfig, list[Transfer]]:
    """Returns the training of a best_config.json, read from `where`, with `flags` and for `model`; and the moved settings.

    Where windows were the whole context they are that of the model again, and a step keeps its tokens. A preset other than
    the config's brings its micro-batch. A budget that is not a flag is rounded down to whole steps. Raises InputError.
    """
    found = from_dict(TrainConfig, config["train"], f"{where}: train")
    values, changes = vars(found) | flags, []
    if {*LENGTHS} & flags.keys():  # the flag's length replaces that of the file
        values |= {name: flags.get(name) for name in LENGTHS}
    old = read_model(config["model"], f"{where}: model").block_size if "model" in config else model.block_size
    if found.max_len == old != model.block_size and "max_len" not in flags:
        if found.stride == old and "stride" not in flags:
            values["stride"] = model.block_size
        values["max_len"] = model.block_size
        changes.append(Transfer("max_len", old, model.block_size, "the model's context"))
        if "batch_size" not in flags:
            values["batch_size"] = max(1, round(found.batch_size * old / model.block_size))
            changes.append(
                Transfer("batch_size", found.batch_size, values["batch_size"], "as many tokens a step, as near as may be")
            )
    elif found.stride == found.max_len != values["max_len"] and "stride" not in flags:
        values["stride"] = values["max_len"]
        changes.append(Transfer("stride", found.stride, values["stride"], "that of --max_len, as before"))
    if preset.micro_batch_size and PRESETS.get(config.get("preset", "")) is not preset and "micro_batch_size" not in flags:
        values["micro_batch_size"] = min(preset.micro_batch_size, values["batch_size"])
    step = values["batch_size"] * values["max_len"]
    if values["budget_tokens"] and "budget_tokens" not in flags and step > 0:
        values["budget_tokens"] = max(1, values["budget_tokens"] // step) * step
    return from_dict(TrainConfig, values, f"{where}: train"), changes


def by_width(training: TrainConfig, model: ModelConfig, before: ModelConfig, sd: float) -> list[Transfer]:
    """Returns the change of the rate where `model` is wider than `before`, or that it stays where it is narrower."""
    width = 1.0 if difference(model, vars(before)) is None else times_as_wide(model, before)
    rate, why = training.learning_rate, f"{width:.3g} times the width ({WIDTH_LAW})"
    new = float(f"{rate / width:.4g}")
    if width == 1:
        return []
    if width < 1:
        return [Transfer("learning_rate", rate, rate, f"not raised to {new:.4g}, above what was tried; {why}", sd)]
    return [Transfer("learning_rate", rate, new, why, sd)]


def by_size(training: TrainConfig, start: Size, end: Size, reference: tuple[float, float]) -> list[Transfer]:
    """Returns the changes of the rate and of the batch where one of the models has LOWEST_PARAMS parameters or more.

    `reference` is the learning rate and the batch (tokens a step) of the end's own baseline, across LOWEST_PARAMS.
    """
    grown, longer = end.params / start.params, end.tokens / start.tokens
    rate, step = training.learning_rate, training.tokens_per_step
    if min(start.params, end.params) < LOWEST_PARAMS:
        law = "Step Law, arXiv 2503.04715" if end.params >= LOWEST_PARAMS else "its preset's"
        why = f"no rule holds across {LOWEST_PARAMS / 1e6:.0f}M parameters; this is the baseline of the new size ({law})"
        (new_rate, new_step), (rate_sd, batch_sd) = reference, law_sds(min(start, end, key=lambda size: size.params))
    else:
        move = movement(start, end)
        why = f"{grown:.3g} times the parameters, {longer:.3g} times the tokens ({SIZE_LAW})"
        new_rate, new_step = rate * math.exp(move.log_rate), step * math.exp(move.log_batch)
        rate_sd, batch_sd = move.log_rate_sd, move.log_batch_sd
    micro = training.micro_batch_size or 1
    unit = micro if new_step > micro * training.max_len else 1  # windows: whole micro-batches where there are several
    windows = max(1, round(new_step / training.max_len / unit)) * unit
    changes = []
    if abs(math.log(new_rate / rate)) > LEAST:
        changes.append(Transfer("learning_rate", rate, float(f"{new_rate:.3g}"), why, rate_sd))
    if windows != training.batch_size:
        changes.append(Transfer("batch_size", training.batch_size, windows, why, batch_sd))
    return changes


def for_muon(training: TrainConfig, changes: list[Transfer], start: Size, end: Size) -> list[Transfer]:
    """Returns the `changes` of a training with Muon: its rate stays, and intervals are as wide as without any rule."""
    widest = law_sds(Size(1, 1))
    kept = [change for change in changes if change.name != "learning_rate"]
    found = [dataclasses.replace(change, sd=max(change.sd, widest[1])) for change in kept]
    if len(kept) == len(changes) and start.params == end.params:
        return found
    rate = training.learning_rate
    return [Transfer("learning_rate", rate, rate, MUON, widest[0]), *found]


def carried(
    config: dict[str, Any], training: TrainConfig, model: ModelConfig, preset: Preset, windows: int, flags: Collection[str]
) -> tuple[TrainConfig, list[Transfer]]:
    """Returns a result of `transferred` with rate and batch for its model and its tokens, and what changed.

    `windows` are those of the training file, for a length in epochs. A length in seconds counts as the tokens of the
    configuration. Settings that `flags` name stay. Raises InputError.
    """
    before = read_model(config["model"], "model") if "model" in config else model
    found = config["train"].get("budget_tokens")
    tokens = training.budget_tokens or (training.epochs or 0) * windows * training.max_len or found or preset.budget_tokens
    start, end = Size(params_of(before), found or tokens), Size(params_of(model), tokens)
    if max(start.params, end.params) < LOWEST_PARAMS:
        changes = by_width(training, model, before, movement(start, end).log_rate_sd)
    else:
        shape = model if isinstance(model, GPTConfig) else preset.model(1)
        own = preset.at(tokens, shape)
        reference = own.learning_rate, float(own.batch_size * shape.block_size)
        if end.params >= LOWEST_PARAMS:
            reference = step_law_point(end, training.tokens_per_step if "batch_size" in flags else None)
        changes = by_size(training, start, end, reference)
    if training.optimizer == "muon":
        changes = for_muon(training, changes, start, end)
    changes = [change for change in changes if change.name not in flags]
    values: dict[str, Any] = {change.name: change.new for change in changes}
    step = values.get("batch_size", training.batch_size) * training.max_len
    if training.budget_tokens and training.budget_tokens % step:
        values["budget_tokens"] = max(1, training.budget_tokens // step) * step
        changes.append(Transfer("budget_tokens", training.budget_tokens, values["budget_tokens"], "whole steps"))
    return dataclasses.replace(training, **values), changes


def search_command(
    training: TrainConfig, model: ModelConfig, preset_name: str, tokens: int, found_rate: float, flags: dict[str, list[str]]
) -> str:
    """Returns the command that searches the learning rate around that of `training`; `flags` name the data."""
    preset = PRESETS[preset_name]
    baseline = preset.training()
    names = ["batch_size", "warmup_ratio", "min_lr_ratio", "schedule", "cooldown_ratio", "clip_norm", "weight_decay"]
    names += ["beta1", "beta2", "beta2_half_life", "micro_batch_size", "optimizer", "muon_lr_ratio"]
    fixed = {n: getattr(training, n) for n in names if getattr(training, n) not in (None, getattr(baseline, n))}
    if training.beta2_half_life is not None:  # it decides beta2
        fixed.pop("beta2", None)
    source = model.source if isinstance(model, CustomModelConfig) else None
    usual = {} if source else settings_of(preset.model(model.vocab_size))
    fixed |= {n: value for n, value in settings_of(model).items() if usual.get(n) != value}
    rate = training.learning_rate
    words = ["python", "tune/search.py", "--preset", preset_name, "--space", "custom"]
    words += ["--model", source] if source else []
    words += ["--range", f"learning_rate={rate / 2:.2g}:{max(2 * rate, found_rate):.2g}"]
    words += ["--set", *(f"{name}={value}" for name, value in fixed.items())] if fixed else []
    for flag, values in flags.items():
        words += [f"--{flag}", *values]
    return shlex.join([*words, "--budget_tokens", str(tokens), "--num_samples", "8"])
