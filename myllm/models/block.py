"""The transformer block, GPT-2's or with newer parts. Shapes: B windows, T tokens, C = n_embd, H heads, D = C / H."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from myllm.config import GPTConfig

ROTARY_BASE = 10_000.0  # longest wavelength of the rotations, in tokens / 2 pi
RMS_EPSILON = 1e-6  # of RMS norms, as Llama's

Rotation = tuple[torch.Tensor, torch.Tensor]
"""cosines and signed sines of the positions' angles, each (T, 1, D)"""


class FusedLinear(nn.Linear):
    """Several linear layers with one input, whose weights of `rows` rows each stand on top of each other."""

    def __init__(self, n_in: int, rows: tuple[int, ...], bias: bool):
        super().__init__(n_in, sum(rows), bias=bias)
        self.rows = rows


class KeyValueCache:
    """The keys and values of the tokens so far in one layer, each (B, heads, tokens, D)."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Returns the number of tokens so far."""
        return 0 if self.keys is None else self.keys.size(2)

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the keys and values of further tokens; returns those of all tokens."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


def make_norm(config: GPTConfig) -> nn.Module:
    """Returns a norm of the residual stream (Ba et al., arXiv 1607.06450; RMS: Zhang and Sennrich, arXiv 1910.07467)."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=RMS_EPSILON)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def rotation_table(length: int, width: int) -> Rotation:
    """Returns the rotations of positions 0 to `length` - 1 for heads of `width` channels (Su et al., arXiv 2104.09864).

    Channel i turns with channel i + width / 2, as in Llama.
    """
    frequencies = ROTARY_BASE ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)  # (D / 2)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    sines = angles.sin()
    return angles.cos().repeat(1, 2)[:, None], torch.cat([-sines, sines], 1)[:, None]


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Returns `x` (B, T, heads, D) turned by its positions' angles."""
    cosines, sines = rotation
    return torch.addcmul(x * cosines, x.roll(x.size(-1) // 2, -1), sines).type_as(x)


class Attention(nn.Module):
    """Causal self-attention, whose heads may share keys and values in groups (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.n_head, config.kv_heads, config.kv_heads  # of queries, keys and values
        self.width = config.n_embd // config.n_head
        self.dropout = config.dropout
        self.qkv = FusedLinear(config.n_embd, tuple(self.width * heads for heads in self.heads), config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.width, eps=RMS_EPSILON) if config.qk_norm else None for _ in range(2)
        )  # Qwen3, arXiv 2505.09388

    def forward(self, x: torch.Tensor, rotation: Rotation | None, cache: KeyValueCache | None) -> torch.Tensor:
        B, T, C = x.shape
        parts = self.qkv(x).view(B, T, sum(self.heads), self.width)
        q, k, v = parts.split(self.heads, dim=2)  # each (B, T, heads, D); not permuted: one copy less backwards
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # each (B, heads, T, D)
        is_causal = cache is None or cache.length == 0
        if cache is not None:
            k, v = cache.extend(k, v)
        p = self.dropout if self.training else 0.0
        grouped = self.heads[0] != self.heads[1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, dropout_p=p, enable_gqa=grouped)
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return out


class MLP(nn.Module):
    """The position-wise network: C -> 4C -> C.

    gelu is GPT-2's, whose tanh form takes a CPU three times as long. relu2 is the squared ReLU (So et al., arXiv
    2109.08668). swiglu has two layers of 8/3 C side by side, one of which gates the other (Shazeer, arXiv 2002.05202).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, width = config.mlp, config.mlp_width
        if self.kind == "swiglu":
            self.fc: nn.Linear = FusedLinear(config.n_embd, (width, width), config.bias)
        else:
            self.fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        if self.kind == "swiglu":
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        elif self.kind == "relu2":
            x = F.relu(x).square()
        else:
            x = F.gelu(x, approximate=self.approximate)
        out: torch.Tensor = self.proj(x)
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, rotation: Rotation | None = None, cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        x = x + self.dropout(self.attn(self.norm1(x), rotation, cache))
        out: torch.Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out
