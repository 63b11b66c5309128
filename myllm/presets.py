"""The presets: named model shapes, each with baseline hyper-parameters and a budget."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from myllm.config import LENGTHS, GPTConfig, TrainConfig
from myllm.scaling_laws import LOWEST_PARAMS, Size, step_law_point
from myllm.system.errors import InputError

MODERN = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": True, "bias": False}
"""settings of the modern block, that of Qwen3's dense models (arXiv 2505.09388)"""


def matrix_params(model: GPTConfig) -> int:
    """Returns the parameters of the blocks' matrices: all but embeddings, head, norms and biases."""
    width, heads = model.n_embd, model.n_head
    attention = 2 * width**2 + 2 * width * (width // heads) * model.kv_heads
    return model.n_layer * (attention + (3 if model.mlp == "swiglu" else 2) * width * model.mlp_width)


@dataclass(frozen=True)
class Preset:
    """A named model shape, with the baseline hyper-parameters that a search starts from."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    """longest context and window length, in tokens"""
    learning_rate: float
    """baseline peak learning rate; spaces reach a factor of 10 either way"""
    batch_size: int
    """baseline windows per optimizer step; spaces reach a factor of 4 either way"""
    budget_tokens: int
    """tokens of one full training in a search"""
    dropout: float = 0.0
    beta2: float = 0.95
    warmup_ratio: float = 0.02
    micro_batch_size: int | None = None
    activation: str = "gelu"
    is_modern: bool = False
    """True: the modern block; False: GPT-2's"""

    def model(self, vocab_size: int) -> GPTConfig:
        """Returns the preset's shape for a vocabulary of `vocab_size` token ids."""
        shape = self.n_layer, self.n_head, self.n_embd, self.block_size
        block: dict[str, Any] = MODERN if self.is_modern else {}
        return GPTConfig(*shape, vocab_size, self.dropout, activation=self.activation, **block)

    def at(self, budget_tokens: int, model: GPTConfig | None = None, batch_size: int | None = None) -> "Preset":
        """Returns the preset with the baseline of a training of `budget_tokens` tokens, rounded down to whole steps.

        From LOWEST_PARAMS parameters on, rate and batch are Step Law's, the batch rounded to a power of two windows.
        `model` is the shape to train, if it is not the preset's; `batch_size` the windows a step, if they are chosen.
        A smaller model keeps the preset's own rate and batch at any budget. In another shape the rate falls by the growth
        of the width (arXiv 2203.03466), and the batch keeps its tokens.
        """
        model = model or self.model(1)
        size = Size(matrix_params(model), max(1, budget_tokens))
        rate = float(f"{self.learning_rate * self.n_embd / model.n_embd:.2g}")
        large = size.params >= LOWEST_PARAMS
        step = step_law_point(size)[1] if large else self.batch_size * self.block_size
        windows = 2 ** max(0, round(math.log2(step / model.block_size)))
        if large:
            windows = windows if batch_size is None else max(1, batch_size)
            rate = float(f"{step_law_point(size, windows * model.block_size)[0]:.2g}")
        whole = max(1, budget_tokens // (windows * self.block_size)) * windows * self.block_size
        return dataclasses.replace(self, learning_rate=rate, batch_size=windows, budget_tokens=whole)

    def training(self, **changes: Any) -> TrainConfig:
        """Returns the preset's baseline TrainConfig with `changes`. Without a length in them it trains budget_tokens."""
        values = dict(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_len=self.block_size,
            stride=changes.get("max_len", self.block_size),
            beta2=self.beta2,
            warmup_ratio=self.warmup_ratio,
            micro_batch_size=self.micro_batch_size,
        )
        if all(changes.get(length) is None for length in LENGTHS):
            values["budget_tokens"] = self.budget_tokens
        return TrainConfig(**(values | changes))


# Baseline values of nano and micro: see experiments/LOG.md, "the presets' baselines". From mini on rate and batch are
# Step Law's at the preset's budget, which Preset.at computes. mini's shape and dropout are nanoGPT's character model
# (config/train_shakespeare_char.py); the larger shapes are GPT-2's, with 20 tokens a parameter (arXiv 2203.15556).
PRESETS: dict[str, Preset] = {
    "nano": Preset(2, 2, 64, 128, learning_rate=2e-3, batch_size=2, budget_tokens=786_432, beta2=0.99),
    "micro": Preset(4, 4, 128, 128, learning_rate=2e-3, batch_size=4, budget_tokens=16_777_216, beta2=0.99),
    "mini": Preset(6, 6, 384, 256, learning_rate=2.8e-3, batch_size=64, budget_tokens=83_886_080, dropout=0.2, beta2=0.99),
    "gpt2": Preset(12, 12, 768, 1024, 3e-3, 128, 2_483_027_968, micro_batch_size=32),
    "gpt2-medium": Preset(24, 16, 1024, 1024, 1.7e-3, 256, 7_046_430_720, micro_batch_size=8),
    "gpt2-large": Preset(36, 20, 1280, 1024, 1.2e-3, 512, 15_502_147_584, micro_batch_size=4),
    "gpt2-xl": Preset(48, 25, 1600, 1024, 8.7e-4, 512, 31_138_512_896, micro_batch_size=4),
}
# The modern block has the baseline of the preset of its size. micro's was measured as too high for it (the same entry).
PRESETS |= {f"{name}-modern": dataclasses.replace(preset, is_modern=True) for name, preset in PRESETS.items()}
PRESETS["micro-modern"] = dataclasses.replace(PRESETS["micro-modern"], learning_rate=1e-3)


def get_preset(name: str) -> Preset:
    """Returns the preset called `name`. Raises InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"--preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
