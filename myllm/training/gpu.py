"""What a GPU wants of a training step: its arithmetic, transfers that nobody waits for, and few launches."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from myllm.system.errors import InputError, warn


def pick_device(name: str) -> torch.device:
    """The torch device called `name`. Raises InputError where this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is unknown; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def arithmetic(dtype: str, device: torch.device) -> torch.dtype:
    """The type of the forward pass on `device`: for auto bfloat16 where the device multiplies it natively."""
    if dtype != "auto":
        return getattr(torch, dtype)
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; to a GPU from pinned memory, so that neither side waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random generators that a run on `device` draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state()} | cuda


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts `random_state` back, that of another device as far as it goes."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Within it Python does not look for garbage; what is counted out is freed all the same."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class CapturedGraph:
    """A call, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    result: torch.Tensor


class CUDAGraphRunner:
    """Replays calls of `step` on a GPU as CUDA graphs, one for each set of shapes it is called with.

    A small model's step is some hundred kernels of a few microseconds; launched one by one they keep a GPU waiting
    (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). `step` takes tensors on the GPU and returns one; what else it
    reads and writes, parameters and their .grad say, must stay where it is.
    """

    def __init__(self, step: Callable[..., torch.Tensor], device: torch.device):
        self.step, self.device = step, device
        self.records = True
        """False: every call is launched kernel by kernel"""
        self.forget()

    def forget(self) -> None:
        """Frees the recordings' memory; what follows is recorded anew."""
        self.recordings: dict[tuple[torch.Size, ...], CapturedGraph] = {}
        self.warm: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *values: torch.Tensor | float) -> torch.Tensor:
        """One call with CPU tensors and numbers; the result holds until the next."""
        shapes = tuple(value.shape if isinstance(value, torch.Tensor) else torch.Size() for value in values)
        if self.records and shapes in self.warm and shapes not in self.recordings:
            self._record(shapes, self._sent(values))
        if shapes not in self.recordings:  # first in plain: this compiles, allocates gradients, or runs out of memory
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
        """The values as tensors on the GPU."""
        return [
            send(value, self.device) if isinstance(value, torch.Tensor) else torch.tensor(value, device=self.device)
            for value in values
        ]

    def _aside(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """call() on a stream of its own, as recording needs it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            result = call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return result

    def _record(self, shapes: tuple[torch.Size, ...], inputs: list[torch.Tensor]) -> None:
        """Records a call with these shapes; of a step that can't be recorded none ever."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # an earlier run's recordings that were collected within would end this one
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
