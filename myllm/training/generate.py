"""Writes text with a trained model: for trainer.py --generate, and for the sample after each epoch."""

import contextlib
import math
import os
import sys
from typing import Any

import torch

from myllm.datasets.tokenizer import Tokenizer, byte_tokenizer, end_of_text, get_tokenizer, identity, resolve
from myllm.models.custom_model import CustomModelConfig, builder, error_text
from myllm.models.model_check import choose_model
from myllm.presets import get_preset
from myllm.system.errors import InputError
from myllm.training.gpu import pick_device
from myllm.training.run_artifacts import read_config
from myllm.training.train_utils import generate, load_state, load_trial, text_to_token_ids, token_ids_to_text

LENGTH, SAMPLE_LENGTH, TEMPERATURE, TOP_K = 200, 50, 0.8, 40
DRAWING = {"length", "temperature", "top_k", "seed", "device"}
ALLOWED = DRAWING | {"generate", "load_model", "from_trial", "config", "model", "set", "tokenizer"}
"""flags that go with --generate"""


def check_flags(given: dict[str, Any]) -> None:
    """Raises InputError for flags that no text can be drawn with, and for those that --generate has no use for."""
    for name, least in (("length", 1), ("top_k", 1), ("temperature", 0)):
        if not least <= given.get(name, least) < math.inf:
            raise InputError(f"--{name} is {given[name]}; it must be a number, {least} or more")
    if not 0 <= given.get("seed", 0) < 2**31:
        raise InputError(f"--seed is {given['seed']}; it must be a whole number from 0 to 2^31 - 1")
    if "generate" not in given:
        return
    if ("load_model" in given) + ("from_trial" in given) != 1:
        raise InputError("--generate needs a trained model: --load_model FILE, or --from_trial RUN/TRIAL")
    others = given.keys() - ALLOWED
    if others:
        raise InputError(f"--generate trains nothing: --{sorted(others)[0]} does not go with it")


def can_write(model: torch.nn.Module, config: Any) -> bool:
    """Returns True if the model can write text. A custom model needs a method `logits`."""
    return not isinstance(config, CustomModelConfig) or hasattr(model, "logits")


def draw(model: torch.nn.Module, config: Any, start: str, tokenizer: Tokenizer, given: dict[str, Any], seed: int) -> str:
    """Returns `start` with the model's continuation.

    The flags length, temperature and top_k in `given` say how tokens are drawn. The random generators of training are left
    alone. Raises InputError where the method `logits` of a custom model fails.
    """
    device = next(model.parameters()).device
    ids = text_to_token_ids(start, tokenizer).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    length, temperature = given.get("length", LENGTH), given.get("temperature", TEMPERATURE)
    top_k, end = given.get("top_k", TOP_K), end_of_text(tokenizer)
    try:
        drawn = generate(model, ids, length, temperature, top_k, end, generator, config.block_size)
    except Exception as error:
        if not isinstance(config, CustomModelConfig):
            raise
        raise InputError(f"--model {config.source}: logits(ids) raises {error_text(error)}") from None
    return token_ids_to_text(drawn[0], tokenizer)


def write(given: dict[str, Any]) -> str:
    """Returns the text that --generate asks for. Needs no training data. Raises InputError."""
    config = read_config(given["config"]) if "config" in given else {}
    data, preset = config.get("data", {}), get_preset("nano")
    if "from_trial" in given:
        trial, state, where = load_trial(given["from_trial"])
        data = trial.data
        where = where if "://" not in where else str(trial.run_dir / "search.json")
    else:
        state, where = load_state(given["load_model"]), given["load_model"]
    tokenizer = _tokenizer(given, data, state, where)
    with contextlib.redirect_stdout(sys.stderr):  # notes are no part of the text
        model_config = choose_model(given, {"model": state["model_config"]}, where, preset, tokenizer.n_vocab)
        if model_config.vocab_size != tokenizer.n_vocab:
            raise InputError(
                f"{where}: the model has vocab_size {model_config.vocab_size}, {tokenizer.name} {tokenizer.n_vocab}; "
                "name its own --tokenizer"
            )
        device = pick_device(given.get("device", "auto"))
        model = builder(model_config)().to(device)
    if isinstance(model_config, CustomModelConfig) and not can_write(model, model_config):
        raise InputError(
            f"{where}: its model, {model_config.source}, has no logits(self, ids), so it can't write; add that method, "
            "returning (B, T, vocab_size), and name the file with --model"
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise InputError(f"{where}: its weights are not this model's: {' '.join(str(error).split())[:300]}") from None
    if not text_to_token_ids(given["generate"], tokenizer).numel():
        raise InputError("--generate is empty; give at least one character to begin with")
    return draw(model, model_config, given["generate"], tokenizer, given, given.get("seed", 0))


def _tokenizer(given: dict[str, Any], data: dict[str, Any], state: dict[str, Any], where: str) -> Tokenizer:
    """Returns the tokenizer of a checkpoint: that of the flag, of its search, of its own record, or the byte tokenizer."""
    theirs = state.get("data", {}).get("tokenizer_sha256")
    name = given.get("tokenizer", data.get("tokenizer") or state.get("tokenizer"))
    if name is None:  # written by a search, or before checkpoints had a name
        if theirs not in (None, identity(byte_tokenizer())):
            raise InputError(f"{where} does not say by which tokenizer; name it with --tokenizer")
        name = "byte"
    try:
        tokenizer = get_tokenizer(resolve(name))
    except InputError as error:
        hint = "" if "tokenizer" in given or not os.path.isabs(name) else "; if it was moved, name it with --tokenizer"
        raise InputError(f"{error}{hint}") from None
    if theirs not in (None, identity(tokenizer)):
        raise InputError(f"{where} was trained with a tokenizer of other contents than {name}; name its own --tokenizer")
    return tokenizer
