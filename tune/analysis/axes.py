"""Hyper-parameters as axes: the place of each value between 0 and 1, the scale, and values at the end of their range."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune.config.overrides import SCALES
from tune.config.spec import SearchSpec
from tune.core.search_space import LINEAR, LOG, LOG_BELOW_ONE, Choice, Range

EDGE = 0.05  # share of a range, at each end, that counts as its edge
BELOW_ONE = ("dropout", "beta1", "beta2", "warmup_ratio", "min_lr_ratio", "cooldown_ratio")


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter as an axis of a figure or of the response surface."""

    name: str
    values_of: Range | Choice

    @property
    def values(self) -> tuple[str, ...]:
        """The labels of a list's values; empty for a range."""
        return tuple(map(str, self.values_of.values)) if isinstance(self.values_of, Choice) else ()

    @property
    def numbers(self) -> list[float]:
        """The values of a list of numbers; empty for words and for a range."""
        values = self.values_of.values if isinstance(self.values_of, Choice) else ()
        return [] if any(isinstance(value, (bool, str)) for value in values) else list(values)

    @property
    def is_category(self) -> bool:
        """True if the values are words."""
        return bool(self.values) and not self.numbers

    @property
    def is_log(self) -> bool:
        """True if the scale is logarithmic: that of the range, or of a list whose values multiply, as batch sizes do."""
        if isinstance(self.values_of, Range):
            return self.values_of.scale == LOG
        numbers = self.numbers
        return len(numbers) > 2 and min(numbers) > 0 and max(numbers) >= 4 * min(numbers)

    def place(self, value: Any) -> float:
        """Returns the place of `value` on the axis, from 0 to 1."""
        return self.values_of.to_unit(value)

    def value(self, place: float) -> float:
        """Returns the number at `place`, from 0 to 1; for a list it may lie between two values."""
        if isinstance(self.values_of, Range):
            return self.values_of.from_unit(place)
        numbers = self.numbers or list(range(len(self.values)))
        scaled = np.log(numbers) if self.is_log else np.array(numbers)
        found = float(np.interp(place * (len(numbers) - 1), range(len(numbers)), scaled))
        return math.exp(found) if self.is_log else found


def axes_of(search: SearchSpec) -> list[Axis]:
    """Returns an axis for each hyper-parameter of a search."""
    return [Axis(name, values) for name, values in search.ranges.items()]


@dataclass(frozen=True)
class Edge:
    """A hyper-parameter of the best that lies at the end of its range."""

    hyper_parameter: str
    value: float  # of the best configuration
    end: float  # the end of the range
    search_next: str  # flag and value for tune/search.py


def edges(axes: list[Axis], config: dict[str, Any]) -> list[Edge]:
    """Returns the ranges at whose edge `config` lies; without those beyond which nothing lies."""
    found = []
    for axis in axes:
        values, value = axis.values_of, config[axis.name]
        edge = _range_edge(axis, values, value) if isinstance(values, Range) else _choice_edge(axis, value)
        found += [edge] if edge else []
    return found


def _choice_edge(axis: Axis, value: Any) -> Edge | None:
    """Returns the edge of a list of numbers, whose flag adds up to two numbers beyond the end."""
    numbers, place = axis.numbers, axis.place(value)
    if len(numbers) < 3 or 0 < place < 1 or axis.name == "n_head":  # n_head must divide the width
        return None
    end, kept = (numbers[0], numbers[:3]) if place == 0 else (numbers[-1], numbers[-3:])
    if axis.is_log:
        factor = numbers[1] / numbers[0]
        beyond = [end / factor, end / factor**2] if place == 0 else [end * factor, end * factor**2]
    else:
        step = numbers[0] - numbers[1] if place == 0 else numbers[1] - numbers[0]
        beyond = [end + step, end + 2 * step]
    limit = 1 if axis.name in BELOW_ONE else math.inf
    is_whole = all(isinstance(number, int) for number in numbers)
    beyond = [number for number in beyond if 0 < number < limit and (number == int(number) or not is_whole)]
    if not beyond:
        return None
    values = ",".join(f"{number:g}" for number in sorted([*beyond, *kept]))
    return Edge(axis.name, value, end, f"--choices {axis.name}={values}")


def _range_edge(axis: Axis, drawn_from: Range, value: float) -> Edge | None:
    """Returns the edge of a range, whose flag names a range as wide as before with `value` at its middle."""
    place = axis.place(value)
    is_low = place < 0.5
    end = drawn_from.low if is_low else drawn_from.high
    is_inside = EDGE < place < 1 - EDGE and not (drawn_from.integer and value == end)
    if is_inside or (is_low and end == 0):
        return None
    low, high = _moved(axis.name, drawn_from, value)
    digits = ".6g" if drawn_from.scale == LOG_BELOW_ONE else ".2g"
    ends = f"{max(1, round(low))}:{math.ceil(high)}" if drawn_from.integer else f"{low:{digits}}:{high:{digits}}"
    is_usual = drawn_from.scale == SCALES.get(axis.name, LINEAR)
    scale = "" if is_usual else ":linear" if drawn_from.scale == LINEAR else ":log"
    return Edge(axis.name, value, end, f"--range {axis.name}={ends}{scale}")


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
