"""The frozen specification of a search. It is written to search.json before anything starts, and read on --resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from myllm.config import TrainConfig, from_dict
from myllm.models.custom_model import read_model
from myllm.presets import get_preset
from myllm.system.errors import InputError
from myllm.system.files import ROOT
from tune.config.builtin_search import BuiltinSearch, Data
from tune.config.options import SearchOptions, current_names
from tune.config.overrides import parse_overrides, searched_space
from tune.config.program_search import Program, ProgramSearch
from tune.config.search_base import FILE_NAME, FORMAT, RUN_ID_DIGITS, SearchSpec
from tune.core.search_space import range_from_json
from tune.ladder.plan import plan_from_json

__all__ = [
    "FILE_NAME",
    "FORMAT",
    "RUN_ID_DIGITS",
    "BuiltinSearch",
    "Data",
    "Program",
    "ProgramSearch",
    "SearchSpec",
    "read_search",
]

RUNS_DIR = ROOT / "experiments" / "runs"
RUNGS_BEFORE_4 = "0.03125:2,0.125:2,0.25:2"
"""the rungs of explore-finish in formats 2 and 3, where --rungs was unset; trials of then are paused there"""
BASELINES_OF_FORMAT_2 = {
    "nano": (3e-3, 16),
    "micro": (2e-3, 16),
    "mini": (1e-3, 64),
    "gpt2": (6e-4, 512),
    "gpt2-medium": (3e-4, 512),
    "gpt2-large": (2.5e-4, 512),
    "gpt2-xl": (2e-4, 1024),
}
"""Learning rate and windows a step of each preset's baseline while runs of format 2 were written; their ranges' centre."""


def read_search(run_dir: Path) -> SearchSpec:
    """The settings in a run folder. Raises InputError if it is no run folder, damaged, or of an unknown format."""
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise InputError(f"{run_dir} is no run folder: it has no {FILE_NAME}")
    try:
        values = json.loads(path.read_text("utf-8"))
        written_by = values.pop("format", 1)
        if written_by == 2:
            values = _from_format_2(values, str(path))
        if written_by in (2, 3):
            values |= {"decisions": {}, "options": _with_its_rungs(values["options"])}
        elif written_by != FORMAT:
            raise InputError(f"{path} is of format {written_by}, this version reads {FORMAT}; use the one that wrote it")
        values |= {
            "options": _read_options(values["options"], str(path)),
            "ranges": {name: range_from_json(one) for name, one in values["ranges"].items()},
            "warm_start": tuple(values["warm_start"]),
        }
        if "program" in values:
            program = from_dict(Program, values["program"], f"{path}: program")
            return ProgramSearch(**values | {"program": program})
        values |= {
            "model": read_model(values["model"], f"{path}: model"),
            "training": from_dict(TrainConfig, values["training"], f"{path}: training"),
            "data": from_dict(Data, values["data"], f"{path}: data"),
            "ladder": plan_from_json(values["ladder"]) if values.get("ladder") else None,
        }
        return BuiltinSearch(**values)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged") from None


def _read_options(values: dict[str, Any], where: str) -> SearchOptions:
    """The options that search.json holds. Raises InputError, which begins with `where`, for any that can't be."""
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return from_dict(SearchOptions, values | tuples, f"{where}: options")


def _with_its_rungs(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run of before format 4. Unset rungs of the default rule become the ones that it had then."""
    own = any(options.get(name) is not None for name in ("rungs", "grace_period", "reduction_factor"))
    return options | ({} if own or options["scheduler"] != SearchOptions.scheduler else {"rungs": RUNGS_BEFORE_4})


def _from_format_2(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The search.json of format 2 as one of today's format: its texts are parsed, its space is looked up.

    Raises InputError where they give other ranges than the search began with.
    """
    options = _read_options(current_names(values.pop("config")), where)
    model = read_model(values["model"], f"{where}: model")
    rate, windows = BASELINES_OF_FORMAT_2[options.preset]
    preset = dataclasses.replace(get_preset(options.preset), learning_rate=rate, batch_size=windows)
    searched = searched_space(options, model, parse_overrides(vars(options), model), preset)
    if {name: str(one) for name, one in searched.ranges.items()} != values["ranges"]:
        raise InputError(f"{where}: space {options.space} has changed since; use the version that wrote it")
    renamed = {"auto_resolved": values.pop("picked", {}), "options": dataclasses.asdict(options)}
    values.pop("moved", None)
    return values | renamed | dataclasses.asdict(searched)
