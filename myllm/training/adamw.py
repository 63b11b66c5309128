"""AdamW without the second that importing torch._dynamo takes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch


class Undecorated(torch.optim.Optimizer):
    """An optimizer for use outside of compiled code.

    PyTorch decorates the optimizer's methods so that torch.compile leaves them alone. The decorators import torch._dynamo
    at their first call, which takes a second of a core. This class calls the undecorated methods.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(Undecorated, torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov and Hutter 2019) for use outside of compiled code."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the parameters by one step; returns the result of `closure`, or None."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
