"""The search spaces. A published space is never edited: a better one gets a new name.

Every range lies around the preset's baseline values, so that one space serves 0.1M and 124M parameters.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from myllm.presets import Preset
from myllm.system.errors import InputError

LINEAR, LOG, LOG_BELOW_ONE = "linear", "log", "log of 1 - x"
"""scales: uniform in the value x, in log(x), or in log(1 - x) for rates close to 1"""


@dataclass(frozen=True)
class Range:
    """A uniform distribution on `scale` from `low` to `high`; of whole numbers if `integer`."""

    low: float
    high: float
    scale: str = LOG
    integer: bool = False

    @property
    def _ends(self) -> tuple[float, float]:
        """The ends of the scale: an integer range has half a step around each of its numbers."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        return (1 - low, 1 - high) if self.scale == LOG_BELOW_ONE else (low, high)

    def from_unit(self, place: float) -> float:
        """The value at position `place` of the range, 0 <= place < 1."""
        low, high = self._ends
        if self.scale == LINEAR:
            value = low + place * (high - low)
        else:
            value = low * (high / low) ** place
            value = 1 - value if self.scale == LOG_BELOW_ONE else value
        return self.clip(round(value) if self.integer else value)

    def to_unit(self, value: float) -> float:
        """The position of `value` in the range, from 0 to 1."""
        (low, high), value = self._ends, self.clip(value)
        if self.scale == LINEAR:
            return (value - low) / (high - low)
        value = 1 - value if self.scale == LOG_BELOW_ONE else value
        return math.log(value / low) / math.log(high / low)

    def encode(self, value: float) -> tuple[float, ...]:
        """`value` as coordinates, whose distance to those of another value measures similarity."""
        return (self.to_unit(value),)

    def clip(self, value: float) -> float:
        """`value`, or the nearest end of the range, as an int or a float as the range's own values are."""
        nearest = min(max(value, self.low), self.high)
        return int(nearest) if self.integer else float(nearest)

    def encode_units(self, places: np.ndarray) -> np.ndarray:
        """(n, 1) coordinates of the values at `places` (n,)."""
        return np.array([self.to_unit(self.from_unit(float(p))) for p in places] if self.integer else places)[:, None]

    def __str__(self) -> str:
        ends = f"{self.low} to {self.high}" if self.integer else f"{self.low:.3g} to {self.high:.3g}"
        return ends if self.scale == LINEAR else f"{ends} ({self.scale})"


@dataclass(frozen=True)
class Choice:
    """A uniform distribution over `values`."""

    values: tuple[Any, ...]

    def from_unit(self, place: float) -> Any:
        """The value at position `place` of the list, 0 <= place < 1."""
        return self.values[int(place * len(self.values))]

    @property
    def ordered(self) -> bool:
        """True if all values are numbers: neighbours, such as batches of 16 and 32, are then similar."""
        return all(isinstance(value, (int, float)) for value in self.values)

    def index(self, value: Any) -> int:
        """The index of `value`, or of the number next to it. Raises ValueError for what is no number and not among them."""
        if not self.ordered:
            return self.values.index(value)
        return min(range(len(self.values)), key=lambda index: abs(self.values[index] - value))

    def to_unit(self, value: Any) -> float:
        """The position of `value` in the list, from 0 to 1."""
        return self.index(value) / max(1, len(self.values) - 1)

    def encode(self, value: Any) -> tuple[float, ...]:
        """`value` as coordinates: the position of a number; of other values points at a distance of 1 from each other."""
        if self.ordered:
            return (self.to_unit(value),)
        return tuple(0.5**0.5 * (index == self.index(value)) for index in range(len(self.values)))

    def clip(self, value: Any) -> Any:
        """`value`, or the nearest number; of other values the first one where `value` is not in the list."""
        return self.values[self.index(value) if self.ordered or value in self.values else 0]

    def encode_units(self, places: np.ndarray) -> np.ndarray:
        """(n, k) coordinates of the values at `places` (n,)."""
        points = np.array([self.encode(value) for value in self.values])
        return np.take(points, (places * len(self.values)).astype(int), axis=0)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Ranges = dict[str, Range | Choice]
Config = dict[str, Any]  # the value of each hyper-parameter, by name


def range_from_json(values: dict[str, Any]) -> Range | Choice:
    """The Range or Choice whose fields `values` are. Raises TypeError or KeyError for anything else."""
    return Range(**values) if "low" in values else Choice(tuple(values["values"]))


def preset_values(preset: Preset) -> dict[str, Any]:
    """The baseline value of every hyper-parameter that a space may have, by name."""
    config = preset.training()
    half_life = config.tokens_per_step * math.log(0.5) / math.log(config.beta2)
    return dataclasses.asdict(preset.model(1)) | dataclasses.asdict(config) | {"beta2_half_life": half_life}


@dataclass(frozen=True)
class Space:
    """The training loop's version, with ranges and baseline values as functions of the preset."""

    version: str
    ranges: Callable[[Preset], Ranges]
    values: Callable[[Preset], dict[str, Any]] = preset_values
    """baseline values by name, of at least these hyper-parameters"""


def _v1(preset: Preset) -> Ranges:
    largest, smallest = 4 * preset.batch_size, max(1, preset.batch_size // 4)
    return {
        "learning_rate": Range(preset.learning_rate / 10, preset.learning_rate * 10),
        "batch_size": Choice(tuple(2**i for i in range(20) if smallest <= 2**i <= largest)),
    }


def _v2(preset: Preset) -> Ranges:
    return _v1(preset) | {"warmup_ratio": Range(0.003, 0.2), "clip_norm": Range(0.1, 10.0)}


def _v3(preset: Preset) -> Ranges:
    # beta2's half-life is centred on 10M tokens (Marek et al., arXiv 2507.07101) or, for short budgets, a tenth of them
    half_life = min(1e7, preset.budget_tokens / 10)
    return _v2(preset) | {
        "weight_decay": Range(0.01, 1.0),
        "beta2_half_life": Range(half_life / 10, half_life * 10),
        "schedule": Choice(("cosine", "wsd")),
        "min_lr_ratio": Choice((0.0, 0.01, 0.1)),
    }


SPACES = {"v1": Space("v1", _v1), "v2": Space("v2", _v2), "v3": Space("v2", _v3)}
CUSTOM = "custom"  # a space of nothing but what the user names


def get_space(name: str) -> Space:
    """The space called `name`. Raises InputError for an unknown one."""
    spaces = SPACES | {CUSTOM: Space("v2", lambda preset: {})}
    if name not in spaces:
        raise InputError(f"--space {name!r} is unknown; known are {', '.join(spaces)}")
    return spaces[name]


def sample(space: Space, preset: Preset, seed: int, index: int) -> dict[str, Any]:
    """The configuration of trial `index` in a named space: of index 0 the preset's baseline, else an even draw."""
    ranges = space.ranges(preset)
    if index > 0:
        return even_draw(ranges, seed, index)
    values = space.values(preset)
    return {name: values[name] for name in ranges}


def even_draw(ranges: Ranges, seed: int, index: int) -> dict[str, Any]:
    """The hyper-parameters of trial `index`: a pure function of its arguments, so that no draw is lost or repeated.

    Draws follow the additive recurrence of the generalized golden ratio (Roberts 2018), shifted at random by `seed`: they
    leave no holes, as independent draws would (Bousquet et al., arXiv 1706.03200).
    """
    ratio = 2.0
    for _ in range(64):  # to the root of ratio ** (dimensions + 1) == ratio + 1
        ratio = (1 + ratio) ** (1 / (len(ranges) + 1))
    steps = ratio ** -np.arange(1.0, len(ranges) + 1)
    places = (np.random.default_rng(seed).random(len(ranges)) + index * steps) % 1
    return {name: values.from_unit(float(place)) for (name, values), place in zip(ranges.items(), places, strict=True)}
