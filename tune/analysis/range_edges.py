"""Finds the hyper-parameters of the best configuration that lie at the end of their range."""

import math
from dataclasses import dataclass
from typing import Any

from tune.analysis.axes import Axis
from tune.config.overrides import SCALES
from tune.core.search_space import LINEAR, LOG, LOG_BELOW_ONE, Range

EDGE = 0.05  # share of a range, at each end, that counts as its edge
BELOW_ONE = ("dropout", "beta1", "beta2", "warmup_ratio", "min_lr_ratio", "cooldown_ratio")


@dataclass(frozen=True)
class RangeEdge:
    """A hyper-parameter of a configuration that lies at the end of its range."""

    axis: Axis
    value: float
    end: float
    flag: str
    """flag and value for search.py that search beyond the end"""


def edges(axes: list[Axis], config: dict[str, Any]) -> list[RangeEdge]:
    """Returns the ranges at whose edge `config` lies; without those beyond which nothing lies."""
    found = []
    for axis in axes:
        values, value = axis.values_of, config[axis.name]
        edge = _range_edge(axis, values, value) if isinstance(values, Range) else _choice_edge(axis, value)
        found += [edge] if edge else []
    return found


def _choice_edge(axis: Axis, value: Any) -> RangeEdge | None:
    """Returns the edge of a list of numbers, whose flag adds up to two numbers beyond the end."""
    numbers, place = axis.numbers or [], axis.place(value)
    if len(numbers) < 3 or 0 < place < 1 or axis.name == "n_head":  # n_head must divide the width
        return None
    is_low = place == 0
    end, kept = (numbers[0], numbers[:3]) if is_low else (numbers[-1], numbers[-3:])
    step = numbers[1] / numbers[0] if axis.is_log else numbers[1] - numbers[0]
    beyond = [number for number in _continued(end, step, axis.is_log, is_low) if _is_possible(number, axis.name, numbers)]
    if not beyond:
        return None
    values = ",".join(f"{number:g}" for number in sorted([*beyond, *kept]))
    return RangeEdge(axis, value, end, f"--choices {axis.name}={values}")


def _continued(end: float, step: float, is_log: bool, is_low: bool) -> list[float]:
    """Returns the two numbers that follow `end`, downwards where `is_low`; `step` is a factor where `is_log`."""
    if is_log:
        first = end / step if is_low else end * step
        return [first, first / step if is_low else first * step]
    first = end - step if is_low else end + step
    return [first, first - step if is_low else first + step]


def _is_possible(number: float, name: str, numbers: list[float]) -> bool:
    """True if a hyper-parameter can have the value `number`: positive, below its limit, and whole if all `numbers` are."""
    whole = all(isinstance(one, int) for one in numbers)
    return 0 < number < (1 if name in BELOW_ONE else math.inf) and (number == int(number) or not whole)


def _range_edge(axis: Axis, drawn_from: Range, value: float) -> RangeEdge | None:
    """Returns the edge of a range, whose flag names a range as wide as before with `value` at its middle."""
    place = axis.place(value)
    is_low = place < 0.5
    end = drawn_from.low if is_low else drawn_from.high
    is_inside = EDGE < place < 1 - EDGE and not (drawn_from.integer and value == end)
    if is_inside or (is_low and end == 0):
        return None
    low, high = _moved(axis.name, drawn_from, value)
    digits = ".6g" if drawn_from.scale == LOG_BELOW_ONE else ".2g"
    ends = f"{low:{digits}}:{high:{digits}}"
    if drawn_from.integer:
        ends = f"{max(1, round(low))}:{math.ceil(high)}"
    usual = SCALES.get(axis.name, LINEAR)
    scale = "" if drawn_from.scale == usual else ":linear" if drawn_from.scale == LINEAR else ":log"
    return RangeEdge(axis, value, end, f"--range {axis.name}={ends}{scale}")


def _moved(name: str, drawn_from: Range, value: float) -> tuple[float, float]:
    """Returns both ends of a range as wide as `drawn_from` around `value`, within the hyper-parameter's limits."""
    low, high = drawn_from.low, drawn_from.high
    if drawn_from.scale == LOG:
        half = (high / low) ** 0.5
        first, last = value / half, value * half
    elif drawn_from.scale == LOG_BELOW_ONE:
        half = ((1 - low) / (1 - high)) ** 0.5
        first, last = max(0.0, 1 - (1 - value) * half), 1 - (1 - value) / half
    else:
        half = (high - low) / 2
        first, last = value - half, value + half
        first = max(0.0, first) if low >= 0 else first
        last = min(last, (1 + high) / 2) if name in ("beta1", "beta2") else last
    is_share = name.endswith("_ratio") or name == "dropout"
    return first, min(last, 0.9) if is_share else last
