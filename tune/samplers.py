"""Which configuration a search tries next: a pure function of the settings, the index, and the search so far."""

from collections.abc import Callable
from typing import Any

from myllm.config import get_preset
from tune.spaces import get_space, sample
from tune.state import SearchState

Draw = Callable[[int, SearchState], dict[str, Any]]


def sampler(search: dict[str, Any]) -> Draw:
    """The draw(index, state) that search.json asks for."""
    config = search["config"]
    space, preset = get_space(config["space"]), get_preset(config["preset"])
    return lambda index, state: sample(space, preset, config["seed"], index)
