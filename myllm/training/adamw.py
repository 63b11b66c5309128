"""AdamW without a second of imports."""

import inspect
from collections.abc import Callable
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov and Hutter 2019), to be used outside of what is compiled.

    PyTorch's keeps itself out of compiled code, for which its first call imports torch._dynamo, a second of a core, whether
    anything is compiled or not. The same functions are called here without that; gradients are not wanted within `step`.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step down the gradients; what `closure` returns, where there is one."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
