"""Chooses the model of a training, and tries a custom model before anything heavy starts."""

import contextlib
import inspect
import io
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from myllm.models.custom_model import (
    CustomModelConfig,
    ModelConfig,
    builder,
    custom_model,
    error_text,
    fix_settings,
    is_changed,
    load_class,
    read_model,
    with_settings,
)
from myllm.models.model_contract import Probe, check_contract
from myllm.presets import PRESETS, Preset
from myllm.system.errors import InputError, warn

CHOSEN = ("dropout", "bias", "activation", "norm", "position", "mlp", "qk_norm", "tied")  # of a model, beside its size
DRAWS = 64  # pairs of targets by which the unit of a loss is found
PREFIX = 8  # tokens at which a loss is compared with logits
ODD = 1.25  # times one nat per token, or less than its inverse, is another unit: a bit is 1.44


def choose_model(given: dict[str, Any], config: dict[str, Any], where: str, preset: Preset, vocab_size: int) -> ModelConfig:
    """Returns the model that flags, the configuration of the file `where`, and the preset describe; the earlier wins.

    Where the preset is not that of the configuration, the model keeps what was chosen beside its size. A custom model is
    tried. Raises InputError.
    """
    model: ModelConfig = preset.model(vocab_size)
    if "model" in config:
        found, named = read_model(config["model"], f"{where}: model"), config.get("preset")
        if given.get("preset", named) == named:
            model = found
        elif isinstance(found, CustomModelConfig):
            raise InputError(
                f"--preset {given['preset']}: {where} is for your own model {found.source}, which has no presets; leave "
                "--preset out, and change the model's size with --set NAME=VALUE"
            )
        elif named in PRESETS:
            usual = PRESETS[named].model(vocab_size)
            chosen = {name: getattr(found, name) for name in CHOSEN if getattr(found, name) != getattr(usual, name)}
            model = with_settings(model, chosen)
    if "model" in given:
        before, model = model, custom_model(given["model"], vocab_size, model.block_size)
        if isinstance(before, CustomModelConfig):
            if before.sha256 != model.sha256:
                print(f"note: {model.source} is not the code that {where} was found with")
            model = with_settings(model, before.settings)
    elif isinstance(model, CustomModelConfig):
        owner = os.stat(where).st_uid
        if owner != os.getuid():
            raise InputError(
                f"{where} brings the code of {model.source}, and belongs to another user (id {owner}); "
                "look at it, then name the code with --model"
            )
        if is_changed(model):
            print(f"note: {model.source} has changed since; this is the code that {where} was found with")
    model = fix_settings(model, given.get("set", ()))
    if isinstance(model, CustomModelConfig):
        check_trains(model)
    return model


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Suppresses prints while the block lasts: many models print their size whenever they are built."""
    return contextlib.redirect_stdout(io.StringIO())


def check_builds(model: CustomModelConfig) -> None:
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
            call = f"{model.class_name}({model.settings}, {model.vocab_size})"
            raise InputError(f"--model {model.source}: {call} raises {error_text(error)}") from None


def parameter_shapes(model: ModelConfig) -> dict[str, torch.Size]:
    """Returns the shape of each parameter by its name, of a model that is built in no memory where its class allows it."""
    build = builder(model)
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            with torch.device("meta"):
                module = build()
        except (Exception, SystemExit):  # the class has values that the device can't hold
            module = build()
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def check_trains(model: CustomModelConfig) -> None:
    """Builds a custom model, takes a loss and its gradient on this CPU, and tries the contract.

    Raises InputError for what is wrong; warns where the unit of the loss is doubtful.
    """
    cls, probe = load_class(model), Probe(model)
    if not issubclass(cls, torch.nn.Module):
        raise probe.wrong(f"{model.class_name} is no torch.nn.Module")
    _check_signature(cls, 2, probe, f"{model.class_name}(settings, vocab_size)")
    _check_signature(cls.forward, 3, probe, "forward(self, ids, targets)")
    with torch.random.fork_rng(devices=[]), quiet():
        module = probe.build(0)
        ids, targets = probe.windows(2, model.block_size)
        _check_loss(probe, probe.forward(module, ids, targets))
        module.eval()
        if hasattr(module, "logits"):
            _check_logits(module, probe, ids, targets)
        unit = None if hasattr(module, "logits") else unit_of(module, ids, model.vocab_size)
        del module
        check_contract(probe)
    if unit and not 1 / ODD < unit < ODD:
        warn(
            f"--model {model.source}: before training its loss is about {unit:.3g} times one of which probabilities add up "
            "to 1: it must be the mean over tokens, in nats (bits are 1.44 times, a sum over 2 tokens 2 times); where it "
            "is, its fresh logits lie far apart, and a method logits(ids) lets it be checked exactly"
        )


def _check_loss(probe: Probe, loss: Any) -> None:
    """Raises InputError where a loss is no finite scalar with a gradient."""
    wrong = probe.wrong
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
        torch.autograd.backward(loss)
    except (Exception, SystemExit) as error:
        raise wrong(f"backward() of its loss raises {error_text(error)}") from None


@torch.no_grad()
def _check_logits(module: Any, probe: Probe, ids: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises InputError where logits(ids) are none; warns where the loss is not their cross-entropy, token by token."""
    length, losses, vocab_size = min(PREFIX, ids.size(1)), [], probe.config.vocab_size
    try:
        for t in range(length):  # each from what came before it alone: a model that sees its targets shows here
            logits = module.logits(ids[:1, : t + 1])
            last = logits[:, -1].float()
            if logits.dim() != 3 or last.size(-1) < vocab_size:
                raise probe.wrong(
                    f"logits(ids) of {(1, t + 1)} ids has the shape {tuple(logits.shape)}; "
                    f"it must be (1, {t + 1}, {vocab_size}), or (1, 1, {vocab_size})"
                )
            losses.append(torch.nn.functional.cross_entropy(last, targets[:1, t]).item())
        loss = module(ids[:1, :length], targets[:1, :length]).item()
    except InputError:
        raise
    except Exception as error:
        raise probe.wrong(f"logits(ids) of {(1, len(losses) + 1)} ids raises {error_text(error)}") from None
    mean = sum(losses) / length
    if abs(loss - mean) > 0.01 * mean:
        warn(
            f"--model {probe.config.source}: its loss over {length} tokens is {loss:.4g}, the mean cross-entropy of its "
            f"logits {mean:.4g} nats: it must be the mean over tokens, in nats, each told from those up to it alone"
        )


@torch.no_grad()
def unit_of(module: Any, ids: torch.Tensor, vocab_size: int) -> float | None:
    """By what a model's loss must be divided to be one in nats per token, as near as DRAWS draws tell; `ids` is (B, T).

    exp(-2 loss) is the probability of two targets, and adds up to 1 over all pairs of them: the mean over pairs drawn
    evenly times vocab_size^2 is about 1, in nats alone. None where it takes no window of two tokens.
    """
    window = ids[:1, :2]
    pairs = torch.randint(vocab_size, (DRAWS, 1, 2), generator=torch.Generator().manual_seed(0))
    try:
        losses = torch.stack([module(window, targets).double().cpu() for targets in pairs])
    except Exception:  # of a model that takes whole windows alone
        return None
    low, high = 1e-3, 1e3  # the excess falls from one to the other
    for _ in range(60):
        middle = math.sqrt(low * high)
        excess = torch.logsumexp(-2 * losses / middle, 0).item() - math.log(DRAWS) + 2 * math.log(vocab_size)
        low, high = (middle, high) if excess < 0 else (low, middle)
    return middle


def _check_signature(called: Callable[..., Any], count: int, probe: Probe, how: str) -> None:
    """Raises InputError where `called` does not take `count` arguments."""
    try:
        inspect.signature(called).bind(*range(count))
    except TypeError:
        given = inspect.signature(called)
        raise probe.wrong(f"it is called as {how}, and takes {given}") from None
    except ValueError:
        pass  # no signature to see
