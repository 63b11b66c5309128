"""summary.json as types, and its JSON schema. Each field's docstring is its description in the schema.

python -m tune.reporting.summary > summary.schema.json
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from tune.analysis.axes import Edge
from tune.analysis.stopping_audit import Audit
from tune.reporting.ladder import LadderSummary

Confidence = Literal["yes", "partly", "no"]
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


@dataclass(frozen=True)
class CustomModel:
    """A model of the user's own."""

    source: str
    """FILE.py:Class"""
    sha256: str
    """hash of the model's files"""


@dataclass(frozen=True)
class TrialCounts:
    """Number of trials."""

    begun: int
    """configurations, without replicates"""
    planned: int | None
    """configurations; null: as many as the time allows"""
    replicates: int
    """trainings of a configuration on another seed"""
    by_status: dict[str, int]
    """configurations that are completed, paused, stopped, diverged, failed or interrupted"""


@dataclass(frozen=True)
class Cost:
    """Resources that the search has used."""

    seconds: float
    """wall clock, all sessions together"""
    tokens: int
    """trained on by all trials, replicates included"""
    trainings: float
    """full trainings that take as much"""
    checkpoint_bytes: int
    """on the disk, in the run's folder"""
    lost: int
    """times that a trial's process or machine was lost"""


@dataclass(frozen=True)
class Compiled:
    """Time that torch.compile took and gained, measured by each process before its first step."""

    seconds: tuple[float, ...]
    """seconds until compiled passes reached their speed, a number for each process and shape of the model"""
    before: float
    """tokens a second of forward and backward passes without compiling, median of the processes"""
    after: float
    """tokens a second of forward and backward passes with compiling, median of the processes"""
    gain: float
    """after over before, median of the processes"""


@dataclass(frozen=True)
class Standing:
    """A configuration and its loss, a mean over seeds."""

    trial_id: str
    config: dict[str, Any]
    """hyper-parameters"""
    tokens_seen: int
    """tokens where losses are compared; milliseconds with --budget_seconds"""
    val_loss: float | None
    """nats per token, mean over seeds; null where one diverged"""
    val_bpb: float | None
    """bits per byte of text, mean over seeds; null where one diverged"""
    spread: float | None
    """nats per token between the worst and the best seed"""
    seeds: int
    """trainings of the configuration that came as far"""
    low: float | None
    """nats per token, lower end of the interval of the expected val_loss; null where no configuration has two seeds"""
    high: float | None
    """nats per token, upper end of the interval of the expected val_loss"""
    probability_best: float | None
    """of having the lowest expected val_loss of the configurations that came as far"""
    regret: float | None
    """nats per token, expected difference to the truly best configuration that came as far"""


@dataclass(frozen=True)
class Best(Standing):
    """The best configuration."""

    share_of_budget: float
    """share of the budget where losses are compared; 1: at the end"""
    compared_with: int
    """configurations that came as far, this one included; at most the 50 best and the baseline"""
    in_one_piece: float | None
    """val_loss of its training again in one piece, of a program without a seed; null where there was none"""


@dataclass(frozen=True)
class Gain:
    """Nats per token by which the best is below the baseline."""

    mean: float | None
    """nats per token; null where a seed of either diverged"""
    low: float | None
    """nats per token, lower end of the interval"""
    high: float | None
    """nats per token, upper end of the interval"""


@dataclass(frozen=True)
class Faster:
    """A configuration within the noise of the best that trains in a fraction of its time."""

    trial_id: str
    config: dict[str, Any]
    """hyper-parameters"""
    behind: float
    """nats per token behind the best"""
    times: float
    """seconds of the best's full training over those of its own"""


@dataclass(frozen=True)
class NextStep:
    """A command that continues from here."""

    what: str
    command: str


@dataclass(frozen=True)
class Summary:
    """What a search found."""

    format: Literal[2]
    """changes when a reader of the previous format could be misled; format 1 had `default`, `trust`, `rivals`, `repeats`"""
    name: str
    program: str | None
    """a training program of the user's own, its command or FILE.py:function; null: the built-in training"""
    unit: str
    """the unit of the budget, and of all that counts tokens here: tokens, or the word that such a program counts in"""
    space: str
    preset: str
    scheduler: str
    seed: int
    """of the sampled configurations and of every trial but the replicates"""
    data: str
    """the training data as the user named it; empty for a program of the user's own"""
    tokenizer: str
    """empty for a program of the user's own"""
    ranges: dict[str, str]
    """hyper-parameter -> its range, as text"""
    fixed: tuple[str, ...]
    """settings that the user fixed instead of searching, NAME=VALUE"""
    model: CustomModel | None
    """null: the built-in model"""
    moved: dict[str, Any]
    """values of the preset or model outside of the user's ranges; the baseline has the nearest value instead"""
    budget_tokens: int | None
    """tokens of one full training; null with --budget_seconds"""
    budget_seconds: float | None
    """seconds of steps of one full training; null without --budget_seconds"""
    trials: TrialCounts
    cost: Cost
    compiled: Compiled | None
    """null: nothing was compiled"""
    failed: dict[str, str]
    """trial_id -> reason"""
    level: float
    """of every interval: 0.9 holds the truth in 90 of 100"""
    best: Best | None
    """null: no trial has reported"""
    baseline: Standing | None
    """the preset's own configuration; null where it did not come as far as the best"""
    gain: Gain | None
    """null where the baseline is the best or did not come as far"""
    ladder: LadderSummary | None
    """null but for a search with --target; best, baseline and gain are null then"""
    faster: Faster | None
    """null where none is, where no configuration has two seeds, and with --budget_seconds"""
    audit: Audit | None
    """null without --audit_fraction"""
    edges: tuple[Edge, ...]
    """hyper-parameters of the best that lie at the end of their range"""
    confidence: Confidence
    """yes, partly or no: the answer can be relied on"""
    verdict: str
    """the reason for the confidence, in words"""
    next: tuple[NextStep, ...]


def summary_schema() -> dict[str, Any]:
    """Returns the schema of summary.json (JSON Schema draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "summary.json"} | schema_of(Summary)


def schema_of(kind: Any) -> dict[str, Any]:
    """Returns the schema of a type: a dataclass, a basic type, Literal, dict, tuple, or a union of them."""
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Literal:
            return {"enum": list(arguments)}
        case types.UnionType | typing.Union:
            return {"anyOf": [schema_of(one) for one in arguments]}
        case origin if origin is dict:
            return {"type": "object", "additionalProperties": schema_of(arguments[1])}
        case origin if origin is tuple:
            return {"type": "array", "items": schema_of(arguments[0])}
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {} if kind is Any else {"type": JSON_TYPES[kind]}
    described, kinds = _descriptions(kind), typing.get_type_hints(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        text = {"description": described[field.name]} if field.name in described else {}
        properties[field.name] = text | schema_of(kinds[field.name])
    schema = {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}
    return {"description": inspect.getdoc(kind)} | schema


def _descriptions(kind: type) -> dict[str, str]:
    """Returns field -> the docstring below it, of a dataclass and its bases."""
    found: dict[str, str] = {}
    for base in (one for one in kind.__mro__ if dataclasses.is_dataclass(one)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found.setdefault(name, " ".join(said.split()))
    return found


if __name__ == "__main__":
    print(json.dumps(summary_schema(), indent=2))
