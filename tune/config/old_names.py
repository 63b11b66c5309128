"""Names that options had before 0.1.0. They go on working in flags, experiment files and run folders."""

from collections.abc import Iterable, Mapping
from typing import Any

from myllm.system.errors import InputError

OPTIONS = {
    "fix": "set",
    "confirm": "replicate_best",
    "audit": "audit_fraction",
    "patience": "stall_timeout",
    "trust": "allow_other_owner",
}
"""old option -> today's"""
VALUES = {
    "scheduler": {"half": "explore-finish"},
    "space": {"own": "custom"},
    "train_file": {"embedded": "builtin"},
    "val_file": {"embedded": "builtin"},
}
"""option -> old value -> today's"""


def check_one_name(names: Iterable[str], where: str = "", dashes: str = "") -> None:
    """Raises InputError, which begins with `where`, if `names` hold an option under its old and its new name."""
    given = set(names)
    for old, new in OPTIONS.items():
        if {dashes + old, dashes + new} <= given:
            raise InputError(f"{where}{dashes}{old} is the old name of {dashes}{new}; leave out one of the two")


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with today's names and values for all that was renamed."""
    renamed = {OPTIONS.get(name, name): value for name, value in options.items()}
    for name, values in VALUES.items():
        value = renamed.get(name)
        if isinstance(value, str):
            renamed[name] = values.get(value, value)
        elif isinstance(value, list | tuple):
            renamed[name] = [values.get(one, one) for one in value]
    return renamed
