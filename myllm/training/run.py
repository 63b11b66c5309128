"""The state of one training run, and its conversion to and from a checkpoint."""

import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from myllm.config import TrainConfig
from myllm.datasets.windows import BatchStream, Windows
from myllm.models.custom_model import ModelConfig, builder
from myllm.system.errors import InputError, RunError
from myllm.system.files import cache_dir
from myllm.training.compatibility import check_compatible, find_position
from myllm.training.compiling import Compilation
from myllm.training.ema import move_average
from myllm.training.gpu import CUDAGraphRunner, autocast, check_memory, random_state, resolve_dtype, set_random_state
from myllm.training.optimizers import build_optimizers
from myllm.training.pace import Pace, prepare
from myllm.training.parallel import SINGLE, ProcessGroup

T = TypeVar("T")

EVAL_LOGITS = 2**28
"""most logits of an evaluation's forward pass on a GPU, a GiB in float32, unless a micro-batch has more"""


def common_tokenizer(train: Windows, val: Windows) -> str | None:
    """Returns the identity of the tokenizer of both, or None if it is unknown. Raises InputError where there are two."""
    tokenizers = {windows.tokens.tokenizer_sha256 for windows in (train, val)} - {None}
    if len(tokenizers) > 1:
        raise InputError(f"{train.tokens.name} and {val.tokens.name} belong to different tokenizers")
    return tokenizers.pop() if tokenizers else None


class Run:
    """One training run: model, optimizer, position in the data, steps, seconds, random generators.

    `state_dict()` returns all of this state and `load_state_dict()` restores it. A restored run continues bit for bit on a
    CPU with the same number of threads and processes. `earlier_epochs` and `earlier_steps` count the passes over other data
    in an earlier part of the run. Several processes hold the same weights; each computes the gradient of its part of a
    batch. Raises InputError where config, model, data and device do not fit.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        train_windows: Windows,
        val_windows: Windows,
        device: str | torch.device = "cpu",
        group: ProcessGroup = SINGLE,
    ):
        if config.max_len > model_config.block_size:
            raise InputError(f"max_len {config.max_len} exceeds the model's block_size of {model_config.block_size}")
        if config.batch_size % group.size:
            raise InputError(f"batch_size {config.batch_size} can't be divided among {group.size} processes")
        self.model_config, self.config, self.device, self.group = model_config, config, torch.device(device), group
        self.dtype = resolve_dtype(config.dtype, self.device)
        self.train_windows, self.val_windows = train_windows, val_windows
        self.stream = BatchStream(train_windows, config.batch_size, config.seed, group.rank, group.size)
        self.tokenizer_sha256 = common_tokenizer(train_windows, val_windows)
        self.earlier_epochs = self.earlier_steps = 0
        build = builder(model_config)
        torch.manual_seed(config.seed)
        model = build()
        check_memory(sum(parameter.numel() for parameter in model.parameters()), self.device)
        self.model = model.to(self.device)
        self.optimizer = build_optimizers(self.model, config, self.device, model_config.vocab_size)
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_ratio else None
        self.micro_batch_size = config.micro_batch_size or config.batch_size  # windows; halved where memory runs out
        self.draws = getattr(model_config, "dropout", True)  # a custom model may draw
        self.step = 0
        self.train_seconds = 0.0
        self.n_layer = getattr(model_config, "n_layer", 1)  # unknown of a custom model
        self.compute = self.model  # or its compiled form
        self.recorder = self.update_recorder = None
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if config.float32_matmul == "float32" else "high")
            self.recorder, self.update_recorder = (
                CUDAGraphRunner(step, self.device) for step in (self._pass, self._update)
            )
        mode = config.compile if config.compile != "auto" or self.recorder else "off"
        shape = str(model_config), config.max_len, self.dtype, self.device
        self.compilation = Compilation(mode, shape, self.n_layer, self._set_compiled, self.device)
        self.pace = Pace(config.budget_seconds) if config.budget_seconds else None
        self.is_prepared = False
        """True once it is decided whether passes are compiled, and the pace is measured"""

    @property
    def tokens_seen(self) -> int:
        """Returns the tokens trained on so far."""
        return self.step * self.config.tokens_per_step

    @property
    def total_steps(self) -> int:
        """Returns the optimizer steps of the whole run, steps over earlier data included; of a time budget an estimate."""
        if self.pace:
            return self.pace.total_steps
        if self.config.budget_tokens is not None:
            return self.config.budget_tokens // self.config.tokens_per_step
        return self.earlier_steps + max(0, (self.config.epochs or 0) - self.earlier_epochs) * self.stream.steps_per_epoch

    def epoch_at(self, step: int) -> float:
        """Returns the passes over the data after `step` optimizer steps, passes over earlier data included."""
        return self.earlier_epochs + (step - self.earlier_steps) / self.stream.steps_per_epoch

    @property
    def epoch_end(self) -> int:
        """Returns the step at which the present pass ends, or the whole run if that is earlier; none of a time budget."""
        if self.pace:
            return sys.maxsize
        passes = (self.step - self.earlier_steps) // self.stream.steps_per_epoch
        return min(self.earlier_steps + (passes + 1) * self.stream.steps_per_epoch, self.total_steps)

    @property
    def eval_batch_size(self) -> int:
        """Returns the windows per forward pass of an evaluation. On a GPU they take the memory of a training pass.

        Training keeps the activations of every layer, an evaluation those of one layer; both keep all logits.
        """
        if self.device.type != "cuda":
            return self.micro_batch_size
        by_logits = EVAL_LOGITS // (self.config.max_len * self.model_config.vocab_size)
        return min(self.micro_batch_size * self.n_layer, max(self.micro_batch_size, by_logits))

    def data_identity(self) -> dict[str, Any]:
        """Returns the content of the run's data: fingerprints of train and val, and the tokenizer's identity or None."""
        return {
            "train": self.train_windows.tokens.fingerprint(),
            "val": self.val_windows.tokens.fingerprint(),
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the run's state, made of tensors and plain Python values."""
        return {
            "model_config": vars(self.model_config),
            "train_config": vars(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "micro_batch_size": self.micro_batch_size,
            "step": self.step,
            "train_seconds": self.train_seconds,
            "epoch": self.stream.epoch,
            "batch": self.stream.batch,
            "steps_per_epoch": self.stream.steps_per_epoch,
            "total_steps": self.total_steps,
            "earlier": {"epochs": self.earlier_epochs, "steps": self.earlier_steps},
            "data": self.data_identity(),
            "pace": self.pace and self.pace.state_dict(),
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any], other_data: bool = False) -> None:
        """Restores `state`. The run's own settings win where a resume can change them.

        With `other_data` the run may have other training data than `state`, and begins a new pass over it. Raises
        InputError for another model shape, another tokenizer, other data, and settings that a resume can't change.
        """
        check_compatible(state, self.config, self.model_config, self.tokenizer_sha256)
        place = find_position(state, self.stream, other_data)
        self.earlier_epochs, self.earlier_steps = place.earlier_epochs, place.earlier_steps
        self.stream.epoch, self.stream.batch = place.epoch, place.batch
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:  # the code of a custom model changed
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the checkpoint's weights are not this model's: {reason}") from None
        self.optimizer.load_averages(state["optimizer"])
        if self.update_recorder:
            self.update_recorder.forget()
        if self.average is not None:
            torch._foreach_copy_(self.average, state["average"])
        if self.config.micro_batch_size == state["train_config"].get("micro_batch_size"):
            self.micro_batch_size = state["micro_batch_size"]  # it may have been halved for want of memory
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        if self.pace:
            self.pace.load_state_dict(state.get("pace"), self.step, self.train_seconds)
        set_random_state(state["random"], self.device)

    def _set_compiled(self, compiled: bool) -> None:
        """Makes the forward pass compiled, once for all batch sizes, or plain."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        self.compute = torch.compile(self.model) if compiled else self.model
        if self.recorder:
            self.recorder.forget()

    def _pass(self, inputs: torch.Tensor, targets: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
        """Runs forward and backward of a micro-batch, the part `share` of its batch; returns the loss times `share`."""
        sizes_differ = self.config.micro_batch_size is None  # trials of a search share one graph for all batch sizes
        if self.compute is not self.model and sizes_differ and len(inputs) > 1:
            for tensor in (inputs, targets):
                torch._dynamo.mark_dynamic(tensor, 0)
        with autocast(self.dtype, self.device):
            loss: torch.Tensor = self.compute(inputs, targets)
        loss = loss * share
        torch.autograd.backward(loss)
        return loss.detach()

    def backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the gradient of the batch's mean loss in micro-batches; returns the loss, a scalar in nats per token.

        `inputs` and `targets` are (batch_size / processes, max_len) int64: the windows of this process. Gradients and loss
        are added up over all processes, once a batch. Raises RunError where one window exceeds the memory.
        """
        prepare(self, inputs, targets)
        if self.draws:
            self.group.draw_apart(self.config.seed, self.step)
        loss = self.backward_alone(inputs, targets)
        self.group.add_up([loss, *(p.grad for p in self.parameters if p.grad is not None)])
        return loss

    def backward_alone(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes what this process's windows add to the batch's gradient and loss; returns the loss's part."""
        before = random_state(self.device) if self.draws else None
        one_pass = self.recorder or self._pass
        batch_size = len(inputs) * self.group.size

        def attempt() -> torch.Tensor:
            self.optimizer.zero_grad(set_to_none=self.recorder is None)
            if before is not None:
                set_random_state(before, self.device)
            size = self.micro_batch_size
            loss = torch.zeros((), device=self.device)
            for micro_inputs, micro_targets in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
                loss += one_pass(micro_inputs, micro_targets, len(micro_inputs) / batch_size)
            return loss

        return self.within_memory(attempt)

    def within_memory(self, attempt: Callable[[], T]) -> T:
        """Returns attempt(), called again with half the micro-batch each time the device runs out of memory.

        Only the order of floating-point sums changes. Raises RunError where a micro-batch of one window does not fit.
        """
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError:  # the error holds tensors: the next attempt begins after this block
                pass
            if self.micro_batch_size == 1:
                raise RunError("out of memory with micro_batch_size 1: the model does not fit; use a smaller one")
            self.micro_batch_size = (self.micro_batch_size + 1) // 2
            if self.recorder:
                self.recorder.forget()
                torch.cuda.empty_cache()

    def update(self, rate: float) -> torch.Tensor:
        """Takes one optimizer step at learning rate `rate`; V2 clips the gradient before.

        Returns the gradient's L2 norm before clipping, NaN in V1, as a scalar on the device, valid until the next step.
        """
        norm = (self.update_recorder or self._update)(rate)
        self.optimizer.set_rate(rate)  # a number again, as checkpoints hold it
        self.step += 1
        if self.average is not None:
            move_average(self.average, self.parameters, self.config.ema_ratio, self.step)
        return norm

    def _update(self, rate: float | torch.Tensor) -> torch.Tensor:
        self.optimizer.set_rate(rate)
        norm = torch.full((), math.nan, device=self.device)
        if self.config.version == "v2":
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm, foreach=True)
        self.optimizer.step()
        return norm
