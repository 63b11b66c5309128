"""The decoder. Shapes in comments: B windows, T tokens, C = n_embd channels, V = vocab_size."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from myllm.config import GPTConfig
from myllm.models.block import Block, KeyValueCache, make_norm, rotation_table
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
            return F.cross_entropy(F.linear(x.to(weight.dtype), weight), targets)
        options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=rows)
        return F.linear_cross_entropy(x.to(weight.dtype), weight, targets, options=options)


class GPT(nn.Module):
    """A decoder: embeddings, pre-norm blocks, a final norm and a head, which is GPT-2 unless the configuration says more.

    GPT-2 has learned positions and a head tied to the token embedding. Weights start as N(0, 0.02), those that write into
    the residual stream as N(0, 0.02 / sqrt(2 n_layer)), biases as 0 (Radford et al. 2019, section 2.3, and the released
    code).
    """

    cosines: torch.Tensor  # rotary positions: each (block_size, 1, D)
    sines: torch.Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        else:
            cosines, sines = rotation_table(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cosines", cosines, persistent=False)
            self.register_buffer("sines", sines, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def new_cache(self) -> list[KeyValueCache]:
        """Returns an empty cache for generation: calls of `forward` with it take the tokens after the earlier ones."""
        return [KeyValueCache() for _ in self.blocks]

    def forward(
        self, ids: torch.Tensor, targets: torch.Tensor | None = None, cache: list[KeyValueCache] | None = None
    ) -> torch.Tensor:
        """Logits (B, T, V) for `ids` (B, T), or with `targets` (B, T) their mean cross-entropy, a scalar in nats.

        With a `cache` that holds earlier tokens, `ids` are the next one of each window, (B, 1). Raises ValueError where all
        tokens together exceed block_size.
        """
        begin = cache[0].length if cache else 0
        end = begin + ids.size(1)
        if self.config.block_size < end:
            raise ValueError(f"{end} tokens exceed the block_size of {self.config.block_size}")
        x, rotation = self.token_embedding(ids), None  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding(torch.arange(begin, end, device=ids.device))
        else:
            rotation = self.cosines[begin:end], self.sines[begin:end]
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, cache[index] if cache else None)
        x = self.norm(x)
        head = self.token_embedding.weight if self.head is None else self.head.weight
        if targets is None:
            return F.linear(x, head)  # (B, T, V)
        return linear_cross_entropy(x.flatten(0, 1), head, targets.flatten())

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
