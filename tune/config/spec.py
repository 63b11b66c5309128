"""The frozen specification of a search. It is written to search.json before anything starts, and read on --resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from myllm.config import TrainConfig, from_dict
from myllm.models.custom_model import read_model
from myllm.system.errors import InputError
from myllm.system.files import ROOT
from tune.config.builtin_search import BuiltinSearch, Data
from tune.config.options import SearchOptions, current_names
from tune.config.overrides import parse_overrides, searched_space
from tune.config.program_search import Program, ProgramSearch
from tune.config.search_base import FILE_NAME, FORMAT, RUN_ID_DIGITS, SearchSpec
from tune.core.search_space import range_from_json

__all__ = ["FILE_NAME", "RUN_ID_DIGITS", "BuiltinSearch", "Data", "Program", "ProgramSearch", "SearchSpec", "read_search"]

RUNS_DIR = ROOT / "experiments" / "runs"


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


def _from_format_2(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The search.json of format 2 as one of today's format: its texts are parsed, its space and preset are looked up.

    Raises InputError where they give other ranges than the search began with.
    """
    options = _read_options(current_names(values.pop("config")), where)
    model = read_model(values["model"], f"{where}: model")
    searched = searched_space(options, model, parse_overrides(vars(options), model))
    if {name: str(one) for name, one in searched.ranges.items()} != values["ranges"]:
        raise InputError(f"{where}: space {options.space} has changed since; use the version that wrote it")
    renamed = {"auto_resolved": values.pop("picked", {}), "options": dataclasses.asdict(options)}
    values.pop("moved", None)
    return values | renamed | dataclasses.asdict(searched)
