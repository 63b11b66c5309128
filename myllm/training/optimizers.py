"""Chooses the optimizer of a training: AdamW, Muon beside AdamW, or those that a custom model makes for itself."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from myllm.config import TrainConfig
from myllm.models.custom_model import CustomModelConfig, error_text
from myllm.models.model_contract import Probe
from myllm.system.errors import InputError
from myllm.training.adamw import AdamW


class Optimizers:
    """The optimizers of a training, which step as one. The rates of groups of parameters keep their ratios."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], peak: float):
        self.optimizers = list(optimizers)
        self.ratios = [group["lr"] / peak for group in self.param_groups]
        """the rate of each group over the schedule's, whose highest is `peak`"""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def set_rate(self, rate: float | torch.Tensor) -> None:
        """Sets the learning rates of all groups, where the schedule's is `rate`."""
        for group, ratio in zip(self.param_groups, self.ratios, strict=True):
            group["lr"] = rate * ratio

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Moves the parameters by one step of each optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the optimizer, or of several in order."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return states[0] if len(states) == 1 else {"optimizers": states}

    def load_averages(self, state: dict[str, Any]) -> None:
        """Loads the averages of gradients from `state`. Weight decay, betas and all other settings stay as they are.

        Raises InputError where `state` is that of other optimizers.
        """
        try:
            for one, saved in zip(self.optimizers, state.get("optimizers", [state]), strict=True):
                ours = [{name: value for name, value in group.items() if name != "params"} for group in one.param_groups]
                one.load_state_dict(saved)
                for group, settings in zip(one.param_groups, ours, strict=True):
                    group.update(settings)
        except (ValueError, KeyError) as error:  # a custom model's code may have changed
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the checkpoint's optimizer is another one: {reason}") from None


def build_optimizers(model: torch.nn.Module, config: TrainConfig, device: torch.device, vocab_size: int) -> Optimizers:
    """Returns the optimizer of a training: the custom model's own, or the one that `config` names.

    AdamW decays matrices and embeddings but neither biases nor norms. Muon takes the matrices of the blocks, and leaves all
    other parameters to AdamW. Raises InputError where a custom model's optimizers do not fit, or where Muon has no matrix.
    """
    if hasattr(model, "optimizers"):
        return own_optimizers(model, config)
    if config.optimizer == "adamw":
        return Optimizers([_adamw(model.parameters(), config, device)], config.learning_rate)
    from myllm.training.muon import Muon, block_matrices  # here: only Muon needs the model

    matrices = block_matrices(model, vocab_size)
    if not matrices:
        raise InputError(
            "optimizer muon has nothing to train: the model has no matrix beside embeddings and head; use optimizer adamw"
        )
    muon = Muon(
        [{"params": parameters, "rows": rows} for rows, parameters in matrices.items()],
        lr=config.learning_rate * config.muon_lr_ratio,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # a step as large as AdamW's (Liu et al., arXiv 2502.16982, section 2.2)
    )
    theirs = {id(parameter) for parameters in matrices.values() for parameter in parameters}
    others = [parameter for parameter in model.parameters() if id(parameter) not in theirs]
    return Optimizers([muon, *([_adamw(others, config, device)] if others else [])], config.learning_rate)


def _adamw(parameters: Iterable[torch.nn.Parameter], config: TrainConfig, device: torch.device) -> AdamW:
    """Returns AdamW for `parameters`, which decays those with two or more dimensions."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    others = [parameter for parameter in parameters if parameter.dim() < 2]
    return AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.step_beta2),
        fused=True,
        capturable=device.type == "cuda",
    )


def own_optimizers(model: torch.nn.Module, config: TrainConfig) -> Optimizers:
    """Returns what the method optimizers(settings) of a custom model makes; `settings` are those of TrainConfig.

    Raises InputError where the method fails, or where a parameter has no optimizer, or two.
    """
    called = f"optimizers(settings) of {type(model).__name__}"
    settings = vars(config) | {"beta2": config.step_beta2}
    try:
        made: Any = model.optimizers(settings)  # type: ignore[operator]  # torch takes every attribute for a module
    except Exception as error:
        raise InputError(f"{called} raises {error_text(error)}") from None
    found = list(made) if isinstance(made, list | tuple) else [made]
    for one in found or [None]:
        if not isinstance(one, torch.optim.Optimizer):
            raise InputError(f"{called} returns a {type(one).__name__}; it must return torch optimizers, one or a list")
    counts: dict[int, int] = {}
    for parameter in (p for one in found for group in one.param_groups for p in group["params"]):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (count := counts.get(id(parameter), 0)) != 1:
            raise InputError(f"{called}: the parameter {name} is in {count} groups; it must be in one")
    return Optimizers(found, config.learning_rate)


def check_optimizers(model: CustomModelConfig, configs: Iterable[TrainConfig]) -> None:
    """Tries a step of each of `configs` on a custom model, and a checkpoint of its optimizer. Raises InputError."""
    probe = Probe(model)
    with torch.random.fork_rng(devices=[]):
        for config in configs:
            module = probe.build(0)
            if config.optimizer == "adamw" and not hasattr(module, "optimizers"):
                continue  # AdamW trains every model
            try:
                optimizer = build_optimizers(module, config, torch.device("cpu"), model.vocab_size)
            except InputError as error:
                raise probe.wrong(str(error)) from None
            torch.autograd.backward(probe.forward(module, *probe.windows(1, model.block_size)))
            try:
                optimizer.step()
            except Exception as error:
                raise probe.wrong(f"a step of its optimizer raises {error_text(error)}") from None
            if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
                raise probe.wrong("after one step of its optimizer weights are not finite")
            _check_saved(probe, optimizer)


def _check_saved(probe: Probe, optimizer: Optimizers) -> None:
    """Raises InputError where a checkpoint can't hold the state of `optimizer`."""
    buffer = io.BytesIO()
    try:
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # pickle's and torch's own, of many kinds
        raise probe.wrong(
            "a checkpoint can't hold the state of its optimizers: let it be tensors, or numbers, texts, lists and dicts of "
            "Python's own"
        ) from None
