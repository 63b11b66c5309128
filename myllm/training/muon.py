"""Muon for the matrices of the blocks: torch's own, for fused matrices and for recorded steps as well."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch

from myllm.models.block import FusedLinear
from myllm.models.gpt import GPT
from myllm.training.adamw import Undecorated


class Muon(Undecorated, torch.optim.Muon):
    """torch.optim.Muon (Jordan et al. 2024) that takes each part of a fused matrix for a matrix.

    A group's `rows` are the heights of the parts that stand on top of each other, or None for whole matrices. State and
    checkpoints hold the fused matrix, so one written before the parts were known can be read.
    """

    def _init_group(self, group: MutableMapping[str, Any], params: list[Any], grads: list[Any], momenta: list[Any]) -> bool:
        """Adds the parts of the group's parameters, gradients and momenta to the lists, as views."""
        whole: tuple[list[torch.Tensor], ...] = [], [], []
        found: bool = super()._init_group(group, *whole)
        for parts, tensors in zip((params, grads, momenta), whole, strict=True):
            parts += (part for tensor in tensors for part in torch.split(tensor, group["rows"] or len(tensor)))
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the matrices by one step; returns the result of `closure`, or None.

        The learning rate of every group is a number, or in a recorded step a tensor. torch would read such a tensor on the
        CPU, which a recording forbids: a step of rate 1 is taken, and scaled by the tensor.
        """
        rates = [group["lr"] for group in self.param_groups]
        if not any(isinstance(rate, torch.Tensor) for rate in rates):
            return super().step(closure)  # type: ignore[no-untyped-call]  # torch annotates it not at all
        decays = [group["weight_decay"] for group in self.param_groups]
        before = [[parameter.clone() for parameter in group["params"]] for group in self.param_groups]
        for group in self.param_groups:
            group.update(lr=1.0, weight_decay=0.0)
        result = super().step(closure)  # type: ignore[no-untyped-call]  # as above
        for group, rate, decay, old in zip(self.param_groups, rates, decays, before, strict=True):
            group.update(lr=rate, weight_decay=decay)
            for parameter, start in zip(group["params"], old, strict=True):
                parameter.sub_(start).mul_(rate).add_(start * (1 - rate * decay))
        return result


def block_matrices(model: torch.nn.Module, vocab_size: int) -> dict[tuple[int, ...] | None, list[torch.nn.Parameter]]:
    """Returns the matrices for Muon, by the rows of their parts; None stands for whole matrices.

    They are those of GPT's blocks. Of a custom model they are all parameters with two dimensions but embeddings, and but
    those with a dimension of `vocab_size`, such as heads.
    """
    modules = list(model.modules())
    left_out = {id(module.weight) for module in modules if isinstance(module, torch.nn.Embedding)}
    if isinstance(model, GPT):
        candidates = list(model.blocks.parameters())
    else:
        candidates = [parameter for parameter in model.parameters() if vocab_size not in parameter.shape]
    rows = {id(module.weight): module.rows for module in modules if isinstance(module, FusedLinear)}
    found: dict[tuple[int, ...] | None, list[torch.nn.Parameter]] = {}
    for parameter in candidates:
        if parameter.dim() == 2 and id(parameter) not in left_out:
            found.setdefault(rows.get(id(parameter)), []).append(parameter)
    return found
