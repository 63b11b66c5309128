"""The settings that every search has, whatever program it trains with."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.system.files import write_text
from myllm.training.run_artifacts import remote_folder, uri_below
from tune.config.options import SearchOptions
from tune.config.overrides import SearchedSpace
from tune.core.coordinator import Configure
from tune.core.decision_config import DECISIONS
from tune.core.events import Event
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.schedulers.base import Scheduler
from tune.core.schedulers.baseline import WithBaseline
from tune.core.search_space import even_draw
from tune.core.searchers import searcher
from tune.core.trials import Trials
from tune.ladder.plan import Plan

FILE_NAME = "search.json"
RUN_ID_DIGITS = 12  # hexadecimal
FORMAT = 4
"""of the run folder; 3 had another default rule, 2 other names (options.OLD_NAMES) and ranges as text, 1 another journal"""


@dataclass(frozen=True, kw_only=True)
class SearchSpec(SearchedSpace):
    """The checked and resolved settings of a search: the space that is searched, and everything else that decides.

    A subclass for each kind of training program says what one training is.
    """

    options: SearchOptions  # the user's options, with texts as typed
    report_tokens: int
    """units of the budget between report points; in tokens and iterations a multiple of every trial's optimizer step"""
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
        """Length of one full training, in `unit`."""
        raise NotImplementedError

    @property
    def unit(self) -> str:
        """The unit of budgets: tokens, or the word that a program of the user's own counts in."""
        return "tokens"

    @property
    def loss_unit(self) -> str:
        """What stands behind the name of a loss in a figure: its unit where that is known."""
        return ", nats per token"

    @property
    def has_seeds(self) -> bool:
        """True if a training can be repeated with another seed."""
        return True

    @property
    def max_seeds(self) -> float:
        """Trainings of one configuration that may differ."""
        return math.inf

    def step_tokens(self, hyper_parameters: dict[str, Any]) -> int:
        """Units of the budget that one optimizer step of a trial takes."""
        raise NotImplementedError

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """The values of `step_tokens` that trials may have."""
        raise NotImplementedError

    def described(self) -> dict[str, dict[str, Any]]:
        """The training program by groups of settings, for the page."""
        raise NotImplementedError

    def compared_by(self) -> dict[str, Any]:
        """What two searches must have in common for their losses to be comparable, by name."""
        raise NotImplementedError

    def all_settings(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The hyper-parameters of a trial among the settings that are not searched."""
        raise NotImplementedError

    def best_config(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The contents of best_config.json for a trial, without its result."""
        raise NotImplementedError

    def trials(self, events: Iterable[Event] = (), num_samples: int | None = None) -> Trials:
        """The trials of the search after `events`."""
        found = Trials(self.budget_tokens, num_samples or self.planned_trials, self.options.rung_metric)
        found.has_seeds, found.max_seeds, found.unit = self.has_seeds, self.max_seeds, self.unit
        for event in events:
            found.apply(event)
        return found

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of steps of one full training, with --budget_seconds; the budget's unit is then the millisecond."""
        return None

    @property
    def budget_text(self) -> str:
        """The length of one full training as people read it."""
        return f"{self.budget_tokens:,} {self.unit}"

    @property
    def planned_trials(self) -> int:
        """Configurations that the search begins, at most; of a ladder those of its plan."""
        return self.ladder.trials if self.ladder else self.options.trials

    @property
    def rule_has_changed(self) -> bool:
        """True if the default rule decides by other numbers than when the search began."""
        return self.options.scheduler == SearchOptions.scheduler and self.decisions != dataclasses.asdict(DECISIONS)

    @property
    def range_texts(self) -> dict[str, str]:
        """Each hyper-parameter's range as people read it."""
        return {name: str(values) for name, values in self.ranges.items()}

    def sample(self, index: int) -> dict[str, Any]:
        """The hyper-parameters of trial `index`: of index 0 the baseline, else an even draw."""
        return even_draw(self.ranges, self.options.seed, index) if index > 0 else dict(self.baseline)

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
