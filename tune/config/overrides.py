"""The user's own ranges: --range, --choices and --set, or the table [space] of an experiment's file, over a named space.

[space]
base = "v2"                      # the named space; --space is the same
learning_rate = "1e-4:3e-3"      # a range
batch_size = [8, 16, 32]         # choices
warmup_ratio = 0.02              # fixed
"""

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from myllm.config import GPTConfig, Preset, TrainConfig, get_preset, parse_value, value_type
from myllm.models.custom_model import ModelConfig, settings_of
from myllm.system.errors import InputError
from tune.config.options import SearchOptions
from tune.core.search_space import CUSTOM, LINEAR, LOG, LOG_BELOW_ONE, SPACES, Choice, Range, Ranges, Space, get_space
from tune.text.format import format_value

FLAGS = {"range": "MIN:MAX", "choices": "VALUE,VALUE", "set": "VALUE"}
V2_ONLY = ("warmup_ratio", "min_lr_ratio", "schedule", "cooldown_ratio", "clip_norm")
TRAINED = ("learning_rate", "batch_size", *V2_ONLY, "weight_decay", "beta1", "beta2", "beta2_half_life")
SHAPE = ("n_layer", "n_head", "n_embd", "dropout", "bias", "activation")
HOW = ("micro_batch_size", "dtype", "float32_matmul", "compile")
ONLY_FIXED = (*HOW, "block_size")
"""what may be set, but is not searched: how it is computed changes a loss by rounding alone, the window what it means"""
SCALES = dict.fromkeys(
    ("learning_rate", "warmup_ratio", "min_lr_ratio", "clip_norm", "weight_decay", "beta2_half_life", "n_embd"), LOG
) | dict.fromkeys(("beta1", "beta2"), LOG_BELOW_ONE)
"""the scale on which equal steps matter alike; linear for others"""
MOST_SHAPES = 1000  # combinations of a model's settings that are checked


@dataclass(frozen=True)
class Override:
    """What the user says of one hyper-parameter."""

    flag: str
    """as typed"""
    values: Range | Choice | None = None
    """what it is drawn from"""
    fixed: Any = None
    """its value where it is not drawn"""


def kinds(model: ModelConfig) -> dict[str, type]:
    """The type of each hyper-parameter that may be named, by name; the model's own after the training's."""
    trained = {field.name: value_type(field) for field in dataclasses.fields(TrainConfig)}
    settings = settings_of(model)
    names = (*SHAPE, "block_size") if isinstance(model, GPTConfig) else settings
    return {name: trained[name] for name in (*TRAINED, *HOW)} | {n: type(settings[n]) for n in names}


@functools.lru_cache(maxsize=64)
def _parse(texts: tuple[tuple[str, ...], ...], known: tuple[tuple[str, type], ...]) -> dict[str, Override]:
    found: dict[str, Override] = {}
    types = dict(known)
    for kind, items in zip(FLAGS, texts, strict=True):
        for text in items:
            name, equals, value = text.partition("=")
            name, flag = name.strip(), f"--{kind} {text}"
            if not equals or not value.strip():
                raise InputError(f"{flag}: write NAME={FLAGS[kind]}")
            if name not in types:
                initials = [known for known in types if "".join(word[:1] for word in known.split("_")) == name]  # lr, wd
                near = initials or difflib.get_close_matches(name, types, 3, 0.5)
                known = f"near are {', '.join(near)}" if near else f"known are {', '.join(types)}"
                raise InputError(f"{flag}: there is no {name!r} to set; {known}")
            if name in found:
                raise InputError(f"{flag}: {found[name].flag} says it already; leave one out")
            if name in ONLY_FIXED and kind != "set":
                raise InputError(f"{flag}: {name} can't be searched; set it with --set {name}=VALUE")
            try:
                found[name] = Override(flag, **_values(kind, name, types[name], value.strip()))
            except ValueError as error:
                raise InputError(f"{flag}: {error}") from None
    return found


def overrides(config: SearchOptions, model: ModelConfig) -> dict[str, Override]:
    """What the user says, by name. Raises InputError for the first thing that can't be."""
    return _parse(tuple(getattr(config, kind) for kind in FLAGS), tuple(kinds(model).items()))


def _values(kind: str, name: str, of: type, text: str) -> dict[str, Any]:
    """`text` read as Asked's values or fixed. Raises ValueError for what can't be."""
    if kind == "set":
        return {"fixed": parse_value(of, text)}
    if kind == "choices":
        values = [parse_value(of, part.strip()) for part in text.split(",")]
        if len(set(values)) != len(values):
            raise ValueError("a value stands there twice")
        if len(values) == 1:
            raise ValueError(f"one value is no choice; use --set {name}={text}")
        return {"values": Choice(tuple(values if of is str else sorted(values)))}
    if of in (str, bool):
        raise ValueError(f"{name} is no number; list its values with --choices {name}=...")
    low, high, *scale = (part.strip() for part in text.split(":")) if ":" in text else (text, "")
    if not high or [word.lower() for word in scale] not in ([], ["log"], ["linear"]):
        raise ValueError(f"write {name}=MIN:MAX, or MIN:MAX:log, or MIN:MAX:linear")
    low, high = parse_value(of, low), parse_value(of, high)
    if low >= high:
        raise ValueError(f"{low:g} is not less than {high:g}")
    own = SCALES.get(name, LINEAR)
    scale = own if not scale else LINEAR if scale[0].lower() == "linear" else LOG_BELOW_ONE if own == LOG_BELOW_ONE else LOG
    if name == "batch_size":
        powers = ",".join(str(2**i) for i in range(20) if low <= 2**i <= high) or "8,16"
        raise ValueError(f"batch sizes must share the report marks: list them, such as --choices batch_size={powers}")
    if (scale == LOG and low <= 0) or (scale == LOG_BELOW_ONE and high >= 1):
        right = "begins above 0" if scale == LOG else "ends below 1"
        raise ValueError(f"a {scale} range {right}; or say {name}={low:g}:{high:g}:linear")
    if scale == LOG and not math.isfinite(high / low):
        raise ValueError(f"{low:g} to {high:g} is wider than numbers reach")
    return {"values": Range(low, high, scale, of is int)}


def fixed(config: SearchOptions, model: ModelConfig) -> dict[str, Any]:
    """The values that are not searched, by name."""
    return {name: said.fixed for name, said in overrides(config, model).items() if said.values is None}


def space_with_overrides(config: SearchOptions, model: ModelConfig) -> Space:
    """The named space with the user's ranges in place of its own, and what is fixed left out.

    The reference is the preset's, or the model's own, where it lies within the user's ranges, else the nearest value there.
    """
    base, said = get_space(config.space), overrides(config, model)
    if not said:
        return base

    def ranges(preset: Preset) -> Ranges:
        named = {name: one.values for name, one in said.items()}
        return {name: values for name, values in (base.ranges(preset) | named).items() if values is not None}

    def values(preset: Preset) -> dict[str, Any]:
        found = base.values(preset) | settings_of(model)
        return found | {name: one.values.nearest(found[name]) for name, one in said.items() if one.values}

    return Space(base.version, ranges, values)


def moved(config: SearchOptions, preset: Preset, model: ModelConfig) -> dict[str, Any]:
    """The reference values that lie outside of the user's ranges, by name: trial 0 has the nearest instead."""
    before, now = (
        get_space(config.space).values(preset) | settings_of(model),
        space_with_overrides(config, model).values(preset),
    )
    return {name: before[name] for name in space_with_overrides(config, model).ranges(preset) if before[name] != now[name]}


def check_space(config: SearchOptions, preset: Preset, model: ModelConfig) -> None:
    """Raises InputError for ranges that contradict each other or the space, or that change nothing."""
    said, space = overrides(config, model), space_with_overrides(config, model)
    ranges = space.ranges(preset)
    if not ranges:
        raise InputError(f"--space {config.space}: nothing is left to search; name something with --range or --choices")
    for name, one in said.items():
        if name in V2_ONLY and space.version == "v1":
            raise InputError(
                f"{one.flag}: the training loop of space {config.space} has no {name}; use --space v2 or {CUSTOM}"
            )
    for name, other in (("beta2", "beta2_half_life"), ("beta2_half_life", "beta2")):
        if name in said and (other in said or (name == "beta2" and other in ranges)):
            raise InputError(f"{said[name].flag}: beta2_half_life, which is set too, decides beta2; leave one out")
    schedules = (
        ranges["schedule"].values if "schedule" in ranges else [said["schedule"].fixed if "schedule" in said else ""]
    )
    if "cooldown_ratio" in said and "wsd" not in schedules:
        raise InputError(f"{said['cooldown_ratio'].flag}: only schedule wsd has a cooldown; add --set schedule=wsd")


def extremes(config: SearchOptions, preset: Preset, model: ModelConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(flags, hyper-parameters) at the ends of the user's ranges, for checks: each of the training's own, all of them high
    together, and the model's in all combinations."""
    said, space = overrides(config, model), space_with_overrides(config, model)
    ranges, values = space.ranges(preset), space.values(preset)
    reference = {name: values[name] for name in ranges}
    settings = settings_of(model)
    for name, one in said.items():
        for value in _ends(name, one.values) if one.values and name not in settings else ():
            yield one.flag, reference | {name: value}
    if said:
        highest = {name: _ends(name, values)[-1] for name, values in ranges.items() if name not in settings}
        highest |= {"schedule": "wsd"} if "schedule" in ranges and "wsd" in ranges["schedule"].values else {}
        yield "the highest of all ranges together", reference | highest
    shapes = {name: _ends(name, one.values) for name, one in said.items() if one.values and name in settings}
    flags = ", ".join(said[name].flag for name in shapes)
    for combination in itertools.islice(itertools.product(*shapes.values()), MOST_SHAPES) if shapes else ():
        yield flags, reference | dict(zip(shapes, combination, strict=True))


def _ends(name: str, values: Range | Choice) -> tuple:
    """What of a range must be looked at to know that all of it can be."""
    if isinstance(values, Choice):
        return values.values
    return tuple(range(values.low, values.high + 1)) if name in ("n_embd", "n_head") else (values.low, values.high)


def list_spaces(preset_name: str) -> str:
    """What each space searches, with its ranges for a preset, and what else may be searched."""
    lines = [f"for preset {preset_name}; the reference is trial 0"]
    preset = get_preset(preset_name)
    for name, space in SPACES.items():
        reference = space.values(preset)
        lines.append(f"{name}: training loop {space.version}")
        for parameter, values in space.ranges(preset).items():
            lines.append(f"  {parameter:16} {values}; reference {format_value(reference[parameter])}")
    lines.append(f"yours, over any of these or --space {CUSTOM}: --range, --choices and --set of")
    return "\n".join([*lines, f"  {', '.join(kinds(preset.model(1)))}"])


# The same in a file


def from_table(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The flags that a table [space] stands for. Raises InputError."""
    flags: dict[str, Any] = {kind: [] for kind in FLAGS}
    for name, value in table.items():
        if name == "base":
            flags["space"] = value
        elif isinstance(value, list):
            flags["choices"].append(f"{name}={','.join(map(_text, value))}")
        elif isinstance(value, int | float | str):
            flags["range" if isinstance(value, str) and ":" in value else "set"].append(f"{name}={_text(value)}")
        else:
            raise InputError(f'{where}: space.{name} is {value!r}; it must be "MIN:MAX", a list of values, or one value')
    return flags


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def merge(file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of an experiment's file with the flags beside it: these win, ranges name by name."""

    def name(text: str) -> str:
        return text.partition("=")[0].strip()

    named = {name(text) for kind in FLAGS for text in given.get(kind, ())}
    both = {
        kind: [text for text in file.get(kind, ()) if name(text) not in named] + list(given.get(kind, ()))
        for kind in FLAGS
        if kind in file or kind in given
    }
    return file | given | both
