"""Several processes that train one model: each has a copy, computes a part of each batch, and adds the gradients up.

torchrun starts the processes and describes them in the environment (pytorch.org/docs/stable/elastic/run.html).
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from myllm.system.errors import InputError, RunError

BUCKET_BYTES = 25 * 2**20
"""most bytes of gradients that are sent together, as DistributedDataParallel does; a copy of so many bytes is held"""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training, as one of them sees them. Each method of a single process returns at once.

    Every process calls the same methods in the same order. A method waits for the other processes.
    """

    rank: int = 0
    """number of this process, from 0; process 0 prints and saves"""
    size: int = 1
    """number of processes"""

    @property
    def leads(self) -> bool:
        """Returns True for the process that prints and saves."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all processes. Small ones are sent together: each message takes its time."""
        for bucket in buckets(tensors) if self.size > 1 else ():
            if len(bucket) == 1:
                torch.distributed.all_reduce(bucket[0])
                continue
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by that of process 0."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def that_of_first(self, value: float) -> float:
        """Returns the `value` that process 0 calls this with."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64)
        self.copy_from_first([held])
        return held.item()

    def draw_apart(self, seed: int, step: int) -> None:
        """Seeds torch in every process but the first, so that each drops other activations.

        A checkpoint holds the random state of the first process; that of the others follows from seed, step and rank.
        """
        if not self.leads:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def any(self, flag: bool) -> bool:
        """Returns True if `flag` is true in one process at least."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))  # on the CPU: the host waits, the GPU does not
        self.add_up([flags])
        return bool(flags)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Process 0 runs the block first, then all others run it: they find in the cache what process 0 wrote."""
        if self.size > 1 and not self.leads:
            torch.distributed.barrier()
        yield
        if self.size > 1 and self.leads:
            torch.distributed.barrier()


SINGLE = ProcessGroup()


def buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields the tensors in their order, in lists of one number type and at most BUCKET_BYTES, or of one tensor alone."""
    found: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if found and (tensor.dtype != found[0].dtype or size + tensor.nbytes > BUCKET_BYTES):
            yield found
            found, size = [], 0
        found.append(tensor)
        size += tensor.nbytes
    if found:
        yield found


def device_of_process(name: str) -> str:
    """Returns the device of this process: `name`, or where that means a GPU of several the one with the local rank.

    Raises InputError where a machine has fewer GPUs than processes, or where one GPU is named for all of them.
    """
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if name == "cpu" or (name == "auto" and not count):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise InputError(f"--device {name} names one GPU for all processes; with torchrun write cuda, cpu or auto")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if here > count:
        raise InputError(f"torchrun started {here} processes on a machine with {count} GPUs; give --nproc_per_node {count}")
    return f"cuda:{local}"


@contextlib.contextmanager
def join(store: Any, rank: int, size: int, device: str) -> Iterator[ProcessGroup]:
    """Joins the processes that meet at `store`, for as long as the block lasts; without one, as torchrun says.

    NCCL adds up what GPUs hold, gloo what CPUs hold. `device` is that of this process.
    """
    import torch.distributed as dist

    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(device: str) -> Iterator[ProcessGroup]:
    """Joins the processes that torchrun started, for as long as the block lasts. `device` is that of this process.

    Processes other than the first print nothing, and end with the exit code alone for what the first process tells as well.
    Raises RunError in the first process where another one ends early.
    """
    with join(None, -1, -1, device) as group, contextlib.ExitStack() as silence:
        if not group.leads:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield group
        except InputError:
            if group.leads:
                raise
            sys.exit(2)
        except RuntimeError as error:
            if isinstance(error, RunError) or not is_lost_process(error):
                raise
            if not group.leads:
                sys.exit(1)
            reason = str(error).splitlines()[0][:200]
            raise RunError(f"one of the {group.size} processes of this training ended early ({reason})") from None


def is_lost_process(error: RuntimeError) -> bool:
    """Returns True if `error` says that another process can't be reached: torch's own class, or gloo's message."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
