"""The user's own ranges over a named space: --range, --choices and --set, or the table [space] of an experiment's file,
which has `base` for the space, "1e-4:3e-3" for a range, a list for choices, and any other value for a setting that is
fixed.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from myllm.config import GPTConfig, TrainConfig, parse_value, value_type
from myllm.models.custom_model import CustomModelConfig, ModelConfig, settings_of
from myllm.presets import Preset, get_preset
from myllm.system.errors import InputError
from myllm.text.format import format_value
from tune.config.options import SearchOptions
from tune.config.program_options import RESERVED, shown_type
from tune.core.search_space import CUSTOM, LINEAR, LOG, LOG_BELOW_ONE, SPACES, Choice, Range, Ranges, get_space

FLAGS = {"range": "MIN:MAX", "choices": "VALUE,VALUE", "set": "VALUE"}
V2_ONLY = ("warmup_ratio", "min_lr_ratio", "schedule", "cooldown_ratio", "clip_norm")
MUON = ("optimizer", "muon_lr_ratio")
TRAINED = ("learning_rate", "batch_size", *V2_ONLY, "weight_decay", "beta1", "beta2", "beta2_half_life", *MUON)
SHAPE = ("n_layer", "n_head", "n_embd", "dropout", "bias", "activation")
BLOCK = ("norm", "position", "mlp", "qk_norm", "n_kv_head", "tied")
HOW = ("micro_batch_size", "dtype", "float32_matmul", "compile")
ONLY_FIXED = (*HOW, "block_size")
"""settings that may be set but not searched: the window changes the meaning of a loss, the others only its rounding"""
SCALES = (
    dict.fromkeys(
        ("learning_rate", "muon_lr_ratio", "warmup_ratio", "min_lr_ratio", "clip_norm", "weight_decay", "beta2_half_life"),
        LOG,
    )
    | dict.fromkeys(("n_embd",), LOG)
    | dict.fromkeys(("beta1", "beta2"), LOG_BELOW_ONE)
)
"""the scale of a hyper-parameter on which equal steps have equal weight; all others are linear"""
LOG_FROM = 10  # highest over lowest value from which a range of a program of the user's own is logarithmic
MOST_SHAPES = 1000  # combinations of model settings that are checked before the start
RESOLVED = 101  # places of a range that floats must tell apart


@dataclass(frozen=True)
class Override:
    """One hyper-parameter's range or value that the user gave in place of the named space's."""

    flag: str  # the flag and its text, as typed
    values: Range | Choice | None = None  # the distribution to draw from; None for a fixed value
    fixed: Any = None  # the value, if it is not drawn


def kinds(model: ModelConfig) -> dict[str, type]:
    """The type of each hyper-parameter that may be overridden, by name. The model's settings follow the training's."""
    trained = {field.name: value_type(field) for field in dataclasses.fields(TrainConfig)}
    settings = settings_of(model)
    names = (*SHAPE, *BLOCK, "block_size") if isinstance(model, GPTConfig) else settings
    return {name: trained[name] for name in (*TRAINED, *HOW)} | {n: type(settings[n]) for n in names}


def parse_overrides(texts: Mapping[str, Sequence[str]], model: ModelConfig | None) -> dict[str, Override]:
    """The user's overrides by the name of their hyper-parameter, from the `texts` of each flag in FLAGS.

    A program of the user's own has no `model`: its hyper-parameters have any name, and the type that their text shows.
    Raises InputError for the first text that can't be.
    """
    types = kinds(model) if model else {}
    found: dict[str, Override] = {}
    for kind, text in [(flag, text) for flag in FLAGS for text in texts.get(flag, ())]:
        name, equals, value = text.partition("=")
        name, flag = name.strip(), f"--{kind} {text}"
        if not equals or not value.strip():
            raise InputError(f"{flag}: write NAME={FLAGS[kind]}")
        if model is None:
            if not name.isidentifier() or name in RESERVED:
                raise InputError(f"{flag}: {name!r} can't be a name; {', '.join(RESERVED)} are the search's own")
            types[name] = shown_type(value)
        if name not in types:
            initials = [known for known in types if "".join(word[:1] for word in known.split("_")) == name]  # lr, wd
            near = initials or difflib.get_close_matches(name, types, 3, 0.5)
            known = f"near are {', '.join(near)}" if near else f"known are {', '.join(types)}"
            raise InputError(f"{flag}: there is no {name!r} to set; {known}")
        if name in found:
            raise InputError(f"{flag}: {found[name].flag} says it already; leave one out")
        if model and name in ONLY_FIXED and kind != "set":
            raise InputError(f"{flag}: {name} can't be searched; set it with --set {name}=VALUE")
        try:
            found[name] = Override(flag, **_values(kind, name, types[name], value.strip(), model is None))
        except ValueError as error:
            why = _why_whole(kind, name, model, value.strip()) if model else ""
            raise InputError(f"{flag}: {error}{why}") from None
    return found


def _why_whole(kind: str, name: str, model: ModelConfig, text: str) -> str:
    """Says why a custom model's setting takes no fraction, if `text` would be right for one; otherwise empty."""
    default = settings_of(model).get(name)
    if not isinstance(model, CustomModelConfig) or type(default) is not int or name == "block_size":
        return ""
    try:
        _values(kind, name, float, text)
    except ValueError:
        return ""
    return f"; its default {default} makes {name} whole: write {default}.0 in `settings` of {model.source} for fractions"


def _values(kind: str, name: str, of: type, text: str, is_own_program: bool = False) -> dict[str, Any]:
    """The Override's `values` or `fixed` that `text` stands for. Raises ValueError if it is malformed.

    A range of a program of the user's own is logarithmic where it spans a factor of LOG_FROM.
    """
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
    first, _, rest = text.partition(":")
    last, *scales = (part.strip().lower() for part in rest.split(":"))
    if not last or scales not in ([], ["log"], ["linear"]):
        raise ValueError(f"write {name}=MIN:MAX, or MIN:MAX:log, or MIN:MAX:linear")
    low, high = parse_value(of, first), parse_value(of, last)
    if low >= high:
        cure = f"; for one value: --set {name}={first}" if low == high else ""
        raise ValueError(f"{low:g} is not less than {high:g}{cure}")
    scale = SCALES.get(name, LINEAR)
    if is_own_program:
        scale = LOG if low > 0 and high >= LOG_FROM * low else LINEAR
    if "linear" in scales:
        scale = LINEAR
    elif "log" in scales and scale == LINEAR:
        scale = LOG
    if name == "batch_size" and not is_own_program:
        powers = ",".join(str(2**i) for i in range(20) if low <= 2**i <= high) or "8,16"
        raise ValueError(f"batch sizes must share the report marks: list them, such as --choices batch_size={powers}")
    if (scale == LOG and low <= 0) or (scale == LOG_BELOW_ONE and high >= 1):
        right = "begins above 0" if scale == LOG else "ends below 1"
        raise ValueError(f"a {scale} range {right}; or say {name}={low:g}:{high:g}:linear")
    if not math.isfinite(high / low if scale == LOG else high - low):
        raise ValueError(f"{low:g} to {high:g} is wider than numbers reach")
    found = Range(low, high, scale, of is int)
    if not _is_resolved(found):
        linear = scale != LINEAR and _is_resolved(dataclasses.replace(found, scale=LINEAR))
        cure = f"say {name}={first}:{last}:linear" if linear else f"use --set {name}={first}"
        raise ValueError(f"too narrow: floats can't tell its values apart; {cure}")
    return {"values": found}


def _is_resolved(values: Range) -> bool:
    """True if floats tell the values at RESOLVED evenly spaced places apart, or if the values are whole numbers."""
    return values.integer or len({values.from_unit(index / (RESOLVED - 1)) for index in range(RESOLVED)}) == RESOLVED


@dataclass(frozen=True, kw_only=True)
class SearchedSpace:
    """The hyper-parameters that a search draws, and those that it fixes."""

    ranges: Ranges  # the distribution of each hyper-parameter, by name: the named space's, the user's own in their place
    baseline: dict[str, Any]
    """the value that trial 0 has of each: the preset's or the model's own, or the nearest within the user's range"""
    fixed: dict[str, Any]  # the values that the user set, by name
    clipped_baseline: dict[str, Any]
    """the preset's or the model's own values that lie outside of the user's ranges, by name"""

    def values_of(self, name: str, unset: Any) -> tuple[Any, ...]:
        """The values that trials may have of a hyper-parameter which is no range; `unset` if the space does not name it."""
        drawn = self.ranges.get(name)
        return drawn.values if isinstance(drawn, Choice) else (self.fixed.get(name, unset),)


def preset_at(options: SearchOptions, model: ModelConfig, overrides: Mapping[str, Override]) -> Preset:
    """Returns the preset of `options` with the baseline of their budget, of the model, and of the user's batch sizes."""
    preset = get_preset(options.preset)
    budget, shape = options.budget_tokens or preset.budget_tokens, model if isinstance(model, GPTConfig) else None
    preset, batch = preset.at(budget, shape), overrides.get("batch_size")
    if batch is None:
        return preset
    windows = int(batch.fixed if batch.values is None else batch.values.clip(preset.batch_size))
    return dataclasses.replace(preset, learning_rate=preset.at(budget, shape, windows).learning_rate)


def searched_space(
    options: SearchOptions, model: ModelConfig, overrides: Mapping[str, Override], preset: Preset
) -> SearchedSpace:
    """Returns the space that `options` name around the baseline of `preset`, with the user's `overrides`."""
    base = get_space(options.space)
    fixed = {name: one.fixed for name, one in overrides.items() if one.values is None}
    own = {name: one.values for name, one in overrides.items() if one.values is not None}
    ranges = {name: values for name, values in (base.ranges(preset) | own).items() if name not in fixed}
    usual = base.values(preset) | settings_of(model)
    if isinstance(model, GPTConfig):
        usual["n_kv_head"] = model.kv_heads
    baseline = {name: own[name].clip(usual[name]) if name in own else usual[name] for name in ranges}
    clipped = {name: usual[name] for name in ranges if usual[name] != baseline[name]}
    return SearchedSpace(ranges=ranges, baseline=baseline, fixed=fixed, clipped_baseline=clipped)


def check_space(options: SearchOptions, space: SearchedSpace, overrides: Mapping[str, Override]) -> None:
    """Raises InputError for overrides that contradict each other or the space, or that change nothing."""
    if not space.ranges:
        raise InputError(f"--space {options.space}: nothing is left to search; name something with --range or --choices")
    if get_space(options.space).version == "v1" and (without := [name for name in V2_ONLY if name in overrides]):
        raise InputError(
            f"{overrides[without[0]].flag}: the training loop of space {options.space} has no {without[0]}; "
            f"use --space v2 or {CUSTOM}"
        )
    if "beta2" in overrides and "beta2_half_life" in space.ranges | space.fixed:
        raise InputError(f"{overrides['beta2'].flag}: beta2_half_life, which is set too, decides beta2; leave one out")
    if "cooldown_ratio" in overrides and "wsd" not in space.values_of("schedule", ""):
        raise InputError(f"{overrides['cooldown_ratio'].flag}: only schedule wsd has a cooldown; add --set schedule=wsd")
    if "muon_lr_ratio" in overrides and "muon" not in space.values_of("optimizer", "adamw"):
        raise InputError(f"{overrides['muon_lr_ratio'].flag}: only optimizer muon has it; add --set optimizer=muon")


def extremes(
    space: SearchedSpace, overrides: Mapping[str, Override], settings: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (flags, hyper-parameters) to check before the search starts: each range of the training at its ends, then all
    high together, and the model's ranges at their ends in all combinations, up to MOST_SHAPES.
    """
    searched = {name: (one.flag, _ends(name, one.values)) for name, one in overrides.items() if one.values}
    for name, (flag, ends) in searched.items():
        for value in ends if name not in settings else ():
            yield flag, space.baseline | {name: value}
    if overrides:  # of schedules, wsd is the highest: its cooldown must not begin before the warm-up ends
        highest = {name: max(_ends(name, values)) for name, values in space.ranges.items() if name not in settings}
        yield "the highest of all ranges together", space.baseline | highest
    shapes = {name: ends for name, (_, ends) in searched.items() if name in settings}
    flags = ", ".join(searched[name][0] for name in shapes)
    for combination in itertools.islice(itertools.product(*shapes.values()), MOST_SHAPES) if shapes else ():
        yield flags, space.baseline | dict(zip(shapes, combination, strict=True))


def _ends(name: str, values: Range | Choice) -> tuple[Any, ...]:
    """The values of a range that must be checked for all of the range to be sound."""
    if isinstance(values, Choice):
        return values.values
    if name in ("n_embd", "n_head", "n_kv_head"):  # whether one divides the other is another question at each number
        return tuple(range(int(values.low), int(values.high) + 1))
    return values.low, values.high


def list_spaces(preset_name: str, budget_tokens: int | None = None) -> str:
    """Returns the text of --list_spaces: each space's ranges for a preset and a budget, and all hyper-parameters' names.

    Without `budget_tokens` the budget is the preset's own.
    """
    preset = get_preset(preset_name)
    preset = preset.at(budget_tokens or preset.budget_tokens)
    lines = [f"for preset {preset_name} and {preset.budget_tokens:,} tokens a training; the baseline is trial 0"]
    for name, space in SPACES.items():
        reference = space.values(preset)
        lines.append(f"{name}: training loop {space.version}")
        for parameter, values in space.ranges(preset).items():
            lines.append(f"  {parameter:16} {values}; baseline {format_value(reference[parameter])}")
    lines.append(f"yours, over any of these or --space {CUSTOM}: --range, --choices and --set of")
    return "\n".join([*lines, f"  {', '.join(kinds(preset.model(1)))}"])


def from_table(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The flags that a table [space] stands for. Raises InputError, which begins with `where`."""
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
    """The settings of an experiment's `file` and the flags `given` beside it. Flags win, ranges name by name."""

    def name(text: str) -> str:
        return text.partition("=")[0].strip()

    named = {name(text) for kind in FLAGS for text in given.get(kind, ())}
    both = {
        kind: [text for text in file.get(kind, ()) if name(text) not in named] + list(given.get(kind, ()))
        for kind in FLAGS
        if kind in file or kind in given
    }
    return file | given | both
