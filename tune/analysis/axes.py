"""Hyper-parameters as axes: the place of each value between 0 and 1, and the scale."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune.config.spec import SearchSpec
from tune.core.search_space import LOG, Choice, Range


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
    def numbers(self) -> list[float] | None:
        """The values of a list of numbers; None for words and for a range."""
        values = self.values_of.values if isinstance(self.values_of, Choice) else ("",)
        return None if any(isinstance(value, (bool, str)) for value in values) else list(values)

    @property
    def is_category(self) -> bool:
        """True if the values are words."""
        return bool(self.values) and self.numbers is None

    @property
    def is_log(self) -> bool:
        """True if the scale is logarithmic: that of the range, or of a list whose values multiply, as batch sizes do."""
        if isinstance(self.values_of, Range):
            return self.values_of.scale == LOG
        numbers = self.numbers
        return bool(numbers and len(numbers) > 2 and min(numbers) > 0 and max(numbers) >= 4 * min(numbers))

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
