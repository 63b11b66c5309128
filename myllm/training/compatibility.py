"""Compares a checkpoint with the run that is to go on from it."""

from dataclasses import dataclass
from typing import Any

from myllm.config import TrainConfig
from myllm.datasets.windows import BatchStream
from myllm.models.custom_model import ModelConfig, difference
from myllm.system.errors import InputError

FIXED = ("batch_size", "max_len", "stride", "seed", "ema_ratio", "optimizer")
"""settings that decide which windows come next, or what is averaged: they can't change between checkpoint and run"""


@dataclass(frozen=True)
class Position:
    """The place in the data where a run goes on."""

    epoch: int
    """passes before the present one, passes over other data included"""
    batch: int
    """batches of the present pass that are trained"""
    earlier_epochs: int
    """passes over other data"""
    earlier_steps: int
    """optimizer steps over other data"""


def trained_on_other_data(state: dict[str, Any], stream: BatchStream) -> bool:
    """Returns True if `state` was trained on other data; without a fingerprint, if its position lies beyond the data."""
    saved = state.get("data", {}).get("train")
    if saved is None:
        return bool(state["batch"] > stream.steps_per_epoch)
    return bool(saved != stream.windows.tokens.fingerprint())


def find_position(state: dict[str, Any], stream: BatchStream, other_data: bool) -> Position:
    """Returns the position of `state`, or with `other_data` the start of a new pass. Raises InputError for other data."""
    if not trained_on_other_data(state, stream):
        earlier = state.get("earlier", {"epochs": 0, "steps": 0})
        return Position(state["epoch"], state["batch"], earlier["epochs"], earlier["steps"])
    if not other_data:
        raise InputError(f"the checkpoint was trained on other data than {stream.windows.tokens.name}")
    finished = state["batch"] >= state.get("steps_per_epoch", 1)  # a pass ends when the next batch is asked for
    epochs = state["epoch"] + finished
    return Position(epochs, 0, epochs, state["step"])


def check_compatible(
    state: dict[str, Any], config: TrainConfig, model_config: ModelConfig, tokenizer_sha256: str | None
) -> None:
    """Raises InputError where the run of `config` can't go on from `state`.

    Reasons are another model shape, a tokenizer of other contents, and another value of a setting in FIXED.
    """
    theirs = state.get("data", {}).get("tokenizer_sha256")  # none in checkpoints from before it was kept
    if theirs and tokenizer_sha256 and theirs != tokenizer_sha256:
        raise InputError(
            f"the checkpoint was trained with a tokenizer of other contents (sha256 {theirs[:8]}, not "
            f"{tokenizer_sha256[:8]}): the same ids mean other text; name its own --tokenizer"
        )
    if different := difference(model_config, state["model_config"]):
        raise InputError(different)
    for field in FIXED:
        value = state["train_config"].get(field, getattr(TrainConfig, field, None))  # older than the setting: its default
        if value != getattr(config, field):
            raise InputError(
                f"the checkpoint was trained with {field} {value}, not {getattr(config, field)}; it can't go on from there"
            )
