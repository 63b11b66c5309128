"""The events of a search, which its journal holds one a line. The fields' names are the keys of the journal."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


def position_of(tokens_seen: int, budget_seconds: float | None) -> int:
    """Returns a place in a training in the unit of the budget: tokens, or milliseconds in a search with --budget_seconds.

    All positions of rules, trials and checkpoints are in this unit, though their names speak of tokens.
    """
    return tokens_seen if budget_seconds is None else round(1000 * budget_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. The class itself stands for events that only a newer version knows."""

    time: float = 0.0  # seconds since 1970; the journal sets it

    def to_json(self) -> dict[str, Any]:
        """Returns the event's line in the journal; a field that has its default is left out."""
        kind = type(self)
        values = {name: getattr(self, name) for name in FIELDS[kind]}
        return {"event": NAMES[kind]} | {name: value for name, value in values.items() if value != FIELDS[kind][name]}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStarted(Event):
    """A run of the command begins."""

    session: int  # number of the session, from 0
    workers: int
    processes: int = 1  # of each trial, while no idle slots join it
    startup_seconds: float = 0.0  # since the command began
    python: str = ""
    packages: Mapping[str, str | None] | None = None  # name -> version
    git_commit: str | None = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """A run of the command ends."""

    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvent(Event):
    """An event of one trial."""

    trial_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted(TrialEvent):
    """A trial begins."""

    source: str  # sampled, suggested, replicate, or audit
    parent_id: str = ""  # the trial that a replicate repeats or an audit continues
    segment_end_tokens: int  # tokens_seen at which the trial's first segment ends
    config: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResumed(TrialEvent):
    """A paused trial goes on."""

    segment_end_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported(TrialEvent):
    """An evaluation of a trial, and the decision on it."""

    decision: str  # continue, pause, or stop
    step: int  # optimizer steps
    tokens_seen: int
    train_loss: float  # nats per token, as the next two
    val_loss: float
    val_loss_ema: float  # of the averaged weights
    val_bpb: float  # bits per UTF-8 byte
    lr: float  # the learning rate of the last step
    grad_norm: float
    train_seconds: float  # of training and evaluation since the trial began
    tok_per_sec: float
    diverged: bool
    budget_seconds: float | None = None  # in a search with --budget_seconds: those of the training that are done
    processes: int = 1  # that shared the training since the report before
    compiling_seconds: float | None = None  # in a process's first report after compiling, as the next two
    plain_tok_per_sec: float | None = None
    compiled_tok_per_sec: float | None = None

    def slots(self, processes: int) -> int:
        """Returns the slots that trained up to this report, in a session whose slots have `processes` processes."""
        return max(1, self.processes // processes)

    @property
    def position(self) -> int:
        """The place of the report in the training, in the unit of the search's budget."""
        return position_of(self.tokens_seen, self.budget_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStored(TrialEvent):
    """The state of a report is stored."""

    tokens_seen: int
    path: str  # below the storage root


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsDeleted(TrialEvent):
    """Checkpoints of a trial are about to be deleted."""

    tokens_seen: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(TrialEvent):
    """A trial lost its process or machine; it goes on from its last checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailed(TrialEvent):
    """An error ended a trial."""

    reason: str


KINDS: dict[str, type[Event]] = {
    "session": SessionStarted,
    "session_end": SessionEnded,
    "trial": TrialStarted,
    "resume": TrialResumed,
    "report": Reported,
    "checkpoint": CheckpointStored,
    "checkpoints_deleted": CheckpointsDeleted,
    "worker_lost": WorkerLost,
    "failed": TrialFailed,
}
NAMES: dict[type[Event], str] = {Event: ""} | {kind: name for name, kind in KINDS.items()}
FIELDS = {kind: {field.name: field.default for field in fields(kind)} for kind in NAMES}  # with their defaults
COMPILING = ("compiling_seconds", "plain_tok_per_sec", "compiled_tok_per_sec")
OPTIONAL = ("budget_seconds", "processes", *COMPILING)  # of a report, beside its metrics
REPORTED = tuple(name for name in FIELDS[Reported] if name not in ("time", "trial_id", "decision", *OPTIONAL))  # metrics


def from_json(values: Mapping[str, Any]) -> Event:
    """Returns the event of a line of the journal. Keys of a newer version are left out; a missing key raises TypeError."""
    kind = KINDS.get(values["event"], Event)
    return kind(**{name: value for name, value in values.items() if name in FIELDS[kind]})
