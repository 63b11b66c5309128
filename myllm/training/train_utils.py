"""Token ids to text and back, generation, loss plots, and saving and loading of whole training states."""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from myllm.datasets.tokenizer import ENDS_OF_TEXT, Tokenizer
from myllm.system.errors import InputError, warn
from myllm.system.files import whole_file
from myllm.training.run_artifacts import TrialCheckpoint, find_trial, local_file

LEAST_TEMPERATURE = 1e-6
"""below it float32 can't hold logits divided by it, and no token but the likeliest has a chance"""
HIGHEST_TEMPERATURE = 1e30
"""above it float32 can't hold the temperature itself; logits divided by it are all the same"""


def text_to_token_ids(text: str, tokenizer: Tokenizer) -> torch.Tensor:
    """Returns the ids of `text` as a batch of one, (1, n) int64. The end-of-text token may stand in the text."""
    allowed = tokenizer.special_tokens_set & set(ENDS_OF_TEXT)
    return torch.tensor([tokenizer.encode(text, allowed_special=allowed, disallowed_special=())], dtype=torch.int64)


def token_ids_to_text(ids: torch.Tensor, tokenizer: Tokenizer) -> str:
    """Returns the text of `ids`, (n,) or (1, n); bytes that are not UTF-8 become the replacement character."""
    return tokenizer.decode(ids.flatten().tolist())


@torch.no_grad()
def generate(
    model: Any,
    ids: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    block_size: int | None = None,
) -> torch.Tensor:
    """Continues `ids` (B, n) by up to `max_new_tokens`; returns (B, n + new), int64.

    The model is called with the last `block_size` ids (default: its config's), and returns logits (B, T, V); one of the
    user's own does so in its method `logits`. The built-in model keeps keys and values until its context is full.

    A temperature of 0, or below LEAST_TEMPERATURE, takes the likeliest token. Above it tokens are drawn from
    softmax(logits / temperature), of the `top_k` likeliest where given. Stops early when every row has produced `eos_id`.
    Raises ValueError for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 or more")
    was_training, logits_of = model.training, getattr(model, "logits", model)
    context: int = block_size or model.config.block_size
    model.eval()
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache, cached = model.new_cache() if hasattr(model, "new_cache") else None, 0
    for _ in range(max_new_tokens):
        if cache is not None and ids.size(1) <= context:
            logits, cached = model(ids[:, cached:], cache=cache)[:, -1].float(), ids.size(1)  # (B, V)
        else:  # a window that moves has other positions at each step
            logits = logits_of(ids[:, -context:])[:, -1].float()
        if top_k is not None:
            kept = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
            logits = logits.masked_fill(logits < kept, -torch.inf)
        if temperature < LEAST_TEMPERATURE:
            next_ids = logits.argmax(-1, keepdim=True)  # (B, 1)
        else:
            next_ids = torch.multinomial(
                (logits / min(temperature, HIGHEST_TEMPERATURE)).softmax(-1), 1, generator=generator
            )
        if eos_id is not None:
            next_ids = next_ids.masked_fill(done[:, None], eos_id)
            done |= next_ids[:, 0] == eos_id
        ids = torch.cat([ids, next_ids], dim=1)
        if eos_id is not None and done.all():
            break
    model.train(was_training)
    return ids


def plot_losses(
    epochs: Sequence[float],
    tokens_seen: Sequence[int],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
    path: str | Path,
) -> None:
    """Writes a PNG of both losses (nats per token), with epochs on the axis below and tokens seen above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(epochs, train_losses, label="train")
    axes.plot(epochs, val_losses, linestyle="--", label="val")
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    above = axes.twiny()
    above.plot(tokens_seen, train_losses, alpha=0)  # invisible: aligns the second axis
    above.set_xlabel("tokens seen")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Writes a training state so that a crash at any moment leaves the old file, or the new one, whole."""
    try:
        with whole_file(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch closes its archive after a failed write, and reports only that this failed too
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads what save_state wrote, running no code from it. Raises InputError for a missing, damaged or other file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the archive's checksums
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if damaged:
        raise InputError(f"{path}: a damaged checkpoint (checksum of {damaged})")
    if not isinstance(state, dict) or "model_config" not in state:
        raise InputError(f"{path}: not a training state of this project")
    return state


def load_trial(spec: str) -> tuple[TrialCheckpoint, dict[str, Any], str]:
    """Returns the trial that RUN/TRIAL names, its newest state that can be read, and where that is. Raises InputError."""
    trial = find_trial(spec)
    *newer, oldest = trial.checkpoints
    for place in newer:
        try:
            with local_file(place) as path:
                return trial, load_state(path), place
        except InputError as error:
            warn(f"{error}; going back further")
    try:
        with local_file(oldest) as path:
            return trial, load_state(path), oldest
    except InputError as error:
        raise InputError(f"--from_trial {spec}: {error}") from None
