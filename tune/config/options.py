"""The options of a search: each with its default, its help, and its check."""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from myllm.datasets.data_paths import BUILTIN, is_builtin
from myllm.datasets.token_layout import DTYPES
from myllm.presets import get_preset
from myllm.system.errors import InputError
from tune.config.program_options import ProgramOptions
from tune.core.schedulers import SCHEDULERS, geometric_rungs, parse_rungs
from tune.core.schedulers.base import Rungs
from tune.core.search_space import get_space
from tune.core.trials import UNLIMITED_TRIALS
from tune.store.checkpoints import Storage

DEFAULT_TRIALS = 16
CONFIRMED = 3  # trials by default
AUTO = "auto"
PICKED = ("cpus_per_trial", "gpus_per_trial", "processes_per_trial")
"""options that may be AUTO: estimate/auto.py then times steps"""
OLD_NAMES = {
    "fix": "set",
    "confirm": "replicate_best",
    "audit": "audit_fraction",
    "patience": "stall_timeout",
    "trust": "allow_other_owner",
}
"""option before 0.1.0 -> today's"""
OLD_VALUES = {
    "scheduler": {"half": "explore-finish"},
    "space": {"own": "custom"},
    "train_file": {"embedded": "builtin"},
    "val_file": {"embedded": "builtin"},
}
"""option -> value before 0.1.0 -> today's"""


Check = tuple[Callable[[Any], bool], str]
"""returns True for a value that can be; says of one that can't what would be right, with the value in place of {}"""


def number(right: str, fits: Callable[[Any], bool]) -> Check:
    """The check of a finite number that `fits`; `right` says in words which ones do."""

    def check(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and fits(value)

    return check, f"is {{}}; it must be {right}"


def whole(least: int, most: int = 2**62) -> Check:
    """The check of a whole number from `least` to `most`."""
    right = f"{least} or more" if most == 2**62 else f"from {least} to {most}"
    return number(f"a whole number, {right}", lambda value: isinstance(value, int) and least <= value <= most)


def one_of(*values: str) -> Check:
    """The check of one of `values`."""
    return values.__contains__, f"{{}} is unknown; known are {', '.join(values)}"


positive_seconds = number("a positive number of seconds", lambda seconds: seconds > 0)
CHECKS: dict[str, Check] = {
    "seed": whole(0, 2**31 - 1),
    "num_samples": whole(1, UNLIMITED_TRIALS - 1),
    "budget_tokens": whole(1),
    "budget": whole(2),
    "report_every": whole(1),
    "cpus_per_trial": whole(1),
    "max_concurrent": whole(1),
    "processes_per_trial": whole(1),
    "max_failures": whole(0),
    "replicate_best": whole(0),
    "reduction_factor": whole(2),
    "scheduler": (SCHEDULERS.__contains__, one_of(*SCHEDULERS)[1]),  # a rule may be added later
    "rung_metric": one_of("val_loss", "val_loss_ema"),
    "searcher": one_of("gp", "random", "optuna"),
    "keep_checkpoints": one_of("best", "all"),
    "grace_period": number("a share between 0 and 1", lambda share: 0 < share < 1),
    "audit_fraction": number("a share of the trials left behind, above 0 and at most 1", lambda share: 0 < share <= 1),
    "target_tokens": whole(1),
    "target_seconds": positive_seconds,
    "target_share": number("a share of the target's compute, above 0 and at most 1", lambda share: 0 < share <= 1),
    "time_budget": positive_seconds,
    "budget_seconds": positive_seconds,
    "stall_timeout": positive_seconds,
    "gpus_per_trial": number("a share below 1 or a whole number of GPUs", lambda n: n >= 0 and (n < 1 or n == int(n))),
    "token_dtype": one_of(*DTYPES),
    "name": (
        lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name)),
        "{} is no folder name; use letters, digits, dots, dashes, underscores",
    ),
}
"""the check of each option that not every value fits; an option whose default is None may be unset"""


def check_tracker(name: str, address: str) -> None:
    """Raises InputError where a tracker's package is not there, or where MLflow 3 would refuse the address."""
    if address == "":
        raise InputError(f"--{name} is empty; name where the trials are to be shown")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"--{name} needs the package {name}: pip install -e '.[{name}]'")
    folder = not address.startswith("databricks") and re.match("file:|[^:]*$", address)
    if name == "mlflow" and folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise InputError(f"--mlflow {address!r} is a folder: MLflow takes sqlite:///FILE or a server's http://...")


def check_storage(path: str) -> None:
    """Raises InputError where `path` is neither a folder nor a URI at which a filesystem answers."""
    if re.match(r"(file|gcs|gs|hdfs|s3):(?!//)", path, re.IGNORECASE) or ("://" in path and "#" in path) or "\0" in path:
        raise InputError(
            f"--storage_path {path!r} is neither a folder nor a URI like file:///runs or s3://b/x; # is %23 there"
        )
    try:
        if "://" in path:
            Storage(path).filesystem.get_file_info(Storage(path).path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--storage_path {path}: {reason}; use a folder or a URI like s3://b/x") from None


@dataclass(frozen=True)
class SearchOptions(ProgramOptions):
    """The options of a search, as the user gave them. Raises InputError for the first value that can't be."""

    space: str = "v2"
    """v1: learning rate, batch size; v2: and warm-up, clip norm; v3: and decay, beta2, schedule, floor; custom: your own"""
    range: tuple[str, ...] = ()
    """own ranges, NAME=MIN:MAX, log where the setting's own scale is; NAME=MIN:MAX:linear or :log says which"""
    choices: tuple[str, ...] = ()
    """own lists, NAME=VALUE,VALUE,..."""
    set: tuple[str, ...] = ()
    """settings that are not searched, NAME=VALUE"""
    preset: str = "nano"
    """model shape and baseline settings"""
    model: str | None = None
    """your own model, FILE.py:Class (unset: GPT-2's decoder in the preset's shape)"""
    train_file: tuple[str, ...] = (BUILTIN,)
    """training data: token files (.bin, .npy), text (.txt, .jsonl, .parquet), folders or globs of them, or 'builtin'"""
    val_file: tuple[str, ...] = (BUILTIN,)
    """validation data, likewise"""
    token_dtype: str | None = None
    """what bare .bin files hold: uint16, uint32, int32 or int64 (unset: uint16)"""
    text_column: str | None = None
    """column that holds the text, of .jsonl, .csv, .parquet and .arrow files (unset: found)"""
    tokenizer: str | None = None
    """byte, a tiktoken encoding, a .tiktoken file or tokenizer.json (unset: the data's; of bare .bin gpt2, of text byte)"""
    num_samples: int | None = None
    """trials in total, the preset's baseline included (unset: 16; with --time_budget as many as it lets)"""
    budget_tokens: int | None = None
    """tokens of one full training, rounded down so that all batch sizes share the report marks (unset: the preset's)"""
    target: tuple[str, ...] = ()
    """search small, train big: the model to be trained in the end, a preset or the settings that grow, NAME=NUMBER ..."""
    target_tokens: int | None = None
    """tokens of the target's training, like 2.5B, 100M, 66k (unset: the preset's)"""
    target_seconds: float | None = None
    """time of the target's training on this machine, like 2h, in place of --target_tokens"""
    target_share: float | None = None
    """share of the target's compute that its search may take (unset: 0.05)"""
    budget_seconds: float | None = None
    """seconds (or like 90m, 1h30m) of one full training, in place of budget_tokens: each configuration trains on as many
    tokens as it can in this time (unset: configurations are compared at equal tokens)"""
    time_budget: float | None = None
    """seconds (or like 90m, 1h30m, 2h) of all sessions; its last part finishes the best (unset: no limit)"""
    name: str | None = None
    """folder under experiments/runs (unset: preset-space-date-time)"""
    seed: int = 0
    """seed of the draws and of every trial's initialisation and data order"""
    scheduler: str = "explore-finish"
    """explore-finish: a rung at 1/4, then two fifths of the time finish the best on several seeds; asha promotes at rungs,
    asha-stop stops there; hyperband starts at several rungs; fifo trains all to the end"""
    rungs: str | None = None
    """where trials are compared: share of the budget:one in how many goes on, ... (unset: the scheduler's own)"""
    grace_period: float | None = None
    """short way to rungs: the first, as a share of the budget; the next are reduction_factor times as far"""
    reduction_factor: int | None = None
    """short way to rungs: one in this many goes on at each"""
    rung_metric: str = "val_loss"
    """what rungs compare: val_loss, or val_loss_ema (of averaged weights, which can be ahead of the rate's decay)"""
    replicate_best: int | None = None
    """best configurations that train on another seed at the end, with the baseline (unset: 3 where there are 8 trials)"""
    audit_fraction: float | None = None
    """random share of the trials left behind that train on afterwards, to tell what leaving them cost (unset: none)"""
    searcher: str = "gp"
    """gp: even draws, and a Gaussian process where the scheduler asks; random: even draws; optuna: TPE on all trials"""
    warm_start: tuple[str, ...] = ()
    """earlier runs on the same data: their best configurations are tried first, and optuna learns from those that fit"""
    max_failures: int = 3
    """times that a trial starts again from its last checkpoint after its process or machine was lost"""
    keep_checkpoints: str = "best"
    """best: last and best of the trials that can still win; all: every one"""
    storage_path: str | None = None
    """shared folder for the whole run, or URI (s3://...) for its checkpoints (unset: experiments/runs)"""
    cpus_per_trial: int | str | None = None
    """CPU cores and torch threads a trial; auto: by timed steps (unset: 1, or an even share where trials have GPUs)"""
    gpus_per_trial: float | str | None = None
    """GPUs a trial, fractions share one; auto: what a few timed steps say, at most 1, and the last trials take idle GPUs
    (unset: 1 where there are GPUs, else 0)"""
    processes_per_trial: int | str | None = None
    """processes that share each training on CPU cores; on GPUs gpus_per_trial from 2 says it; auto: 1, and the last trials
    take idle cores or GPUs where timed steps say that it helps (unset: 1)"""
    max_concurrent: int | None = None
    """trials at once (unset: as many as the machine holds)"""
    stall_timeout: float = 300.0
    """seconds in which no trial starts or reports and none computes, after which the search ends and says why"""
    address: str | None = None
    """Ray cluster to join (unset: this machine alone)"""
    wandb: str | None = None
    """Weights & Biases project that follows the search, a run for each trial; needs the package wandb"""
    mlflow: str | None = None
    """MLflow tracking URI (sqlite:///FILE, http://...) that follows the search, a run a trial; needs mlflow-skinny"""
    dashboard: bool = False
    """show Ray's dashboard on this machine's port 8265; needs the package ray[default]"""

    def __post_init__(self) -> None:
        for name, (fits, complaint) in CHECKS.items():
            value = getattr(self, name)
            unset = value is None and getattr(SearchOptions, name) is None
            if not unset and not (value == AUTO and name in PICKED) and not fits(value):
                raise InputError(f"--{name} {complaint.format(repr(value))}")
        self.check_program()
        for name, address in (("wandb", self.wandb), ("mlflow", self.mlflow)):
            if address is not None:
                check_tracker(name, address)
        if self.storage_path is not None:
            check_storage(self.storage_path)
        if self.rungs is not None and (self.grace_period, self.reduction_factor) != (None, None):
            raise InputError("--rungs says all; leave out --grace_period and --reduction_factor, the short way to rungs")
        if self.budget_seconds is not None and self.budget_tokens is not None:
            raise InputError("--budget_seconds and --budget_tokens both say how long a full training is; leave one out")
        if self.budget_seconds is not None and self.target:
            raise InputError("--budget_seconds does not go with --target, whose trainings have many lengths; leave it out")
        if self.joins_idle_slots and self.budget_seconds is not None:
            raise InputError("--budget_seconds needs equal processes for all; --processes_per_trial must be a number")
        if self.joins_idle_slots and isinstance(self.gpus_per_trial, float | int) and 0 < self.gpus_per_trial < 1:
            raise InputError("--processes_per_trial auto takes whole GPUs; --gpus_per_trial must be a whole number or auto")
        self.resolved_rungs  # noqa: B018 (raises for rungs that are none)
        get_space(self.space)
        get_preset(self.preset)
        if is_builtin(self.train_file) != is_builtin(self.val_file):
            raise InputError("--train_file and --val_file belong together: give both, or neither for the built-in corpus")

    @property
    def resolved_rungs(self) -> Rungs:
        """The rungs that the flags describe, or the scheduler's own."""
        if self.rungs is not None:
            return parse_rungs(self.rungs)
        if self.grace_period is None and self.reduction_factor is None:
            return SCHEDULERS[self.scheduler].default_rungs
        return geometric_rungs(self.grace_period or 1 / 16, self.reduction_factor or 4)

    @property
    def joins_idle_slots(self) -> bool:
        """True if the last trials take the cores or GPUs of workers that have nothing to do."""
        return self.processes_per_trial == AUTO

    @property
    def processes_a_slot(self) -> int:
        """The processes that share a training while it takes no idle slots."""
        if isinstance(self.processes_per_trial, int):
            return self.processes_per_trial
        return max(1, int(self.gpus_per_trial)) if isinstance(self.gpus_per_trial, float | int) else 1

    @property
    def trials(self) -> int:
        """--num_samples, or its default."""
        return self.num_samples or (DEFAULT_TRIALS if self.time_budget is None else UNLIMITED_TRIALS)

    @property
    def confirmations(self) -> int:
        """--replicate_best, or its default: a short search ends before it has good trials to choose from."""
        return self.replicate_best if self.replicate_best is not None else CONFIRMED if self.trials >= 8 else 0


def check_one_name(names: Iterable[str], where: str = "", dashes: str = "") -> None:
    """Raises InputError, which begins with `where`, if `names` hold an option under its old and its new name."""
    given = set(names)
    for old, new in OLD_NAMES.items():
        if {dashes + old, dashes + new} <= given:
            raise InputError(f"{where}{dashes}{old} is the old name of {dashes}{new}; leave out one of the two")


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with today's names and values for all that was renamed."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in options.items()}
    for name, values in OLD_VALUES.items():
        value = renamed.get(name)
        if isinstance(value, str):
            renamed[name] = values.get(value, value)
        elif isinstance(value, list | tuple):
            renamed[name] = [values.get(one, one) for one in value]
    return renamed
