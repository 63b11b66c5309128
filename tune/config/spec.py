"""The frozen specification of a search. It is written to search.json before anything starts, and read on --resume."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import TIMED_REPORTS, TrainConfig, from_dict
from myllm.datasets.data_paths import Source
from myllm.models.custom_model import ModelConfig, read_model, settings_of, with_settings
from myllm.presets import get_preset
from myllm.system.errors import InputError
from myllm.system.files import ROOT, write_text
from myllm.text.durations import duration
from myllm.training.run_artifacts import remote_folder, uri_below
from tune.config.options import SearchOptions, current_names
from tune.config.overrides import SearchedSpace, parse_overrides, searched_space
from tune.core.coordinator import Configure
from tune.core.decision_config import DECISIONS
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.schedulers.base import Scheduler
from tune.core.schedulers.baseline import WithBaseline
from tune.core.search_space import even_draw, range_from_json
from tune.core.searchers import searcher
from tune.ladder.plan import Plan, plan_from_json

RUNS_DIR = ROOT / "experiments" / "runs"
FILE_NAME = "search.json"
RUN_ID_DIGITS = 12  # hexadecimal
FORMAT = 4
"""of the run folder; 3 had another default rule, 2 other names (options.OLD_NAMES) and ranges as text, 1 another journal"""
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


@dataclass(frozen=True)
class Data:
    """The training and validation data of every trial."""

    train_file: Source  # as the user named it, absolute; or 'builtin'
    val_file: Source
    tokenizer: str
    tokenizer_sha256: str  # SHA-256 of the tokenizer's contents
    fingerprint: dict[str, Any]  # fingerprint of the content of train and val, as TokenFile.fingerprint returns it
    prepared: dict[str, Any]  # specification of train and val that TokenFile opens
    bytes_per_token: float  # UTF-8 bytes per target token of the validation windows
    token_dtype: str | None = None
    text_column: str | None = None


@dataclass(frozen=True)
class SearchSpec(SearchedSpace):
    """The checked and resolved settings of a search: the space that is searched, and everything else that decides."""

    options: SearchOptions  # the user's options, with texts as typed
    model: ModelConfig
    training: TrainConfig
    """the preset's baseline settings and the user's fixed values; a trial's hyper-parameters replace some"""
    data: Data
    report_tokens: int
    """tokens between report points, a multiple of every trial's optimizer step; with --budget_seconds milliseconds"""
    warm_start: tuple[dict[str, Any], ...] = ()
    """configurations of earlier runs and their losses, as warm_start_trials returns them"""
    decisions: dict[str, Any] = dataclasses.field(default_factory=lambda: dataclasses.asdict(DECISIONS))
    """the numbers of the default rule when the search began; empty in runs of before they were recorded"""
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    """the search's random `run_id`, and the time, package versions, git commit and hardware of its start"""
    ladder: Plan | None = None
    """the smaller models that stand in for the target; None: every trial trains the search's own model"""
    auto_resolved: dict[str, str] = dataclasses.field(default_factory=dict)
    """the measurement behind each option that was `auto`; the number itself is in `options`"""

    @property
    def budget_tokens(self) -> int:
        """Tokens of one full training; with --budget_seconds milliseconds, the unit of all positions then."""
        if self.training.budget_seconds:
            return TIMED_REPORTS * self.report_tokens
        assert self.training.budget_tokens is not None, "a search has a budget in tokens, not in epochs"
        return self.training.budget_tokens

    @property
    def planned_trials(self) -> int:
        """Configurations that the search begins, at most; of a ladder those of its plan."""
        return self.ladder.trials if self.ladder else self.options.trials

    @property
    def budget_text(self) -> str:
        """The length of one full training as people read it."""
        seconds = self.training.budget_seconds
        return f"{duration(seconds)} of steps" if seconds else f"{self.budget_tokens:,} tokens"

    @property
    def range_texts(self) -> dict[str, str]:
        """Each hyper-parameter's range as people read it."""
        return {name: str(values) for name, values in self.ranges.items()}

    def sample(self, index: int) -> dict[str, Any]:
        """The hyper-parameters of trial `index`: of index 0 the baseline, else an even draw."""
        return even_draw(self.ranges, self.options.seed, index) if index > 0 else dict(self.baseline)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that trials may have, in windows."""
        return self.values_of("batch_size", self.training.batch_size)

    def model_config(self, hyper_parameters: dict[str, Any]) -> ModelConfig:
        """The model of one trial. Raises InputError for an impossible shape."""
        names = settings_of(self.model)
        return with_settings(self.model, {name: value for name, value in hyper_parameters.items() if name in names})

    def train_config(self, hyper_parameters: dict[str, Any]) -> TrainConfig:
        """The TrainConfig of one trial. Raises InputError for an unknown key, or a step that misses report points."""
        names = settings_of(self.model)
        values = dataclasses.asdict(self.training)
        values |= {name: value for name, value in hyper_parameters.items() if name not in names}
        if values["budget_tokens"]:
            apart = self.report_tokens * values["budget_tokens"] // self.budget_tokens  # a ladder's trials differ in length
            values["eval_freq"] = max(1, apart // (values["batch_size"] * values["max_len"]))
        if values["micro_batch_size"] is not None:
            values["micro_batch_size"] = min(values["micro_batch_size"], values["batch_size"])
        return from_dict(TrainConfig, values, "trial")

    def scheduler(self) -> Scheduler:
        """The scheduler that decides which trials go on."""
        config = self.options
        if self.ladder:
            from tune.ladder.rule import LadderScheduler  # here: scipy takes long

            return LadderScheduler(self.ladder, config.seed, self.report_tokens)
        rule = SCHEDULERS[config.scheduler](config.resolved_rungs, self.budget_tokens, self.report_tokens)
        rule = WithBaseline(rule, config.confirmations)
        return WithAudit(rule, config.audit_fraction, config.seed) if config.audit_fraction else rule

    @property
    def rule_has_changed(self) -> bool:
        """True if the default rule decides by other numbers than when the search began."""
        return self.options.scheduler == SearchOptions.scheduler and self.decisions != dataclasses.asdict(DECISIONS)

    @property
    def run_id(self) -> str:
        """Names the search among all others, some of which may have its name. Old runs get a hash of their provenance.

        A copy of a run folder has the same id: where it is resumed, it writes into the original's runs of the trackers.
        """
        text = json.dumps(self.origin, sort_keys=True)
        return self.origin.get("run_id") or hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_DIGITS]

    def searcher(self) -> Configure:
        """The function that chooses the configuration of each trial. Raises InputError where its package is missing."""
        options = self.options
        return searcher(options.searcher, self.ranges, self.baseline, options.seed, self.scheduler().stops, self.warm_start)

    def storage_root(self, run_dir: Path) -> str:
        """Folder or URI that holds the run's checkpoints and Ray's records."""
        path = self.options.storage_path
        if path and "://" in path:
            return uri_below(path, remote_folder(self.options.name or run_dir.name, self.origin))
        return str(run_dir / "ray")

    def write(self, run_dir: Path) -> None:
        """Replaces search.json atomically."""
        write_text(run_dir / FILE_NAME, json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, run_dir: Path) -> "SearchSpec":
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
                raise InputError(
                    f"{path} is of format {written_by}, this version reads {FORMAT}; use the one that wrote it"
                )
            values |= {
                "options": _read_options(values["options"], str(path)),
                "model": read_model(values["model"], f"{path}: model"),
                "training": from_dict(TrainConfig, values["training"], f"{path}: training"),
                "data": from_dict(Data, values["data"], f"{path}: data"),
                "ranges": {name: range_from_json(one) for name, one in values["ranges"].items()},
                "warm_start": tuple(values["warm_start"]),
                "ladder": plan_from_json(values["ladder"]) if values.get("ladder") else None,
            }
            return cls(**values)
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
