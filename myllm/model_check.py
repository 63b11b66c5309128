"""A model of the user's own, tried before anything heavy starts: that it can be built, and that its loss trains it."""

import contextlib
import inspect
import io
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from myllm.config import Preset
from myllm.errors import InputError, warn
from myllm.own_model import (
    ModelConfig,
    OwnModelConfig,
    builder,
    fix_settings,
    is_changed,
    load_class,
    own_model,
    read_model,
    told,
    with_settings,
)

FAR = 4  # times the loss of a uniform guess, beyond which a fresh model's loss is hardly a mean in nats per token


def choose_model(given: dict[str, Any], config: dict[str, Any], preset: Preset, vocab_size: int) -> ModelConfig:
    """The model that trainer.py's flags, config file and preset describe (the earlier wins), tried where it is an own one.

    Raises InputError.
    """
    model: ModelConfig = preset.model(vocab_size)
    if "model" in config and "preset" not in given:
        model = read_model(config["model"], f"{given['config']}: model")
    if "model" in given:
        before, model = model, own_model(given["model"], vocab_size, model.block_size)
        if isinstance(before, OwnModelConfig):
            if before.sha256 != model.sha256:
                print(f"note: {model.source} is not the code that {given['config']} was found with")
            model = with_settings(model, before.settings)
    elif isinstance(model, OwnModelConfig):
        owner = os.stat(given["config"]).st_uid
        if owner != os.getuid():
            raise InputError(
                f"{given['config']} brings the code of {model.source}, and belongs to another user (id {owner}); "
                "look at it, then name the code with --model"
            )
        if is_changed(model):
            print(f"note: {model.source} has changed since; this trains the code that {given['config']} was found with")
    model = fix_settings(model, given.get("fix", ()))
    if isinstance(model, OwnModelConfig):
        check_trains(model)
    return model


def quiet() -> contextlib.AbstractContextManager:
    """Within it nothing is printed: many models tell their size whenever they are built."""
    return contextlib.redirect_stdout(io.StringIO())


def check_builds(model: OwnModelConfig) -> None:
    """Raises InputError where the class can't be built from these settings; in no memory where the meta device will do."""
    build = builder(model)
    try:
        with torch.device("meta"), quiet():
            build()
    except (Exception, SystemExit):  # of the class, or of the device that holds no values
        try:
            with quiet():
                build()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"--model {model.source}: {model.class_name}({model.settings}, {model.vocab_size}) raises {told(error)}"
            ) from None


def check_trains(model: OwnModelConfig) -> None:
    """Builds an own model, and takes a loss and its gradient on this CPU. Raises InputError for all that is wrong."""
    cls, name = load_class(model), model.class_name

    def wrong(what: str) -> InputError:
        return InputError(f"--model {model.source}: {what}")

    if not issubclass(cls, torch.nn.Module):
        raise wrong(f"{name} is no torch.nn.Module")
    _check_signature(cls, 2, wrong, f"{name}(settings, vocab_size)")
    _check_signature(cls.forward, 3, wrong, "forward(self, ids, targets)")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        try:
            module = builder(model)()
        except (Exception, SystemExit) as error:
            raise wrong(f"{name}({model.settings}, {model.vocab_size}) raises {told(error)}") from None
        if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in module.parameters()):
            raise wrong("it has lazy modules, whose parameters have no shape before they are used: give them their sizes")
        ids = torch.randint(model.vocab_size, (2, model.block_size + 1))
        ids[0, 0] = ids[1, -1] = model.vocab_size - 1
        ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

        def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> Any:
            try:
                return module(ids, targets)
            except (Exception, SystemExit) as error:
                raise wrong(f"forward(ids, targets) of {tuple(ids.shape)} ids raises {told(error)}") from None

        loss = loss_of(ids, targets)
        if not isinstance(loss, torch.Tensor):
            hint = "; return the loss alone" if isinstance(loss, tuple | list | dict) else ""
            raise wrong(
                f"forward(ids, targets) returns a {type(loss).__name__}; it must return the loss, a scalar tensor{hint}"
            )
        if loss.dim() or not loss.is_floating_point():
            raise wrong(
                f"forward(ids, targets) returns a {loss.dtype} tensor of shape {tuple(loss.shape)}; it must be a scalar"
            )
        if not loss.requires_grad:
            raise wrong("its loss has no gradient: it is detached, or computed without one, or the model has no parameters")
        if not math.isfinite(loss.item()):
            raise wrong(f"its loss is {loss.item()} before any training")
        try:
            loss.backward()
        except (Exception, SystemExit) as error:
            raise wrong(f"backward() of its loss raises {told(error)}") from None
        module.eval()
        with torch.no_grad():
            once, twice = (loss_of(ids[:1].repeat(n, 1), targets[:1].repeat(n, 1)).item() for n in (1, 2))
    if abs(twice - once) > 0.01 * abs(once):
        raise wrong(
            f"its loss is {once:.4g} on a window and {twice:.4g} on the same one twice; it must be the mean over tokens"
        )
    if once > FAR * math.log(model.vocab_size):
        warn(
            f"--model {model.source}: its loss is {once:.4g} before training, a uniform guess has "
            f"{math.log(model.vocab_size):.4g}: it must be the mean over tokens, in nats"
        )


def _check_signature(called: Callable, count: int, wrong: Callable[[str], InputError], how: str) -> None:
    try:
        inspect.signature(called).bind(*range(count))
    except TypeError:
        given = inspect.signature(called)
        raise wrong(f"it is called as {how}, and takes {given}") from None
    except ValueError:
        pass  # no signature to see
