"""Loads a training function of the user's own, from the text that its search keeps."""

import inspect
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from myllm.models.custom_model import load_object
from myllm.system.errors import InputError

Reports = Generator[dict[str, Any] | None, str | None, None]
Train = Callable[[dict[str, Any], int, Path, bool], Reports]
"""the contract of every training: (settings, budget, folder, resume) -> its reports

`settings` are the trial's, `budget` is the length of one full training in iterations, `folder` is the trial's own, and
`resume` is True if `folder` holds what the trial saved before. The generator yields a dict with "step" and "val_loss" at
each report. Where that `yield` returns "save" it saves its state into `folder`, and then yields None.
"""
PARAMETERS = 4


def load_function(source: str, files: dict[str, str], sha256: str) -> Train:
    """The function that FILE.py:function names. Raises InputError where it is no generator function of four parameters."""
    is_wanted, kind = inspect.isgeneratorfunction, "generator function"
    found: Train = load_object(source, sha256, json.dumps(files), "--trainable", is_wanted, kind)
    try:
        inspect.signature(found).bind(*[None] * PARAMETERS)
    except TypeError:
        wanted = "(settings, budget, folder, resume)"
        raise InputError(
            f"--trainable {source}: it has the parameters {inspect.signature(found)}; it must take {wanted}"
        ) from None
    return found
