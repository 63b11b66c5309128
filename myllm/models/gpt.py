"""GPT-2's decoder. Shapes in comments: B windows, T tokens, C = n_embd channels, H heads, V = vocab_size."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from myllm.config import GPTConfig
from myllm.system.errors import InputError

LOSS_CHUNK_LOGITS = 2**23  # logits that the loss holds at once on a CPU: 32 MiB in float32
VOCAB_MULTIPLE = 128  # a GPU multiplies matrices of such a width fastest


def linear_cross_entropy(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, a scalar in float32, of the logits x @ weight.T: x (N, C), weight (V, C), targets (N).

    On a CPU in pieces, so that the logits never exist as a whole. On a GPU as a whole, of a vocabulary padded inside:
    compiled code keeps no copy of them, and where memory is short the micro-batch is halved. (PyTorch's pieces make a
    bfloat16 loss of bfloat16 inputs, which has three digits: too few to tell trials apart.)
    """
    if x.device.type != "cpu":
        vocab_size = weight.size(0)
        if torch.is_autocast_enabled(x.device.type):
            weight = weight.to(torch.get_autocast_dtype(x.device.type))
        logits = F.linear(x, F.pad(weight, (0, 0, 0, -vocab_size % VOCAB_MULTIPLE)))[:, :vocab_size]
        return F.cross_entropy(logits.float(), targets)
    rows = max(1, LOSS_CHUNK_LOGITS // weight.size(0))
    with torch.autocast("cpu", enabled=False):
        if rows >= x.size(0) or torch.compiler.is_compiling():
            return F.cross_entropy(F.linear(x.float(), weight), targets)
        options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=rows)
        return F.linear_cross_entropy(x.float(), weight, targets, options=options)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        parts = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)  # not permuted: one copy less backwards
        q, k, v = (part.transpose(1, 2) for part in parts)  # each (B, H, T, C/H)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return out


class MLP(nn.Module):
    """The position-wise network: C -> 4C -> C with a GELU, whose tanh form takes a CPU three times as long."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(F.gelu(self.fc(x), approximate=self.approximate))
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))
        out: torch.Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class GPT(nn.Module):
    """GPT-2: learned positions, pre-norm blocks, a final norm and a head tied to the token embedding.

    Weights start as N(0, 0.02), those that write into the residual stream as N(0, 0.02 / sqrt(2 n_layer)), biases as 0
    (Radford et al. 2019, section 2.3, and the released code).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)  # also the head
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, T, V) for `ids` (B, T), or with `targets` (B, T) their mean cross-entropy, a scalar in nats.

        Raises ValueError where T exceeds block_size.
        """
        T = ids.size(1)
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens exceed the block_size of {self.config.block_size}")
        positions = torch.arange(T, device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if targets is None:
            return F.linear(x, self.token_embedding.weight)  # (B, T, V)
        return linear_cross_entropy(x.flatten(0, 1), self.token_embedding.weight, targets.flatten())

    @classmethod
    def from_gpt2_state_dict(cls, state_dict: dict[str, torch.Tensor], n_head: int) -> "GPT":
        """Returns the GPT with the weights of a Hugging Face GPT2LMHeadModel's state dict; `n_head` is not stored there.

        Raises InputError where the state dict is not that of a GPT-2.
        """
        names = {
            "transformer.wte.": "token_embedding.",
            "transformer.wpe.": "position_embedding.",
            "transformer.ln_f.": "norm.",
            "transformer.h.": "blocks.",
            ".ln_1.": ".norm1.",
            ".ln_2.": ".norm2.",
            ".attn.c_attn.": ".attn.qkv.",
            ".mlp.c_fc.": ".mlp.fc.",
            ".c_proj.": ".proj.",
        }
        converted = {}
        for key, tensor in state_dict.items():
            if key == "lm_head.weight" or key.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # the tied head; masks that older files carry
            if key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                tensor = tensor.T  # stored there as (in, out)
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            converted[key] = tensor
        try:
            vocab_size, n_embd = converted["token_embedding.weight"].shape
            block_size = converted["position_embedding.weight"].size(0)
            n_layer = sum(key.endswith("attn.qkv.weight") for key in converted)
            model = cls(GPTConfig(n_layer, n_head, n_embd, block_size, vocab_size))
            model.load_state_dict(converted)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"not the state dict of a GPT2LMHeadModel: {str(error).splitlines()[0]}") from None
        return model
