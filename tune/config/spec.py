"""A search's settings, checked and resolved: written to search.json before anything starts, read back by who goes on."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import TrainConfig, from_dict, get_preset
from myllm.datasets.data_paths import Source
from myllm.models.custom_model import ModelConfig, read_model, settings_of, with_settings
from myllm.system.errors import InputError
from myllm.system.files import ROOT, write_text
from myllm.training.run_artifacts import uri_below
from tune.config.old_names import current_names
from tune.config.options import SearchOptions
from tune.config.overrides import space_with_overrides
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.schedulers.base import Scheduler
from tune.core.schedulers.baseline import WithBaseline
from tune.core.search_space import Ranges, Space, sample

RUNS_DIR = ROOT / "experiments" / "runs"
FILE_NAME = "search.json"
FORMAT = 3
"""of the run folder; 2 had other names (old_names.py), 1 had a dict of settings and a journal of other events"""


@dataclass(frozen=True)
class Data:
    """The files that every trial reads."""

    train_file: Source
    """as the user named it, absolute; or 'builtin'"""
    val_file: Source
    tokenizer: str
    tokenizer_sha256: str
    """of its contents"""
    fingerprint: dict[str, Any]
    """of train and val, by content"""
    prepared: dict[str, Any]
    """train and val as what TokenFile opens"""
    bytes_per_token: float
    """UTF-8 bytes per target token of the validation windows"""
    token_dtype: str | None = None
    text_column: str | None = None


@dataclass(frozen=True)
class SearchSpec:
    """All that a search sets out with."""

    options: SearchOptions
    """what the user asked for"""
    model: ModelConfig
    training: TrainConfig
    """the preset's reference settings, both, and what is fixed; a trial's hyper-parameters replace some"""
    data: Data
    report_tokens: int
    """tokens between reports; a multiple of every trial's step"""
    ranges: dict[str, str]
    """each hyper-parameter with its range, as text"""
    warm_start: tuple[dict[str, Any], ...] = ()
    """what earlier runs know (searchers.warm_start_trials)"""
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    """when, by which versions and on what hardware it began"""
    moved: dict[str, Any] = dataclasses.field(default_factory=dict)
    """the preset's reference values that lie outside of the user's ranges: trial 0 has the nearest instead"""

    picked: dict[str, str] = dataclasses.field(default_factory=dict)
    """options that were `auto` -> what was measured; the numbers themselves are in `options`"""

    @property
    def budget_tokens(self) -> int:
        """Tokens of one full training."""
        return self.training.budget_tokens

    @property
    def space(self) -> Space:
        """What is searched: the space that the user named, with the user's own ranges."""
        return space_with_overrides(self.options, self.model)

    @property
    def drawn_from(self) -> Ranges:
        """What each hyper-parameter is drawn from, by name."""
        return self.space.ranges(get_preset(self.options.preset))

    def sample(self, index: int) -> dict[str, Any]:
        """The hyper-parameters of an even draw; of index 0 the reference."""
        return sample(self.space, get_preset(self.options.preset), self.options.seed, index)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those that trials may have, in windows."""
        batch_size = self.drawn_from.get("batch_size")
        return batch_size.values if batch_size else (self.training.batch_size,)

    def model_config(self, hyper_parameters: dict[str, Any]) -> ModelConfig:
        """The model of one trial. Raises InputError for a shape that can't be."""
        names = settings_of(self.model)
        return with_settings(self.model, {name: value for name, value in hyper_parameters.items() if name in names})

    def train_config(self, hyper_parameters: dict[str, Any]) -> TrainConfig:
        """The TrainConfig of one trial. Raises InputError for an unknown key or a step that does not divide the marks."""
        names = settings_of(self.model)
        values = dataclasses.asdict(self.training)
        values |= {name: value for name, value in hyper_parameters.items() if name not in names}
        values["eval_freq"] = max(1, self.report_tokens // (values["batch_size"] * values["max_len"]))
        if values["micro_batch_size"] is not None:
            values["micro_batch_size"] = min(values["micro_batch_size"], values["batch_size"])
        return from_dict(TrainConfig, values, "trial")

    def scheduler(self) -> Scheduler:
        """The rule that decides who goes on."""
        config = self.options
        rule = SCHEDULERS[config.scheduler](config.resolved_rungs, self.budget_tokens, self.report_tokens)
        rule = WithBaseline(rule, config.confirmations)
        return WithAudit(rule, config.audit_fraction, config.seed) if config.audit_fraction else rule

    def storage_root(self, run_dir: Path) -> str:
        """Folder or URI that holds the run's checkpoints and Ray's records."""
        path = self.options.storage_path
        return uri_below(path, self.options.name) if path and "://" in path else str(run_dir / "ray")

    def write(self, run_dir: Path) -> None:
        """Replaces search.json, whole or not at all."""
        text = json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2)
        write_text(run_dir / FILE_NAME, text + "\n")

    @classmethod
    def read(cls, run_dir: Path) -> "SearchSpec":
        """The settings in a run folder. Raises InputError where it is none, or one of another version."""
        path = run_dir / FILE_NAME
        if not path.is_file():
            raise InputError(f"{run_dir} is no run folder: it has no {FILE_NAME}")
        try:
            values = json.loads(path.read_text())
            written_by = values.pop("format", 1)
            if written_by == 2:
                values["options"] = current_names(values.pop("config"))
            elif written_by != FORMAT:
                raise InputError(
                    f"{path} is of format {written_by}, this version reads {FORMAT}; use the one that wrote it"
                )
            values["options"] |= {n: tuple(v) for n, v in values["options"].items() if isinstance(v, list)}
            values["warm_start"] = tuple(values["warm_start"])
            parts = {"options": SearchOptions, "training": TrainConfig, "data": Data}
            values |= {name: from_dict(part, values[name], f"{path}: {name}") for name, part in parts.items()}
            values["model"] = read_model(values["model"], f"{path}: model")
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged") from None
