"""The configuration of a run: the model's shape and the training settings.

The dataclasses are frozen. Each field is checked at construction, alone and against the others.
"""

import ast
import dataclasses
import inspect
import math
import typing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol, TypeVar

from myllm.system.errors import InputError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)
CHOICES = {
    "activation": ("gelu_tanh", "gelu"),
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "rotary"),
    "mlp": ("gelu", "swiglu", "relu2"),
}
"""words that settings of the decoder may have"""
WIDTH_MULTIPLE = 64
"""of swiglu's hidden layer, in channels: a GPU multiplies such widths fastest"""
TIMED_REPORTS = 32
"""reports of a training with budget_seconds, after equal parts of the time"""


def _require(condition: bool, field: str, value: Any, right: str) -> None:
    if not condition:
        raise InputError(f"{field} is {value!r}; it must be {right}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a decoder: GPT-2's, with newer parts where they are named."""

    n_layer: int
    """transformer blocks"""
    n_head: int
    """attention heads a block; divides n_embd"""
    n_embd: int
    """width of the residual stream, in channels"""
    block_size: int
    """longest context, in tokens"""
    vocab_size: int = 50257
    """token ids the model knows: 0 to vocab_size - 1"""
    dropout: float = 0.0
    """probability of zeroing an activation while training, 0 <= dropout < 1"""
    bias: bool = True
    """whether linear layers and norms carry a bias, as GPT-2's do"""
    activation: str = "gelu_tanh"
    """gelu: the exact one, as nanoGPT's; gelu_tanh: GPT-2's approximation, which older configurations mean as well"""
    norm: str = "layernorm"
    """layernorm; or rmsnorm, without a mean and a bias"""
    position: str = "learned"
    """learned: an embedding of each position; rotary: queries and keys turn with their position"""
    mlp: str = "gelu"
    """gelu (see activation); swiglu: a gated layer of 8/3 the width; relu2: the squared ReLU"""
    qk_norm: bool = False
    """whether queries and keys have an RMS norm, over each head's channels"""
    n_kv_head: int = 0
    """heads of keys and values, which groups of heads share; divides n_head; 0: as many as n_head"""
    tied: bool = True
    """whether the head is the token embedding; else it has weights of its own"""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            value = getattr(self, name)
            _require(_is_int(value) and value > 0, name, value, "a positive whole number")
        _require(self.n_embd % self.n_head == 0, "n_embd", self.n_embd, f"a multiple of n_head ({self.n_head})")
        _require(_is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        for name, words in CHOICES.items():
            _require(getattr(self, name) in words, name, getattr(self, name), " or ".join(words))
        divides = _is_int(self.n_kv_head) and self.n_kv_head >= 0 and self.n_head % (self.n_kv_head or 1) == 0
        _require(divides, "n_kv_head", self.n_kv_head, f"a divisor of n_head ({self.n_head}), or 0 for as many")
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise InputError(
                f"position is 'rotary', and a head of n_embd {self.n_embd} / n_head {self.n_head} has an odd number of "
                "channels; it must have an even one, for channels turn in pairs"
            )
        for name in ("bias", "qk_norm", "tied"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")

    @property
    def kv_heads(self) -> int:
        """Returns the heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_width(self) -> int:
        """Returns the channels of the position-wise network's hidden layer: 4 n_embd, or of swiglu about 8/3 n_embd."""
        if self.mlp == "swiglu":
            return max(1, round(8 * self.n_embd / 3 / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
        return 4 * self.n_embd


LENGTHS = ("epochs", "budget_tokens", "budget_seconds")
"""settings of which one says how long a training is"""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training. One of `epochs`, `budget_tokens` and `budget_seconds` says how long it is."""

    learning_rate: float
    """peak learning rate"""
    batch_size: int
    """windows per optimizer step"""
    max_len: int
    """tokens per window"""
    stride: int
    """tokens between the starts of neighbouring windows"""
    version: str = "v2"
    """v1: constant rate, no clipping; v2: warm-up, cosine decay, clipping"""
    epochs: int | None = None
    """passes over all windows of the training file (the last, incomplete batch of a pass is left out)"""
    budget_tokens: int | None = None
    """tokens to train on; a multiple of batch_size * max_len"""
    budget_seconds: float | None = None
    """seconds of optimizer steps, without evaluations: as many tokens as they last for here"""
    warmup_ratio: float = 0.02
    """v2: share of the optimizer steps in which the rate rises linearly to its peak"""
    min_lr_ratio: float = 0.1
    """v2: floor of the schedule, as a share of the peak rate"""
    schedule: str = "cosine"
    """v2: cosine, or wsd (warm-up, stable, then a linear decay over the last cooldown_ratio of the steps)"""
    cooldown_ratio: float = 0.2
    """wsd: share of the optimizer steps, at the end, in which the rate falls to its floor"""
    clip_norm: float = 1.0
    """v2: largest global L2 norm of the gradient"""
    optimizer: str = "adamw"
    """adamw; or muon, for the matrices of the blocks, beside adamw for all other parameters"""
    muon_lr_ratio: float = 1.0
    """muon: learning rate of the matrices, as a multiple of learning_rate"""
    weight_decay: float = 0.1
    """decoupled decay, of matrices and embeddings only"""
    beta1: float = 0.9
    """AdamW's decay rate of the gradient average, per step"""
    beta2: float = 0.95
    """AdamW's decay rate of the squared gradient average, per step"""
    beta2_half_life: float | None = None
    """tokens after which a squared gradient counts half; where given, it sets beta2 for every batch size alike"""
    ema_ratio: float = 0.0
    """horizon of the averaged weights, as a share of the optimizer steps so far; 0: no averaged weights"""
    micro_batch_size: int | None = None
    """windows per forward pass; None: the whole batch. Gradients add up to the full batch."""
    eval_freq: int = 100
    """optimizer steps between reports"""
    eval_windows: int = 64
    """validation windows that an evaluation reads; the same ones every time"""
    train_eval_windows: int | None = None
    """training windows that an evaluation reads, for train_loss; None: as many as validation windows"""
    dtype: str = "auto"
    """arithmetic of the forward pass: float32, bfloat16 by autocast, or auto: bfloat16 on GPUs that multiply it natively"""
    float32_matmul: str = "tf32"
    """how a GPU multiplies float32 matrices: tf32 (10 bits of mantissa, several times as fast) or float32"""
    compile: str = "auto"
    """whether passes are compiled: on (on a CPU by a C++ compiler), off, or auto: on a GPU, where a training repays it"""
    seed: int = 0
    """seeds initialisation, dropout and data order"""

    def __post_init__(self) -> None:
        optional = ("epochs", "budget_tokens", "micro_batch_size", "train_eval_windows")
        for name in ("batch_size", "max_len", "stride", "eval_freq", "eval_windows", *optional):
            value = getattr(self, name)
            unset = value is None and name in optional
            _require(unset or (_is_int(value) and 0 < value < 2**63), name, value, "a positive whole number below 2^63")
        for name in ("learning_rate", "clip_norm", "muon_lr_ratio", "beta2_half_life", "budget_seconds"):
            value = getattr(self, name)
            unset = value is None and name in ("beta2_half_life", "budget_seconds")
            _require(unset or (_is_number(value) and value > 0), name, value, "a positive number")
        _require(_is_number(self.weight_decay) and self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        for name in ("warmup_ratio", "min_lr_ratio", "cooldown_ratio", "ema_ratio"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value <= 1, name, value, "between 0 and 1")
        _require(self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "below 1: warm-up must end before training does")
        if self.schedule == "wsd" and self.warmup_ratio + self.cooldown_ratio > 1:
            raise InputError(
                f"warmup_ratio {self.warmup_ratio} and cooldown_ratio {self.cooldown_ratio} add up to more than 1: "
                "warm-up must end before the cooldown begins"
            )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, name, value, "at least 0 and below 1")
        _require(_is_int(self.seed) and 0 <= self.seed < 2**31, "seed", self.seed, "a whole number from 0 to 2^31 - 1")
        _require(self.version in ("v1", "v2"), "version", self.version, "v1 or v2")
        _require(self.optimizer in ("adamw", "muon"), "optimizer", self.optimizer, "adamw or muon")
        _require(self.schedule in ("cosine", "wsd"), "schedule", self.schedule, "cosine or wsd")
        _require(self.dtype in ("auto", "float32", "bfloat16"), "dtype", self.dtype, "auto, float32 or bfloat16")
        _require(self.float32_matmul in ("tf32", "float32"), "float32_matmul", self.float32_matmul, "tf32 or float32")
        _require(self.compile in ("auto", "on", "off"), "compile", self.compile, "auto, on or off")
        lengths = {name: getattr(self, name) for name in LENGTHS}
        if sum(value is not None for value in lengths.values()) != 1:
            given = " and ".join(f"{name} is {value}" for name, value in lengths.items() if name != LENGTHS[2] or value)
            raise InputError(f"{given}; exactly one must say how long to train")
        if self.budget_tokens is not None:
            whole = self.budget_tokens % self.tokens_per_step == 0
            right = f"a multiple of batch_size * max_len ({self.tokens_per_step})"
            _require(whole, "budget_tokens", self.budget_tokens, right)

    @property
    def tokens_per_step(self) -> int:
        """Returns the tokens that one optimizer step trains on."""
        return self.batch_size * self.max_len

    @property
    def step_beta2(self) -> float:
        """Returns AdamW's beta2 for this batch size: beta2, or 0.5 ** (tokens_per_step / beta2_half_life) if set.

        A half-life in tokens keeps its meaning across batch sizes (Marek et al., arXiv 2507.07101).
        """
        if self.beta2_half_life is None:
            return self.beta2
        return float(0.5 ** (self.tokens_per_step / self.beta2_half_life))


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Builds the dataclass `cls` from a flat dict.

    Raises InputError for an unknown key, a missing key, and a value that `cls` rejects. The message starts with `where`.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a table of settings, got {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise InputError(f"{where}: unknown key {key!r}; known are {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{where}: the key {name!r} is missing")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def value_type(field: dataclasses.Field[Any]) -> type:
    """Returns the type of an option's value: str, int, float, bool, or tuple (of texts). Of `int | None` it is int."""
    if typing.get_origin(field.type) is tuple:
        return tuple
    kind = next(iter(typing.get_args(field.type)), field.type)
    if not isinstance(kind, type):
        raise TypeError(f"{field.name} has the type {kind!r}, which no option can have")
    return kind


def parse_value(of: type, text: str) -> Any:
    """Returns the value of type `of` that `text` spells. Raises ValueError where it spells none, or an infinite one."""
    if of is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        value = int(float(text)) if of is int and float(text).is_integer() else of(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no {'whole number' if of is int else 'number'}") from None
    if of is float and not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def field_help(config_class: type) -> dict[str, str]:
    """Returns the docstring under each field of a dataclass, by the field's name."""
    (definition,) = ast.parse(inspect.getsource(config_class)).body
    return {
        ast.unparse(field.target): ast.literal_eval(text.value)
        for field, text in pairwise(getattr(definition, "body", ()))
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
