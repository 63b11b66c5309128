"""What a GPU wants of a training step: its arithmetic, transfers that nobody waits for, and few launches."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from myllm.errors import InputError, warn


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
class Recording:
    """A micro-batch's forward and backward pass, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    targets: torch.Tensor
    share: torch.Tensor
    loss: torch.Tensor


class Recorder:
    """Replays forward and backward passes as CUDA graphs, one a micro-batch size.

    A small model's step is some hundred kernels of a few microseconds; launched one by one they keep a GPU waiting
    (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). Gradients add up in the parameters' own .grad, which must stay
    where they are. `step` is the plain pass: inputs and targets (b, T), their share of the batch -> that share of the loss.
    """

    def __init__(self, step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], device: torch.device):
        self.step, self.device = step, device
        self.records = True
        """False: every pass is launched kernel by kernel"""
        self.forget()

    def forget(self) -> None:
        """Frees the recordings' memory; what follows is recorded anew."""
        self.recordings: dict[int, Recording] = {}
        self.warm: set[int] = set()

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
        """One pass; the loss returned holds until the next."""
        size = inputs.size(-2)
        if self.records and size in self.warm and size not in self.recordings:
            self._record(inputs, targets)
        if size not in self.recordings:  # first in plain: this compiles, allocates gradients, or runs out of memory
            self.warm.add(size)
            share = torch.tensor(share, device=self.device)
            return self._aside(lambda: self.step(send(inputs, self.device), send(targets, self.device), share))
        recording = self.recordings[size]
        for static, value in ((recording.inputs, inputs), (recording.targets, targets)):
            static.copy_(value.pin_memory(), non_blocking=True)
        recording.share.fill_(share)
        recording.graph.replay()
        return recording.loss

    def _aside(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """call() on a stream of its own, as recording needs it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            result = call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return result

    def _record(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Records a pass of this size; of a model that can't be recorded none ever."""
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        share, graph = torch.ones((), device=self.device), torch.cuda.CUDAGraph()
        gc.collect()  # an earlier run's recordings that were collected within would end this one
        try:
            with without_garbage_collection(), torch.cuda.graph(graph):
                loss = self.step(inputs, targets, share)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.records = False
            warn(f"training without CUDA graphs, which this model does not allow: {str(error).splitlines()[0]}")
            return
        self.recordings[inputs.size(-2)] = Recording(graph, inputs, targets, share, loss)
