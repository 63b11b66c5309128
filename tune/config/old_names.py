"""Names that options had before 0.1.0: they go on working, in flags, experiment files and run folders."""

from collections.abc import Mapping
from typing import Any

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


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with today's names for all that was renamed; of an option under both names today's counts."""
    renamed = {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
    renamed |= {name: value for name, value in options.items() if name not in OPTIONS}
    for name, values in VALUES.items():
        value = renamed.get(name)
        if isinstance(value, str):
            renamed[name] = values.get(value, value)
        elif isinstance(value, list | tuple):
            renamed[name] = [values.get(one, one) for one in value]
    return renamed
