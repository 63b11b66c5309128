"""The answer of a ladder as types, for summary.json, and how it is computed from the search's trials."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from myllm.scaling_laws import LOWEST_PARAMS
from myllm.text.commands import command
from tune.config.spec import BuiltinSearch
from tune.core.trials import Trials
from tune.ladder.answer import FARTHEST_LOSS, Interval
from tune.ladder.plan import Plan
from tune.ladder.runs import Check, Outcome, Stability, is_over, outcome, rounded, run_of, trials_by_level

TARGET_FILE = "target.pth"
"""file of the run's folder into which the printed command trains the target"""


@dataclass(frozen=True)
class LadderLevel:
    """A level: a smaller model, trained whole several times."""

    model: str
    """settings that grow with the model"""
    params: int
    """without embeddings and head"""
    tokens: int
    """of each training"""
    runs: int
    """trainings that have ended"""
    planned: int
    share: float
    """of the target's compute, all its runs together"""
    learning_rate: float | None
    """of the run with the lowest loss"""
    batch_size: int | None
    """windows, of the run with the lowest loss"""
    val_loss: float | None
    """nats per token, the lowest"""


@dataclass(frozen=True)
class LadderCheck:
    """The verification of a level: what smaller levels predicted, and what came out."""

    model: str
    learning_rate: Interval
    """predicted"""
    batch_tokens: Interval
    """predicted, tokens a step"""
    loss: Interval
    """predicted, nats per token"""
    found_rate: float
    """optimum of the fit of all runs"""
    found_batch: float
    """optimum of the fit of all runs, tokens a step"""
    found_loss: float
    """nats per token, of the run at the predicted rate and batch"""
    twice_rate: float | None
    """nats per token above found_loss at twice the rate; null where that run has no loss"""
    twice_batch: float | None
    """nats per token above found_loss at twice the batch; null where that run has no loss"""
    holds: bool
    """rate, batch and loss came out inside their intervals"""
    widening: float
    """factor on the widths of the answer's intervals, 1 where it holds"""


@dataclass(frozen=True)
class LadderTruth:
    """The target's own training, read from its file."""

    path: str
    tokens_seen: int
    ended: bool
    val_loss: float
    """nats per token, at its last report"""
    difference: float
    """val_loss minus the forecast, as a share of the forecast"""
    inside: bool
    """val_loss is inside the forecast's interval"""


@dataclass(frozen=True)
class LadderSummary:
    """The answer of a ladder for its target."""

    target: str
    """settings that grow with the model"""
    params: int
    """of the target, without embeddings and head"""
    tokens: int
    """of the target's training"""
    share: float
    """of the target's compute that the runs so far have taken"""
    learning_rate: Interval | None
    """null: too few runs have ended"""
    batch_tokens: Interval | None
    """tokens a step"""
    batch_size: int | None
    """windows: the power of two nearest to batch_tokens"""
    loss: Interval | None
    """to expect at the end of the target's training, nats per token"""
    compute_ratio: float
    """target's compute over that of the largest level that ran; no loss forecast holds beyond 16"""
    expected_regret: float | None
    """nats per token that the answer is expected to be above the target's best rate and batch"""
    share_from_runs: dict[str, float]
    """part of the variance before any run that the runs removed, of learning_rate and batch_tokens"""
    kept: dict[str, str]
    """settings that were not measured, each with its value and the rule behind it"""
    levels: tuple[LadderLevel, ...]
    checks: tuple[LadderCheck, ...]
    stability: dict[str, bool]
    """learning rate -> True if the target's loss fell in a short training with it"""
    notes: tuple[str, ...]
    truth: LadderTruth | None
    """null until the target's training has reported"""


def summarize_ladder(run_dir: Path, search: BuiltinSearch, plan: Plan, trials: Trials) -> LadderSummary:
    """Returns the answer of a ladder, as far as it has come."""
    found = outcome(plan, trials)
    by_level = trials_by_level(plan, trials)
    spent = sum(level.flops * len(here) for level, here in zip(plan.levels, by_level, strict=False))
    spent += sum(trial.tokens for trial in by_level[-1]) / plan.target.tokens * plan.target.flops
    done = [level.flops for level, here in zip(plan.levels, by_level, strict=False) if any(map(is_over, here))]
    answer = found.answer if found else None
    notes = list(answer.notes) if answer else []
    if answer and search.training.optimizer != "adamw":
        notes.append(f"The rule is AdamW's: with {search.training.optimizer} the intervals are too narrow.")
    return LadderSummary(
        target=plan.target.words,
        params=plan.target.params,
        tokens=plan.target.tokens,
        share=spent / plan.target.flops,
        learning_rate=answer.learning_rate if answer else None,
        batch_tokens=answer.batch_tokens if answer else None,
        batch_size=found.batch_size if found else None,
        loss=answer.loss if answer else None,
        compute_ratio=plan.target.flops / max(done, default=plan.levels[0].flops),
        expected_regret=answer.expected_regret if answer else None,
        share_from_runs=answer.share_from_runs if answer else {},
        kept=kept_settings(search),
        levels=tuple(_levels(plan, trials)),
        checks=tuple(_check(plan, check) for check in found.checks) if found else (),
        stability=_stability(found.stability, plan) if found else {},
        notes=tuple(notes),
        truth=read_truth(run_dir / TARGET_FILE, search, found) if found else None,
    )


def kept_settings(search: BuiltinSearch) -> dict[str, str]:
    """Returns the target's settings that no run of the ladder varied, each with its value and rule."""
    training = search.training
    return {
        "warmup_ratio": f"{training.warmup_ratio:g}: the same share of the steps as at every level",
        "weight_decay": f"{training.weight_decay:g}: as at every level, which have the target's tokens a parameter",
    }


def _levels(plan: Plan, trials: Trials) -> list[LadderLevel]:
    rows = []
    for level, here in zip(plan.levels, trials_by_level(plan, trials), strict=False):
        if not here and not level.runs:
            continue
        ended = [(run.loss, trial) for trial in here if (run := run_of(plan, level, trial))]
        loss, best = min(ended, key=lambda row: row[0]) if ended else (None, None)
        rows.append(
            LadderLevel(
                model=level.words,
                params=level.params,
                tokens=level.tokens,
                runs=len(ended),
                planned=max(level.runs, len(here)),
                share=len(here) * level.flops / plan.target.flops,
                learning_rate=best.config["learning_rate"] if best else None,
                batch_size=best.config["batch_size"] if best else None,
                val_loss=loss,
            )
        )
    return rows


def _check(plan: Plan, check: Check) -> LadderCheck:
    return LadderCheck(
        model=plan.levels[check.level].words,
        learning_rate=check.predicted_rate,
        batch_tokens=check.predicted_batch,
        loss=check.predicted_loss,
        found_rate=check.rate,
        found_batch=check.batch,
        found_loss=check.loss,
        twice_rate=check.twice_rate,
        twice_batch=check.twice_batch,
        holds=check.holds,
        widening=check.widening,
    )


def _stability(short: tuple[Stability, ...], plan: Plan) -> dict[str, bool]:
    seen = ((f"{one.learning_rate:g}", one.is_stable(plan.vocab_size)) for one in short)
    return {rate: stable for rate, stable in seen if stable is not None}


def read_truth(path: Path, search: BuiltinSearch, found: Outcome) -> LadderTruth | None:
    """Returns what came out of the target's training so far; None where the file is missing, or of another training."""
    if not path.is_file():
        return None
    from myllm.training.train_utils import load_state  # here: torch takes long

    state = load_state(path)
    history, training = state.get("history") or [], state["train_config"]
    wanted = {
        "learning_rate": rounded(found.answer.learning_rate.value),
        "batch_size": found.batch_size,
        "budget_tokens": found.budget_tokens,
    }
    same = {name: training.get(name) for name in wanted} == wanted and state["model_config"] == vars(search.model)
    if not history or not same:
        return None
    last, forecast = history[-1], found.answer.loss
    return LadderTruth(
        path=str(path),
        tokens_seen=last["tokens_seen"],
        ended=last["tokens_seen"] >= found.budget_tokens,
        val_loss=last["val_loss"],
        difference=last["val_loss"] / forecast.value - 1,
        inside=forecast.low <= last["val_loss"] <= forecast.high,
    )


def judge_ladder(ladder: LadderSummary) -> tuple[Literal["yes", "partly", "no"], str]:
    """Returns the confidence in the answer (yes, partly or no), and the reason in a sentence or two."""
    if ladder.learning_rate is None:
        return "no", "No answer yet: too few runs have ended."
    if not all(ladder.stability.values()):
        rate = min((rate for rate, stable in ladder.stability.items() if not stable), key=float)
        first = float(rate) < 1.5 * ladder.learning_rate.value
        what = "the answer's own rate" if first else "twice the answer's rate"
        return "no" if first else "partly", f"The target's loss did not fall in a short training at {what}, {rate}."
    if not ladder.checks:
        return "no", "No level has been predicted and then run yet, so nothing is verified."
    top = ladder.checks[-1]
    if not top.holds:
        return "partly", (
            f"What smaller levels predicted for {top.model} came out outside of its interval; the intervals here are"
            f" {top.widening:.2g} times as wide for it."
        )
    if len(ladder.stability) < 2:
        return "partly", f"The prediction for {top.model} held; the target's stability has not been looked at yet."
    stable = f"The prediction for {top.model} held, and the target is stable at twice the rate."
    if ladder.compute_ratio > FARTHEST_LOSS:
        return "partly", (
            f"{stable} But the target takes {ladder.compute_ratio:.0f} times its compute: no loss forecast holds beyond 16."
        )
    if ladder.params < LOWEST_PARAMS:
        return "partly", f"{stable} But below 10M parameters no published law of the rate holds."
    return "yes", stable


def train_command(run_dir: Path) -> str:
    """Returns the command that trains the target into the run's folder, where report.py finds it."""
    config, file = run_dir / "best_config.json", run_dir / TARGET_FILE
    return command("myllm/training/trainer.py", "--config", config, "--save_model", file)
