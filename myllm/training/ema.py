"""An average of the weights over the last part of the steps so far."""

import contextlib
from collections.abc import Iterator

import torch


@torch.no_grad()
def move_average(average: list[torch.Tensor], weights: list[torch.Tensor], ema_ratio: float, step: int) -> None:
    """Moves `average` towards the weights after optimizer step `step` (from 1).

    The average forgets at the rate 1 / (ema_ratio * step). So its horizon stays the share ema_ratio of the steps so far.
    This is the power-function average of Karras et al., arXiv 2312.02696, section 3.1, with gamma + 1 = 1 / ema_ratio.
    """
    torch._foreach_lerp_(average, weights, min(1.0, 1 / (ema_ratio * step)))


@contextlib.contextmanager
def in_place_of(weights: list[torch.Tensor], average: list[torch.Tensor]) -> Iterator[None]:
    """Swaps the values of `weights` and `average` while the block lasts."""
    _swap(weights, average)
    try:
        yield
    finally:
        _swap(weights, average)


def _swap(weights: list[torch.Tensor], average: list[torch.Tensor]) -> None:
    for one, other in zip(weights, average, strict=True):
        one.data, other.data = other.data, one.data
