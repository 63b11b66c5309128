"""What a GPU needs of a training step: its number format, asynchronous transfers, and few kernel launches."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from myllm.system.errors import InputError, warn


def pick_device(name: str) -> torch.device:
    """Returns the torch device called `name`. Raises InputError where this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is unknown; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the number format of the forward pass; auto means bfloat16 where `device` multiplies it natively."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


STATE_BYTES = 16
"""bytes a parameter takes while AdamW trains in float32: weight, gradient, and two averages"""


def check_memory(parameters: int, device: torch.device) -> None:
    """Raises InputError where the state of a training of `parameters` weights exceeds the memory of the GPU `device`."""
    if device.type != "cuda":
        return
    needs, has = parameters * STATE_BYTES / 2**30, torch.cuda.get_device_properties(device).total_memory / 2**30
    if needs > has:
        raise InputError(
            f"a model of {parameters:,} parameters needs {needs:.0f} GiB ({STATE_BYTES} bytes a parameter) and room for "
            f"activations; {device} has {has:.0f} GiB. Several GPUs do not help: each holds the whole model"
        )


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context in which forward passes on `device` compute in `dtype`."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns `tensor` on `device`. A GPU gets it from pinned memory, so that the transfer is asynchronous."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the states of the random generators that a run on `device` draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state()} | cuda


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restores a result of `random_state`. A state of CUDA is left out on another kind of device."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextmanager
def keeping_state(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Restores the random generators, and the buffers of `model`, to what they were before the block."""
    before = random_state(device), [buffer.clone() for buffer in model.buffers()]
    yield
    set_random_state(before[0], device)
    for buffer, value in zip(model.buffers(), before[1], strict=True):
        buffer.data.copy_(value)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector. Reference counting still frees objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class CapturedGraph:
    """A recorded call, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    result: torch.Tensor


class CUDAGraphRunner:
    """Replays calls of `step` on a GPU as CUDA graphs, one graph for each set of input shapes.

    The step of a small model is some hundred kernels of a few microseconds each. A GPU waits for the CPU where they are
    launched one by one (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). `step` takes tensors on the GPU and returns
    one. All other memory that it uses, such as parameters and their .grad, must keep its address.
    """

    def __init__(self, step: Callable[..., torch.Tensor], device: torch.device):
        self.step, self.device = step, device
        self.records = True
        """False: each call launches its kernels one by one"""
        self.forget()

    def forget(self) -> None:
        """Frees the memory of all recordings; later calls record anew."""
        self.recordings: dict[tuple[torch.Size, ...], CapturedGraph] = {}
        self.warm: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *values: torch.Tensor | float) -> torch.Tensor:
        """Calls `step` with CPU tensors and numbers. The result is valid until the next call."""
        shapes = tuple(value.shape if isinstance(value, torch.Tensor) else torch.Size() for value in values)
        if self.records and shapes in self.warm and shapes not in self.recordings:
            self._record(shapes, self._sent(values))
        if shapes not in self.recordings:  # the first call compiles and allocates gradients; it may run out of memory
            self.warm.add(shapes)
            return self._aside(lambda: self.step(*self._sent(values)))
        recording = self.recordings[shapes]
        for static, value in zip(recording.inputs, values, strict=True):
            if isinstance(value, torch.Tensor):
                static.copy_(value.pin_memory(), non_blocking=True)
            else:
                static.fill_(value)
        recording.graph.replay()
        return recording.result

    def _sent(self, values: tuple[torch.Tensor | float, ...]) -> list[torch.Tensor]:
        """Returns the values as tensors on the GPU."""
        return [
            to_device(value, self.device) if isinstance(value, torch.Tensor) else torch.tensor(value, device=self.device)
            for value in values
        ]

    def _aside(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs `call` on a stream of its own, as a recording requires."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch annotates it not at all
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            result = call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return result

    def _record(self, shapes: tuple[torch.Size, ...], inputs: list[torch.Tensor]) -> None:
        """Records a call with these shapes. After a failure no later call is recorded."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # freeing an earlier run's recordings while this one records would end it
        try:
            with without_garbage_collection(), torch.cuda.graph(graph):
                result = self.step(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.records = False
            warn(f"training without CUDA graphs, which this model does not allow: {str(error).splitlines()[0]}")
            return
        self.recordings[shapes] = CapturedGraph(graph, inputs, result)
