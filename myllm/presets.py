"""The presets: named model shapes, each with baseline hyper-parameters and a budget."""

from dataclasses import dataclass
from typing import Any

from myllm.config import GPTConfig, TrainConfig
from myllm.system.errors import InputError


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

    def model(self, vocab_size: int) -> GPTConfig:
        """Returns the preset's shape for a vocabulary of `vocab_size` token ids."""
        shape = self.n_layer, self.n_head, self.n_embd, self.block_size
        return GPTConfig(*shape, vocab_size, self.dropout, activation=self.activation)

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
        if changes.get("epochs") is None and changes.get("budget_tokens") is None:
            values["budget_tokens"] = self.budget_tokens
        return TrainConfig(**(values | changes))


# Baseline values: nano from a few trainings on the built-in corpus (experiments/LOG.md), micro from there, roughly by the
# inverse cube root of the size (the OLMo ladder's law); mini is nanoGPT's character model
# (config/train_shakespeare_char.py); gpt2 and larger follow table 2.1 of the GPT-3 paper (arXiv 2005.14165) for rates,
# 0.5M tokens a batch (1M for xl), and 20 tokens a parameter (arXiv 2203.15556).
PRESETS: dict[str, Preset] = {
    "nano": Preset(2, 2, 64, 128, learning_rate=3e-3, batch_size=16, budget_tokens=786_432, beta2=0.99),
    "micro": Preset(4, 4, 128, 128, learning_rate=2e-3, batch_size=16, budget_tokens=16_777_216, beta2=0.99),
    "mini": Preset(6, 6, 384, 256, learning_rate=1e-3, batch_size=64, budget_tokens=83_886_080, dropout=0.2, beta2=0.99),
    "gpt2": Preset(12, 12, 768, 1024, 6e-4, 512, 2_483_027_968, micro_batch_size=32),
    "gpt2-medium": Preset(24, 16, 1024, 1024, 3e-4, 512, 7_046_430_720, micro_batch_size=8),
    "gpt2-large": Preset(36, 20, 1280, 1024, 2.5e-4, 512, 15_502_147_584, micro_batch_size=4),
    "gpt2-xl": Preset(48, 25, 1600, 1024, 2e-4, 1024, 31_138_512_896, micro_batch_size=4),
}


def get_preset(name: str) -> Preset:
    """Returns the preset called `name`. Raises InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"--preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
