"""Several runs of one shape trained as one model: K runs in shapes, other letters as in model.py.

A small model leaves most of a GPU idle, for every kernel of its step is too short. Here each kernel works for K runs at
once: weights have a leading dimension, a linear layer is one batched product, attention folds the runs into its batch.
A study, not a part of the search: recorded steps leave less than a factor of two to gain (experiments/LOG.md).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from myllm.config import GPTConfig
from myllm.datasets.windows import Windows
from myllm.system.errors import InputError
from myllm.training.gpu import CUDAGraphRunner, autocast, to_device
from myllm.training.run import Run
from myllm.training.train import Report, learning_rate_at

BLOCK = ("norm", "position", "mlp", "qk_norm", "n_kv_head", "tied")
"""settings of the block in which only GPT-2's are known here"""
SHARED = ("batch_size", "max_len", "version", "dtype", "eval_windows", "train_eval_windows")
"""settings that runs have in common to be trained as one; all others may differ"""


def fused_losses(
    weights: dict[str, torch.Tensor], shape: GPTConfig, ids: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy (K,) in nats of K models, `weights` by GPT's parameter names with a leading K, without dropout.

    `ids` and `targets` are (K, B, T).
    """
    K, B, T = ids.shape
    H, V = shape.n_head, shape.vocab_size

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:  # (K, N, C_in) -> (K, N, C_out)
        weight = weights[f"{name}.weight"].transpose(1, 2)
        bias = weights.get(f"{name}.bias")
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x, x.shape[-1:]) * weights[f"{name}.weight"][:, None]
        return x + weights[f"{name}.bias"][:, None] if f"{name}.bias" in weights else x

    embedding = weights["token_embedding.weight"]  # (K, V, C)
    shifted = ids + V * torch.arange(K, device=ids.device)[:, None, None]
    x = F.embedding(shifted, embedding.flatten(0, 1)) + weights["position_embedding.weight"][:, None, :T]  # (K, B, T, C)
    x = x.flatten(1, 2)  # (K, B*T, C)
    for layer in range(shape.n_layer):
        block = f"blocks.{layer}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.view(K * B, T, 3, H, -1).permute(2, 0, 3, 1, 4)  # each (K*B, H, T, C/H)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(f"{block}.attn.proj", y.transpose(1, 2).reshape(K, B * T, -1))
        y = F.gelu(linear(f"{block}.mlp.fc", norm(f"{block}.norm2", x)), approximate="tanh")
        x = x + linear(f"{block}.mlp.proj", y)
    logits = torch.bmm(norm("norm", x), embedding.transpose(1, 2))  # (K, B*T, V)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(K, -1).mean(1)


class FusedRuns:
    """K runs, trained as one by `train()`.

    The runs go on from where they stand, each with its own data order, rate, clip norm and decay. When a run reports, its
    own state holds what it has learnt, so that it may be saved then, or go on alone. Raises InputError for runs that can't
    be one: other shapes or SHARED settings, or dropout.
    """

    def __init__(self, runs: list[Run]):
        first = runs[0]
        for run in runs:
            if run.model.config != first.model.config or run.model.config.dropout:
                raise InputError("only models of one shape and without dropout can be trained as one")
            for name in SHARED:
                ours, theirs = getattr(first.config, name), getattr(run.config, name)
                if ours != theirs:
                    raise InputError(f"{name} is {ours} in one run and {theirs} in another; they can't be trained as one")
            shape = run.model.config
            if shape != replace(shape, **{name: getattr(GPTConfig, name) for name in BLOCK}):
                raise InputError("only models with GPT-2's block can be trained as one")
            if run.config.optimizer != "adamw":
                raise InputError(f"optimizer is {run.config.optimizer}; only trainings with adamw can be trained as one")
            if (run.average is None) != (first.average is None):
                raise InputError("runs with averaged weights and without can't be trained as one")
        self.device, self.config = first.device, first.config
        self.names = [name for name, _ in first.model.named_parameters()]
        self._gather(list(runs))

    def _gather(self, runs: list[Run]) -> None:
        """The fused state of `runs`: each tensor of it holds all parameters of a run in a row, (K, P)."""
        self.runs = runs

        def rows(tensors_of) -> torch.Tensor:
            return torch.stack([torch.cat([t.detach().flatten() for t in tensors_of(run)]) for run in runs])

        def moment(run: Run, key: str) -> list[torch.Tensor]:
            (adamw,) = run.optimizer.optimizers
            return [adamw.state[p][key] if p in adamw.state else torch.zeros_like(p) for p in run.parameters]

        self.weights = rows(lambda run: run.parameters)
        self.exp_avg = rows(lambda run: moment(run, "exp_avg"))
        self.exp_avg_sq = rows(lambda run: moment(run, "exp_avg_sq"))
        self.average = rows(lambda run: run.average) if runs[0].average is not None else None
        self.grads = torch.zeros_like(self.weights)
        self.views = dict(zip(self.names, self._split(self.weights), strict=True))
        for view, grad in zip(self.views.values(), self._split(self.grads), strict=True):
            view.requires_grad_().grad = grad
        decayed = torch.cat([torch.full((p.numel(),), float(p.dim() >= 2)) for p in runs[0].parameters])
        self.decay = decayed.to(self.device) * self._columns([(run.config.weight_decay,) for run in runs])[0]
        self.recorder = CUDAGraphRunner(self._pass, self.device) if self.device.type == "cuda" else None

    def _columns(self, settings: list[tuple[float, ...]]) -> tuple[torch.Tensor, ...]:
        """Of several values a run, each as a column (K, 1), in one transfer."""
        return to_device(torch.tensor(settings, dtype=torch.float32), self.device).split(1, dim=1)

    def _split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in `rows` (K, P): views (K, *shape)."""
        parameters = self.runs[0].parameters
        pieces = rows.split([p.numel() for p in parameters], dim=1)
        return [piece.unflatten(1, p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    def give_back(self, run: Run) -> None:
        """Writes what `run` has learnt so far into its own state."""
        k = self.runs.index(run)
        step = torch.tensor(float(run.step))
        for i, parameter in enumerate(run.parameters):
            with torch.no_grad():
                parameter.copy_(self._split(self.weights)[i][k])
                if run.average is not None:
                    run.average[i].copy_(self._split(self.average)[i][k])
            run.optimizer.optimizers[0].state[parameter] = {
                "step": step.to(self.device),
                "exp_avg": self._split(self.exp_avg)[i][k].clone(),
                "exp_avg_sq": self._split(self.exp_avg_sq)[i][k].clone(),
            }

    def drop(self, run: Run) -> None:
        """Goes on without `run`, whose state then holds what it has learnt."""
        for each in self.runs:
            self.give_back(each)
        self._gather([each for each in self.runs if each is not run])

    def _pass(self, inputs: torch.Tensor, targets: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
        """Forward and backward; `share` of the losses (K,) of K micro-batches (K, b, T)."""
        with autocast(self.runs[0].dtype, self.device):
            losses = fused_losses(self.views, self.runs[0].model.config, inputs, targets) * share
        losses.sum().backward()
        return losses.detach()

    def backward(self) -> torch.Tensor:
        """Sets the gradients of every run's next batch; returns the losses (K,)."""
        batches = [run.stream.next() for run in self.runs]
        inputs, targets = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
        size = min(run.micro_batch_size for run in self.runs)
        one_pass, losses = self.recorder or self._pass, torch.zeros(len(self.runs), device=self.device)
        self.grads.zero_()
        for micro_inputs, micro_targets in zip(inputs.split(size, 1), targets.split(size, 1), strict=True):
            losses += one_pass(micro_inputs, micro_targets, micro_inputs.size(1) / inputs.size(1))
        return losses

    @torch.no_grad()
    def update(self) -> torch.Tensor:
        """Clips and steps by AdamW as torch.optim.AdamW does, each run by its own settings; returns the norms (K,)."""
        settings = []
        for run in self.runs:
            config, count = run.config, run.step + 1
            rate, beta1, beta2 = learning_rate_at(run.step, run.total_steps, config), config.beta1, config.step_beta2
            forget = min(1.0, 1 / (config.ema_ratio * count)) if config.ema_ratio else 0.0
            size, root = rate / (1 - beta1**count), math.sqrt(1 - beta2**count)
            settings.append((config.clip_norm, rate, 1 - beta1, 1 - beta2, size, root, forget))
            run.step = count
        clip, rate, new1, new2, size, root, forget = self._columns(settings)
        norms = self.grads.norm(dim=1, keepdim=True)  # (K, 1)
        if self.config.version == "v2":
            self.grads.mul_((clip / (norms + 1e-6)).clamp_(max=1.0))
        self.weights.mul_(1 - self.decay * rate)
        self.exp_avg.lerp_(self.grads, new1)
        self.exp_avg_sq.lerp_(self.grads.square(), new2)
        self.weights.sub_(size * self.exp_avg / (self.exp_avg_sq.sqrt().div_(root).add_(1e-8)))
        if self.average is not None:
            self.average.lerp_(self.weights, forget)
        return norms[:, 0]

    @torch.no_grad()
    def mean_losses(self, windows: Windows, indices: np.ndarray, rows: torch.Tensor) -> list[float]:
        """Mean cross-entropy in nats of each run over the windows `indices`, with the parameters in `rows` (K, P)."""
        views, K = dict(zip(self.names, self._split(rows), strict=True)), len(self.runs)
        total = torch.zeros(K, dtype=torch.float64, device=self.device)
        size = min(run.eval_batch_size for run in self.runs)
        for start in range(0, len(indices), size):
            piece = indices[start : start + size]
            ids, targets = (to_device(t, self.device).expand(K, -1, -1) for t in windows.batch(piece))
            with autocast(self.runs[0].dtype, self.device):
                total += fused_losses(views, self.runs[0].model.config, ids, targets).double() * len(piece)
        return (total / len(indices)).tolist()

    def train(self) -> Iterator[tuple[Run, Report]]:
        """Trains all runs to their ends, yielding each run's reports at its own eval_freq, as train() does.

        After a report the caller may save the run, or `drop` it. A run that ends is dropped by itself.
        """
        clock, since, steps = time.perf_counter(), 0.0, 0
        health = torch.zeros(len(self.runs), device=self.device)
        while self.runs:
            start = time.perf_counter()
            rates = {run: learning_rate_at(run.step, run.total_steps, run.config) for run in self.runs}
            losses = self.backward()
            norms = self.update()
            health += losses + norms
            steps += 1
            due = [run for run in self.runs if run.step % run.config.eval_freq == 0 or run.step == run.total_steps]
            if not due:
                since += time.perf_counter() - start
                continue
            finite = dict(zip(self.runs, health.isfinite().tolist(), strict=True))
            since += time.perf_counter() - start
            train_windows, val_windows = self.runs[0].train_windows, self.runs[0].val_windows
            count = self.config.train_eval_windows or self.config.eval_windows
            indices = val_windows.spread(self.config.eval_windows)
            seen = {
                "train": self.mean_losses(train_windows, train_windows.spread(count), self.weights),
                "val": self.mean_losses(val_windows, indices, self.weights),
            }
            if self.average is not None:
                seen["ema"] = self.mean_losses(val_windows, indices, self.average)
            now = time.perf_counter()
            for run in self.runs:
                run.train_seconds += (now - clock) / len(self.runs)
            before, speed = list(self.runs), steps * self.config.tokens_per_step / since
            grad_norms = norms.tolist()
            for k, run in enumerate(before):
                if run not in due:
                    continue
                diverged = not (finite[run] and math.isfinite(seen["train"][k]) and math.isfinite(seen["val"][k]))
                self.give_back(run)
                yield (
                    run,
                    Report(
                        step=run.step,
                        tokens_seen=run.tokens_seen,
                        train_loss=seen["train"][k],
                        val_loss=seen["val"][k],
                        val_loss_ema=seen["ema"][k] if self.average is not None else math.nan,
                        lr=rates[run],
                        grad_norm=grad_norms[k] if self.config.version == "v2" else math.nan,
                        train_seconds=run.train_seconds,
                        tok_per_sec=speed,
                        diverged=diverged,
                    ),
                )
                if run in self.runs and (diverged or run.step == run.total_steps):
                    self.drop(run) if len(self.runs) > 1 else self.runs.remove(run)
            if self.runs != before:
                kept = [before.index(run) for run in self.runs]
                health = health[kept]
            clock, since, steps = time.perf_counter(), 0.0, 0
