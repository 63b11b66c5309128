"""Times training steps of our GPT against nanoGPT's, Hugging Face's and Raschka's, all of one shape, interleaved.

    python experiments/steps.py                                 # about 6 minutes on 2 quiet cores
    python experiments/steps.py --shapes 0 --threads 1 --seconds 1 --rounds 3
    python experiments/steps.py --shapes 0 2 --threads 1 --cpu_seconds --models nanoGPT ours "ours, modern"

A step is forward, backward, clipping to norm 1 and AdamW in float32, on random ids. Printed are tokens a second, medians
over the rounds, and the median of our speed over that of the best peer in the same round. The peers are written here from
their published shapes: nanoGPT (erf GELU, tied head, AdamW in two groups) and LLMs-from-scratch (attention with a mask, or
with scaled_dot_product_attention; untied head, GELU and norms by their formulas). Hugging Face's is transformers' own
GPT2LMHeadModel. `--optimizer fused` gives all of them the fused AdamW that ours has. Needs `transformers`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from myllm.config import GPTConfig
from myllm.models.gpt import GPT
from myllm.presets import MODERN
from myllm.system.errors import InputError, Parser, run_command


@dataclass(frozen=True)
class Shape:
    """A model's shape, its batch in windows, and torch's threads."""

    V: int
    d: int
    L: int
    T: int
    B: int
    threads: int

    @property
    def heads(self) -> int:
        return max(2, self.d // 64) if self.d > 128 else max(2, self.d // 32)


SHAPES = (
    *(Shape(256, 128, 4, 128, 8, 1), Shape(256, 128, 4, 128, 8, 2), Shape(256, 64, 2, 64, 16, 1)),
    *(Shape(50257, 128, 4, 128, 8, 2), Shape(50257, 384, 6, 256, 4, 2)),
)


class Residual(nn.Module):
    """A pre-norm block of any attention and network."""

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, network: nn.Module):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.network = norm1, attention, norm2, network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.network(self.norm2(x))


class Decoder(nn.Module):
    """Embeddings, blocks, norm and head; the loss of all logits at once, as the peers compute it."""

    def __init__(self, shape: Shape, blocks: list[nn.Module], norm: nn.Module, tied: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(shape.V, shape.d), nn.Embedding(shape.T, shape.d)
        self.blocks, self.norm = nn.ModuleList(blocks), norm
        self.head = nn.Linear(shape.d, shape.V, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class FusedAttention(nn.Module):
    """nanoGPT's: one product for queries, keys and values, then PyTorch's attention."""

    def __init__(self, d: int, heads: int, bias: bool):
        super().__init__()
        self.d, self.heads = d, heads
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, d = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(self.d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(B, T, d))


class MaskedAttention(nn.Module):
    """Chapter 3's: three products, scores, a mask, softmax."""

    def __init__(self, d: int, heads: int, T: int):
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.out = nn.Linear(d, d)
        self.register_buffer("mask", torch.ones(T, T, dtype=torch.bool).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, d = x.shape
        q, k, v = (part(x).view(B, T, self.heads, -1).transpose(1, 2) for part in (self.queries, self.keys, self.values))
        scores = (q @ k.transpose(2, 3)).masked_fill_(self.mask[:T, :T], -torch.inf)
        weights = torch.softmax(scores / k.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(B, T, d))


class FormulaGELU(nn.Module):
    """Chapter 4's GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3))))


class FormulaNorm(nn.Module):
    """Chapter 4's layer norm."""

    def __init__(self, d: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class ModernAttention(nn.Module):
    """nanochat's and Llama's: norms of queries and keys, and two halves of each head that turn, put together again."""

    def __init__(self, d: int, heads: int, T: int):
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = (nn.RMSNorm(d // heads, eps=1e-6) for _ in range(2))
        frequencies = 10_000.0 ** -(torch.arange(0, d // heads, 2) * heads / d)
        angles = torch.arange(T)[:, None] * frequencies
        self.register_buffer("cosines", angles.cos()[:, None])
        self.register_buffer("sines", angles.sin()[:, None])

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        one, other = x.chunk(2, dim=-1)
        return torch.cat([one * self.cosines - other * self.sines, other * self.cosines + one * self.sines], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, d = x.shape
        q, k, v = (part(x).view(B, T, self.heads, -1) for part in (self.queries, self.keys, self.values))
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(B, T, d))


class Gated(nn.Module):
    """Llama's network: two layers, one of which gates the other."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.gate, self.up = (nn.Linear(d, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def network(d: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 4 * d), activation, nn.Linear(4 * d, d))


def nanogpt(s: Shape) -> nn.Module:
    def block() -> nn.Module:
        attention = FusedAttention(s.d, s.heads, bias=True)
        return Residual(nn.LayerNorm(s.d), attention, nn.LayerNorm(s.d), network(s.d, nn.GELU()))

    return Decoder(s, [block() for _ in range(s.L)], nn.LayerNorm(s.d), tied=True)


def modern(s: Shape) -> nn.Module:
    width = GPTConfig(s.L, s.heads, s.d, s.T, s.V, mlp="swiglu").mlp_width

    def block() -> nn.Module:
        norms = [nn.RMSNorm(s.d, eps=1e-6) for _ in range(2)]
        return Residual(norms[0], ModernAttention(s.d, s.heads, s.T), norms[1], Gated(s.d, width))

    return Decoder(s, [block() for _ in range(s.L)], nn.RMSNorm(s.d, eps=1e-6), tied=True)


def raschka(s: Shape, fused: bool) -> nn.Module:
    def block() -> nn.Module:
        attention = FusedAttention(s.d, s.heads, bias=False) if fused else MaskedAttention(s.d, s.heads, s.T)
        return Residual(FormulaNorm(s.d), attention, FormulaNorm(s.d), network(s.d, FormulaGELU()))

    return Decoder(s, [block() for _ in range(s.L)], FormulaNorm(s.d), tied=False)


def huggingface(s: Shape) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    shape = dict(vocab_size=s.V, n_positions=s.T, n_embd=s.d, n_layer=s.L, n_head=s.heads)
    return GPT2LMHeadModel(GPT2Config(**shape, **none))


MODELS: dict[str, Callable[[Shape], nn.Module]] = {
    "nanoGPT": nanogpt,
    "HF GPT-2": huggingface,
    "Raschka, mask": lambda s: raschka(s, fused=False),
    "Raschka, sdpa": lambda s: raschka(s, fused=True),
    "ours": lambda s: GPT(GPTConfig(s.L, s.heads, s.d, s.T, s.V, activation="gelu")),
    "ours, tanh": lambda s: GPT(GPTConfig(s.L, s.heads, s.d, s.T, s.V, activation="gelu_tanh")),
}
DEFAULT = list(MODELS)
MODELS["plain, modern"] = modern  # written as nanochat and Llama are: learned positions come on top
SWITCHES: dict[str, dict[str, Any]] = {
    "rmsnorm": {"norm": "rmsnorm"},
    "rotary": {"position": "rotary"},
    "swiglu": {"mlp": "swiglu"},
    "relu2": {"mlp": "relu2"},
    "qk_norm": {"qk_norm": True},
    "one kv head": {"n_kv_head": 1},
    "untied": {"tied": False},
    "modern": MODERN,
}


def switched(switches: dict[str, Any]) -> Callable[[Shape], nn.Module]:
    """Ours with other parts of the block."""
    return lambda s: GPT(GPTConfig(s.L, s.heads, s.d, s.T, s.V, **{"activation": "gelu"} | switches))


MODELS |= {f"ours, {name}": switched(switches) for name, switches in SWITCHES.items()}


def stepper(name: str, shape: Shape, optimizer: str) -> Callable[[], None]:
    """One training step of a model, as a call."""
    torch.manual_seed(0)
    ids = torch.randint(shape.V, (shape.B, shape.T))
    model = MODELS[name](shape).train()
    fused = True if optimizer == "fused" or name.startswith("ours") else None
    groups: list = list(model.parameters())
    if name == "nanoGPT" or name.startswith("ours"):
        matrices, others = [p for p in groups if p.dim() >= 2], [p for p in groups if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, fused=fused)
    parameters = list(model.parameters())

    def step() -> None:
        adamw.zero_grad(set_to_none=True)
        loss = model(ids, labels=ids, use_cache=False).loss if name == "HF GPT-2" else model(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()

    return step


def measure(
    shape: Shape, names: list[str], rounds: int, seconds: float, optimizer: str, cpu_seconds: bool = False
) -> dict[str, list[float]]:
    """Tokens a second of each model in each round, of about so many seconds for each."""
    torch.set_num_threads(shape.threads)
    steps, counts, found = {}, {}, {name: [] for name in names}
    clock = time.process_time if cpu_seconds else time.perf_counter
    for name in names:
        steps[name] = stepper(name, shape, optimizer)
        steps[name]()
        begin = clock()
        steps[name]()
        counts[name] = max(1, round(seconds / (clock() - begin)))
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            begin = clock()
            for _ in range(counts[name]):
                steps[name]()
            found[name].append(counts[name] * shape.B * shape.T / (clock() - begin))
    return found


def main() -> None:
    parser = Parser(prog="steps.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, nargs="+", default=range(len(SHAPES)), help="which rows, from 0")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=DEFAULT, help="those to time")
    parser.add_argument("--rounds", type=int, default=7, help="of all models")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each model in a round, at least a step")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (unset: each row's own)")
    parser.add_argument(
        "--optimizer", choices=["own", "fused"], default="own", help="AdamW as each project makes it, or fused"
    )
    parser.add_argument("--cpu_seconds", action="store_true", help="of the process, with one thread: on a busy machine")
    args = parser.parse_args()
    if args.rounds < 1 or not all(0 <= row < len(SHAPES) for row in args.shapes):
        raise InputError(f"--rounds must be 1 or more, and --shapes lie from 0 to {len(SHAPES) - 1}")
    peers = [name for name in args.models if not name.startswith("ours")]
    print(f"| V, d, L, T, B, threads | {' | '.join(args.models)} | ours / best peer |")
    print("|-|" + "-|" * (len(args.models) + 1))
    for row in args.shapes:
        shape = SHAPES[row]
        if args.threads:
            shape = Shape(shape.V, shape.d, shape.L, shape.T, shape.B, args.threads)
        found = measure(shape, args.models, args.rounds, args.seconds, args.optimizer, args.cpu_seconds)
        ratios = [
            found["ours"][turn] / max(found[name][turn] for name in peers)
            for turn in range(args.rounds)
            if peers and "ours" in found
        ]
        numbers = " | ".join(f"{statistics.median(found[name]):,.0f}" for name in args.models)
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        what = f"{shape.V:,}, {shape.d}, {shape.L}, {shape.T}, {shape.B}, {shape.threads}"
        print(f"| {what} | {numbers} | {ratio} |", flush=True)


if __name__ == "__main__":
    run_command(main)
