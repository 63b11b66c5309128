"""The optimizer: AdamW without the second that importing torch._dynamo takes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from myllm.config import TrainConfig


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov and Hutter 2019) for use outside of compiled code.

    PyTorch decorates the optimizer's methods so that torch.compile leaves them alone. The decorators import torch._dynamo
    at their first call, which takes a second of a core. This class calls the undecorated methods.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the parameters by one step; returns the result of `closure`, or None."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def build_optimizer(model: torch.nn.Module, config: TrainConfig, device: torch.device) -> AdamW:
    """Returns the AdamW of `config`, which decays matrices and embeddings but neither biases nor norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.step_beta2),
        fused=True,
        capturable=device.type == "cuda",
    )


def restore_averages(optimizer: AdamW, state: dict[str, Any]) -> None:
    """Loads the averages of gradients from `state`. Weight decay, betas and all other settings stay the optimizer's own."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)
