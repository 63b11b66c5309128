"""Carries the result of a search to another model size or another budget: which values move, by which rule.

The batch (in tokens), the clip norm and the shares of the steps (warm-up, cooldown) stay. The learning rate is divided by
the width: Adam moves a matrix of twice the inputs twice as far, so its rate halves (Yang et al., arXiv 2203.03466, table
3; of hidden matrices there, here of all, as one rate was searched). It is only ever lowered: one above those that were
tried may diverge.

Depth and budget move nothing. For longer trainings published laws disagree even in sign: D^-0.32 where the batch stays
(Bjorck et al., arXiv 2409.19913), D^+0.31 where it grows (Li et al., arXiv 2503.04715). What was measured here is in
experiments/LOG.md, "to the final model"; to be sure one searches the rate again: `search_command`.
"""

import dataclasses
import shlex
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from myllm.config import LENGTHS, TrainConfig, from_dict
from myllm.models.custom_model import CustomModelConfig, ModelConfig, builder, difference, read_model, settings_of
from myllm.models.model_check import quiet
from myllm.presets import PRESETS, Preset

WIDTH_LAW = "1/width, Yang et al., arXiv 2203.03466"


@dataclass(frozen=True)
class Transfer:
    """A setting that differs from the result of the search."""

    name: str
    old: float
    new: float
    why: str
    """the rule, with its source"""

    def __str__(self) -> str:
        moved = f"{self.old:.4g} -> {self.new:.4g}" if self.old != self.new else f"stays {self.old:.4g}"
        return f"{self.name} {moved}: {self.why}"


def times_as_wide(model: ModelConfig, before: ModelConfig) -> float:
    """Returns the median ratio of input widths of matrices with the same name in `model` and `before`.

    Matrices that grow with the vocabulary are left out. The ratio is 1 where no names agree.
    """
    sizes = []
    for one in (model, before):
        build = builder(one)
        with torch.random.fork_rng(devices=[]), quiet():
            try:
                with torch.device("meta"):
                    module = build()
            except Exception:  # a class that needs values
                module = build()
        named = module.named_parameters()
        sizes.append({name: p.size(1) for name, p in named if p.dim() == 2 and one.vocab_size not in p.shape})
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


def rescaled_rate(config: dict[str, Any], training: TrainConfig, model: ModelConfig) -> tuple[TrainConfig, Transfer | None]:
    """Returns a result of `transferred` with the learning rate for its model, and the change of the rate.

    The change is None where the model is as wide as that of the configuration.
    """
    before = read_model(config["model"], "model") if "model" in config else model
    width = 1.0 if difference(model, vars(before)) is None else times_as_wide(model, before)
    rate, why = training.learning_rate, f"{width:.3g} times the width ({WIDTH_LAW})"
    new = float(f"{rate / width:.4g}")
    if width == 1:
        return training, None
    if width < 1:
        return training, Transfer("learning_rate", rate, rate, f"not raised to {new:.4g}, above what was tried; {why}")
    return dataclasses.replace(training, learning_rate=new), Transfer("learning_rate", rate, new, why)


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
