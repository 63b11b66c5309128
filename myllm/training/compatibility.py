"""Compares a checkpoint with the run that is to go on from it."""

from typing import Any

from myllm.config import TrainConfig
from myllm.models.custom_model import ModelConfig, difference
from myllm.system.errors import InputError

FIXED = ("batch_size", "max_len", "stride", "seed", "ema_ratio")
"""settings that decide which windows come next or what is averaged: they can't change between checkpoint and run"""


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
        value = state["train_config"].get(field)
        if value != getattr(config, field):
            raise InputError(
                f"the checkpoint was trained with {field} {value}, not {getattr(config, field)}; it can't go on from there"
            )
