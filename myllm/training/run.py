"""The whole state of one training run, and its way to disk and back."""

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from myllm.config import TrainConfig
from myllm.datasets.windows import BatchStream, Windows
from myllm.models.custom_model import ModelConfig, builder
from myllm.system.errors import InputError, RunError
from myllm.system.files import cache_dir
from myllm.training.adamw import build_optimizer
from myllm.training.compatibility import check_compatible
from myllm.training.compiling import Compilation
from myllm.training.ema import move_average
from myllm.training.gpu import CUDAGraphRunner, autocast, random_state, resolve_dtype, set_random_state

T = TypeVar("T")

EVAL_LOGITS = 2**28  # of one forward pass of an evaluation on a GPU, unless a micro-batch has more: a GiB in float32


class Run:
    """The whole state of one training run: model, optimizer, position in the data, steps, seconds, random generators.

    `state_dict()` takes all of it out and `load_state_dict()` puts it back, so that the run goes on as if never stopped:
    bit for bit on a CPU with the same number of threads. Passes over other data, in an earlier part of the run, are counted
    by `earlier_epochs` and `earlier_steps`. Raises InputError where config, model and data do not fit.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        train_windows: Windows,
        val_windows: Windows,
        device: str | torch.device = "cpu",
    ):
        if config.max_len > model_config.block_size:
            raise InputError(f"max_len {config.max_len} exceeds the model's block_size of {model_config.block_size}")
        self.model_config, self.config, self.device = model_config, config, torch.device(device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        self.train_windows, self.val_windows = train_windows, val_windows
        self.stream = BatchStream(train_windows, config.batch_size, config.seed)
        tokenizers = {windows.tokens.tokenizer_sha256 for windows in (train_windows, val_windows)} - {None}
        if len(tokenizers) > 1:
            raise InputError(f"{train_windows.tokens.name} and {val_windows.tokens.name} belong to different tokenizers")
        self.tokenizer_sha256 = tokenizers.pop() if tokenizers else None
        self.earlier_epochs = self.earlier_steps = 0
        build = builder(model_config)
        torch.manual_seed(config.seed)
        self.model = build().to(self.device)
        self.optimizer = build_optimizer(self.model, config, self.device)
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_ratio else None
        self.micro_batch_size = config.micro_batch_size or config.batch_size  # halved where memory runs out
        self.step = 0
        self.train_seconds = 0.0
        self.n_layer = getattr(model_config, "n_layer", 1)  # of the user's own model it is not known
        self.compute = self.model  # its compiled form, where that repays
        self.recorder = self.update_recorder = None
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if config.float32_matmul == "float32" else "high")
            self.recorder, self.update_recorder = (
                CUDAGraphRunner(step, self.device) for step in (self._pass, self._update)
            )
        mode = config.compile if config.compile != "auto" or self.recorder else "off"
        shape = str(model_config), config.max_len, self.dtype, self.device
        self.compilation = Compilation(mode, shape, self.n_layer, self._set_compiled, self.device)
        self.compile_decided = False
        """whether it is decided if passes are compiled"""

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.config.tokens_per_step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, those over earlier data included."""
        if self.config.budget_tokens is not None:
            return self.config.budget_tokens // self.config.tokens_per_step
        return self.earlier_steps + max(0, (self.config.epochs or 0) - self.earlier_epochs) * self.stream.steps_per_epoch

    def epoch_at(self, step: int) -> float:
        """Passes over the training data after `step` optimizer steps, those over earlier data included."""
        return self.earlier_epochs + (step - self.earlier_steps) / self.stream.steps_per_epoch

    @property
    def epoch_end(self) -> int:
        """The optimizer step at which the present pass ends, or the whole run."""
        passes = (self.step - self.earlier_steps) // self.stream.steps_per_epoch
        return min(self.earlier_steps + (passes + 1) * self.stream.steps_per_epoch, self.total_steps)

    @property
    def eval_batch_size(self) -> int:
        """Windows per forward pass of an evaluation: on a GPU as many as take a training's memory.

        Training keeps every layer's activations, an evaluation one layer's at a time, but both the logits of all windows.
        """
        if self.device.type != "cuda":
            return self.micro_batch_size
        by_logits = EVAL_LOGITS // (self.config.max_len * self.model_config.vocab_size)
        return min(self.micro_batch_size * self.n_layer, max(self.micro_batch_size, by_logits))

    def is_finite(self) -> bool:
        """Returns True if all weights are finite numbers. Waits for the device."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def data_identity(self) -> dict[str, Any]:
        """What the run's ids are, by content: the fingerprints of train and val, and the tokenizer's identity or None."""
        return {
            "train": self.train_windows.tokens.fingerprint(),
            "val": self.val_windows.tokens.fingerprint(),
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def state_dict(self) -> dict[str, Any]:
        """The run's state, of tensors and plain Python values only."""
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
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any], other_data: bool = False) -> None:
        """Continues where `state` was taken; over other data only where `other_data` allows it, with a new pass.

        Raises InputError for another model shape, another tokenizer, and settings that can't change on the way.
        """
        check_compatible(state, self.config, self.model_config, self.tokenizer_sha256)
        self._find_place(state, other_data)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:  # its own model's code is another
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the checkpoint's weights are not this model's: {reason}") from None
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(ours)  # the run's own decay and betas, not those that the checkpoint was trained with
        if self.update_recorder:
            self.update_recorder.forget()
        if self.average is not None:
            torch._foreach_copy_(self.average, state["average"])
        if self.config.micro_batch_size == state["train_config"].get("micro_batch_size"):
            self.micro_batch_size = state["micro_batch_size"]  # it may have been halved for want of memory
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        set_random_state(state["random"], self.device)

    def trained_on_other_data(self, state: dict[str, Any]) -> bool:
        """Whether `state` stands in other training data than the run's. Without a fingerprint: if it can't be in ours."""
        saved = state.get("data", {}).get("train")
        if saved is None:
            return bool(state["batch"] > self.stream.steps_per_epoch)
        return bool(saved != self.train_windows.tokens.fingerprint())

    def _find_place(self, state: dict[str, Any], other_data: bool) -> None:
        """The place in the data where `state` was taken; in other data the start of a new pass."""
        if not self.trained_on_other_data(state):
            earlier = state.get("earlier", {"epochs": 0, "steps": 0})
            self.earlier_epochs, self.earlier_steps = earlier["epochs"], earlier["steps"]
            self.stream.epoch, self.stream.batch = state["epoch"], state["batch"]
            return
        if not other_data:
            raise InputError(f"the checkpoint was trained on other data than {self.train_windows.tokens.name}")
        finished = state["batch"] >= state.get("steps_per_epoch", 1)  # a pass ends when the next batch is asked for
        self.earlier_epochs, self.earlier_steps = state["epoch"] + finished, state["step"]
        self.stream.epoch, self.stream.batch = self.earlier_epochs, 0

    def _set_compiled(self, compiled: bool) -> None:
        """From now on the forward pass is compiled, once for all batch sizes, or it is not."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        self.compute = torch.compile(self.model) if compiled else self.model
        if self.recorder:
            self.recorder.forget()

    def _pass(self, inputs: torch.Tensor, targets: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
        """Forward and backward of one micro-batch, which is `share` of its batch; returns that share of the loss."""
        sizes_differ = self.config.micro_batch_size is None  # between the trials of a search, for which one graph is to do
        if self.compute is not self.model and sizes_differ and len(inputs) > 1:
            for tensor in (inputs, targets):
                torch._dynamo.mark_dynamic(tensor, 0)
        with autocast(self.dtype, self.device):
            loss: torch.Tensor = self.compute(inputs, targets)
        loss = loss * share
        loss.backward()
        return loss.detach()

    def _decide_compilation(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Decides by passes of one micro-batch whether they are compiled, and leaves the run's state as it was."""
        self.compile_decided = True
        before: list[Any] = []

        def one_pass() -> None:
            if not before:  # most runs try none
                before[:] = random_state(self.device), [buffer.clone() for buffer in self.model.buffers()]
            self.backward(inputs, targets)

        passes = self.total_steps * math.ceil(self.config.batch_size / len(inputs))
        self.compilation.decide(one_pass, inputs.numel(), passes)
        if before:
            set_random_state(before[0], self.device)
            for buffer, value in zip(self.model.buffers(), before[1], strict=True):
                buffer.data.copy_(value)

    def backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sets the gradient of the batch's mean loss, micro-batch by micro-batch; returns that loss, nats per token.

        `inputs` and `targets` are (batch_size, max_len). Raises RunError where not even one window fits.
        """
        if not self.compile_decided:
            self._decide_compilation(inputs[: self.micro_batch_size], targets[: self.micro_batch_size])
        draws = getattr(self.model_config, "dropout", True)  # what the user's own model does is not known
        before = random_state(self.device) if draws else None
        one_pass = self.recorder or self._pass

        def attempt() -> torch.Tensor:
            self.optimizer.zero_grad(set_to_none=self.recorder is None)
            if before is not None:
                set_random_state(before, self.device)
            size = self.micro_batch_size
            loss = torch.zeros((), device=self.device)
            for micro_inputs, micro_targets in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
                loss += one_pass(micro_inputs, micro_targets, len(micro_inputs) / len(inputs))
            return loss

        return self.within_memory(attempt)

    def within_memory(self, attempt: Callable[[], T]) -> T:
        """attempt(), again with half the micro-batch each time the device runs out of memory.

        Gradients add up to the same batch, so only the order of floating-point sums changes. Raises RunError where a
        micro-batch of one window does not fit.
        """
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError:  # left before the next attempt: the error holds the failed one's tensors
                pass
            if self.micro_batch_size == 1:
                raise RunError("out of memory with micro_batch_size 1: the model does not fit; use a smaller one")
            self.micro_batch_size = (self.micro_batch_size + 1) // 2
            if self.recorder:
                self.recorder.forget()
                torch.cuda.empty_cache()

    def update(self, rate: float) -> torch.Tensor:
        """One optimizer step at learning rate `rate`, after clipping in V2; the gradient's L2 norm before that, or NaN.

        The norm, a scalar on the run's device, holds until the next step.
        """
        norm = (self.update_recorder or self._update)(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate  # a number again: that is what checkpoints hold
        self.step += 1
        if self.average is not None:
            move_average(self.average, self.parameters, self.config.ema_ratio, self.step)
        return norm

    def _update(self, rate: float | torch.Tensor) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.full((), math.nan, device=self.device)
        if self.config.version == "v2":
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm, foreach=True)
        self.optimizer.step()
        return norm
