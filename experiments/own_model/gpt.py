"""A decoder in the shape that many projects have: a config object, and forward(idx, targets) -> (logits, loss).

It stands here for code that was not written for this project: rotary positions, RMS norm and a gated MLP, as in Llama.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, width = config.n_head, config.n_embd
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 4 * width, bias=False), nn.Linear(width, 4 * width, bias=False)
        self.down, self.dropout = nn.Linear(4 * width, width, bias=False), nn.Dropout(config.dropout)

    def forward(self, x, cos, sin):
        q, k, v = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        h = self.norm2(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.n_embd % (2 * config.n_head) == 0, "n_embd must be a multiple of 2 * n_head"
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm, self.head = nn.RMSNorm(config.n_embd), nn.Linear(config.n_embd, config.vocab_size, bias=False)
        half = config.n_embd // config.n_head // 2
        angles = torch.outer(torch.arange(config.block_size), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, idx, targets=None):
        x = self.embedding(idx)
        for block in self.blocks:
            x = block(x, self.cos[: idx.size(1)], self.sin[: idx.size(1)])
        logits = self.head(self.norm(x))
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
