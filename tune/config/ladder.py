"""Checks what --target asks for, and makes the specification of a ladder: a search on smaller models of one shape."""

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

from myllm.models.custom_model import CustomModelConfig, ModelConfig, settings_of, with_settings
from myllm.presets import PRESETS, matrix_params
from myllm.system.errors import InputError
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import BuiltinSearch
from tune.core.search_space import CUSTOM, Choice, Range
from tune.ladder.plan import Plan, Shape, fractions

REPORTS = 8  # of each training: a level's evaluations must not take longer than its steps
GROWING = ("n_layer", "n_head", "n_embd")  # settings of GPT-2's decoder that make it larger
NOT_BESIDE = (
    *("space", "range", "choices", "num_samples", "budget_tokens", "budget_seconds", "scheduler", "rungs", "grace_period"),
    *("reduction_factor", "rung_metric", "replicate_best", "audit_fraction", "searcher", "warm_start"),
)
"""options of other searches: a ladder searches rate and batch by a rule of its own"""
BELONG_TO_TARGET = ("target_tokens", "target_seconds", "target_share")
RATES = (1e-5, 1e-1)  # learning rates that a run of a ladder may have
DEFAULT_SHARE = 0.05  # of the target's compute


def check_flags(options: SearchOptions) -> None:
    """Raises InputError for options that do not go with --target, or that need it."""
    if not options.target:
        alone = next((name for name in BELONG_TO_TARGET if getattr(options, name) is not None), None)
        if alone:
            raise InputError(f"--{alone} says how the target is trained; name it, too: --target PRESET or n_layer=... ")
        return
    if options.is_own_program:
        raise InputError("--target does not go with --command or --trainable: a ladder knows the built-in training's sizes")
    usual = SearchOptions()
    if beside := [name for name in NOT_BESIDE if getattr(options, name) != getattr(usual, name)]:
        raise InputError(
            f"--{beside[0]} does not go with --target: a ladder searches learning rate and batch by a rule of its own"
        )
    if options.target_tokens and options.target_seconds:
        raise InputError("--target_tokens and --target_seconds both say how long the target trains; leave one out")
    if is_preset(options):
        if options.target[0] not in PRESETS:
            raise InputError(f"--target {options.target[0]} is no preset; known are {', '.join(PRESETS)}, or n_layer=...")
        if options.model:
            raise InputError(f"--target {options.target[0]} with --model: name the settings that grow, such as n_layer=12")
        if options.preset not in (usual.preset, options.target[0]):
            raise InputError(f"--preset does not go with --target {options.target[0]}, which is a preset itself")
    elif not (options.target_tokens or options.target_seconds):
        raise InputError("--target of settings has no usual length: give --target_tokens or --target_seconds")


def is_preset(options: SearchOptions) -> bool:
    """True if --target is one word that names no setting."""
    return len(options.target) == 1 and "=" not in options.target[0]


def target_spec(options: SearchOptions, tokens: int | None, cache_dir: Path) -> BuiltinSearch:
    """The specification of a search at the target's own size, trained on `tokens`; None: on the preset's.

    Raises InputError, one line, for the first fault.
    """
    usual = SearchOptions()
    plain: dict[str, Any] = {name: getattr(usual, name) for name in ("target", *BELONG_TO_TARGET)}
    plain |= {"space": CUSTOM, "choices": ("batch_size=1,2",), "range": (f"learning_rate={RATES[0]}:{RATES[1]}",)}
    size = {"preset": options.target[0]} if is_preset(options) else {"set": (*options.set, *options.target)}
    return resolve_search(dataclasses.replace(options, **plain, **size, budget_tokens=tokens), cache_dir)


def shapes(options: SearchOptions, target: BuiltinSearch) -> tuple[Shape, list[Shape]]:
    """The target's shape, and all smaller models of the same shape, the smallest first.

    Raises InputError for a setting that can't grow, and where the smaller settings make no smaller model.
    """
    model = target.model
    known = settings_of(model)
    names = GROWING if is_preset(options) else [text.partition("=")[0].strip() for text in options.target]
    for name in names:
        if type(known[name]) is not int or known[name] < 1 or (name not in GROWING and not _is_custom(model)):
            few = (
                f"; of GPT-2's decoder {', '.join(GROWING)} grow"
                if not _is_custom(model)
                else "; it must be a whole number"
            )
            raise InputError(f"--target {name}={known[name]}: {name} is no setting that grows with the model{few}")
    sizes = [*fractions({name: known[name] for name in names}), {name: known[name] for name in names}]
    found = []
    for size in sizes:
        with contextlib.suppress(InputError):  # a level whose heads and channels do not go together is left out
            found.append(_shape(with_settings(model, size), size))
    for smaller, larger in itertools.pairwise(found):
        if smaller.params >= larger.params:
            raise InputError(f"--target: {', '.join(names)} make the model no larger; name the settings that grow")
    return found[-1], found[:-1]


def _is_custom(model: ModelConfig) -> bool:
    return isinstance(model, CustomModelConfig)


def _shape(model: ModelConfig, size: dict[str, int]) -> Shape:
    """Counts the parameters of a model: those of the matrices of GPT-2's decoder, and those of its head.

    Of a custom model those with a side of the vocabulary's length count as its head, all others as the model.
    """
    if not isinstance(model, CustomModelConfig):
        return Shape(size, matrix_params(model), model.vocab_size * model.n_embd)
    from myllm.models.model_check import check_builds, parameter_shapes  # here: torch takes long

    check_builds(model)
    parameters = parameter_shapes(model).values()
    head = [shape.numel() for shape in parameters if model.vocab_size in shape]
    return Shape(size, max(1, sum(shape.numel() for shape in parameters) - sum(head)), max(head, default=0))


def with_plan(options: SearchOptions, target: BuiltinSearch, plan: Plan) -> BuiltinSearch:
    """The specification of the ladder: the target's, with the user's `options`, the plan and the ranges of its runs.

    Raises InputError where the training data can't fill the target's largest batch.
    """
    rate, batch = plan.centre(plan.target)
    most, windows = plan.target.most_batch, target.data.fingerprint["train"]["tokens"] // plan.window
    if windows < most:
        raise InputError(
            f"{' '.join(options.train_file)}: its {windows} windows of {plan.window} tokens are fewer than the target's"
            f" largest batch, {most}; give more data, or a smaller --target_tokens"
        )
    length: dict[str, Any] = {"budget_tokens": plan.target.tokens, "batch_size": batch}
    return dataclasses.replace(
        target,
        options=dataclasses.replace(options, preset=target.options.preset),
        training=dataclasses.replace(target.training, **length),
        report_tokens=plan.target.tokens // REPORTS,
        ranges={"learning_rate": Range(*RATES), "batch_size": Choice(tuple(2**i for i in range(most.bit_length())))},
        baseline={"learning_rate": rate, "batch_size": batch},
        ladder=plan,
    )
