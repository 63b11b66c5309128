"""The search spaces. A published space is never edited: a better one gets a new name.

Every range is around the preset's reference values, so one space serves 0.1M and 124M parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from myllm.config import Preset
from myllm.errors import InputError


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm, from `low` to `high`."""

    low: float
    high: float
    ordered = False
    """whether these are numbers to choose from"""

    def at(self, place: float) -> float:
        """The value at `place` of the range, 0 <= place < 1."""
        return self.low * (self.high / self.low) ** place

    def place(self, value: float) -> float:
        """Where `value` lies in the range, from 0 to 1; the range's end for one beyond it."""
        return min(max(math.log(value / self.low) / math.log(self.high / self.low), 0.0), 1.0)

    def rounded(self, places: np.ndarray) -> np.ndarray:
        """Where the values at `places` lie."""
        return places

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} (log)"


@dataclass(frozen=True)
class Choice:
    """One of `values`, each as likely."""

    values: tuple

    def at(self, place: float) -> Any:
        """The value at `place` of the list, 0 <= place < 1."""
        return self.values[int(place * len(self.values))]

    @property
    def ordered(self) -> bool:
        """Whether these are numbers to choose from: neighbours, batches of 16 and 32, share what was learnt."""
        return all(isinstance(value, (int, float)) for value in self.values)

    def nearest(self, value: Any) -> int:
        """The index of `value`, or of the number next to it."""
        if not self.ordered:
            return self.values.index(value)
        return min(range(len(self.values)), key=lambda index: abs(self.values[index] - value))

    def place(self, value: Any) -> float:
        """Where `value` lies in the list, from 0 to 1."""
        return self.nearest(value) / max(1, len(self.values) - 1)

    def rounded(self, places: np.ndarray) -> np.ndarray:
        """Where the values at `places` lie."""
        return (places * len(self.values)).astype(int) / max(1, len(self.values) - 1)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Space:
    """The loop's version, and a distribution for each hyper-parameter as a function of the preset."""

    version: str
    ranges: Callable[[Preset], dict[str, LogUniform | Choice]]


def _v1(preset: Preset) -> dict[str, LogUniform | Choice]:
    largest, smallest = 4 * preset.batch_size, max(1, preset.batch_size // 4)
    return {
        "learning_rate": LogUniform(preset.learning_rate / 10, preset.learning_rate * 10),
        "batch_size": Choice(tuple(2**i for i in range(20) if smallest <= 2**i <= largest)),
    }


def _v2(preset: Preset) -> dict[str, LogUniform | Choice]:
    return _v1(preset) | {"warmup_ratio": LogUniform(0.003, 0.2), "clip_norm": LogUniform(0.1, 10.0)}


def _v3(preset: Preset) -> dict[str, LogUniform | Choice]:
    # beta2's half-life is centred on 10M tokens (Marek et al., arXiv 2507.07101) or, for short budgets, a tenth of them
    half_life = min(1e7, preset.budget_tokens / 10)
    return _v2(preset) | {
        "weight_decay": LogUniform(0.01, 1.0),
        "beta2_half_life": LogUniform(half_life / 10, half_life * 10),
        "schedule": Choice(("cosine", "wsd")),
        "min_lr_ratio": Choice((0.0, 0.01, 0.1)),
    }


SPACES = {"v1": Space("v1", _v1), "v2": Space("v2", _v2), "v3": Space("v2", _v3)}


def get_space(name: str) -> Space:
    """The space called `name`. Raises InputError for an unknown one."""
    if name not in SPACES:
        raise InputError(f"--space {name!r} is unknown; known are {', '.join(SPACES)}")
    return SPACES[name]


def sample(space: Space, preset: Preset, seed: int, index: int) -> dict[str, Any]:
    """The flat configuration of trial `index`: a pure function of its arguments, so that no draw is lost or repeated.

    Trial 0 is the preset's reference configuration. The others are spread evenly over the space, where independent draws
    would leave holes (Bousquet et al., arXiv 1706.03200): the additive recurrence of the generalized golden ratio (Roberts
    2018, "The unreasonable effectiveness of quasirandom sequences"), shifted at random by `seed`.
    """
    ranges = space.ranges(preset)
    if index == 0:
        config = preset.training()
        half_life = config.tokens_per_step * math.log(0.5) / math.log(config.beta2)
        return {name: half_life if name == "beta2_half_life" else getattr(config, name) for name in ranges}
    ratio = 2.0
    for _ in range(64):  # to the root of ratio ** (dimensions + 1) == ratio + 1
        ratio = (1 + ratio) ** (1 / (len(ranges) + 1))
    steps = ratio ** -np.arange(1.0, len(ranges) + 1)
    places = (np.random.default_rng(seed).random(len(ranges)) + index * steps) % 1
    return {name: values.at(float(place)) for (name, values), place in zip(ranges.items(), places, strict=True)}


def ranges_of(space: str, preset: Preset) -> dict[str, str]:
    """Each hyper-parameter of a space with its range for a preset, as text."""
    return {name: str(distribution) for name, distribution in get_space(space).ranges(preset).items()}
