"""Data for training: windows over token files, and a seeded stream of batches whose position is two whole numbers.

    python myllm/data.py --input text.txt --out_dir DIR --tokenizer gpt2 --val_fraction 0.1

writes train_ids.bin and val_ids.bin, flat little-endian uint16 ids (uint32 where the vocabulary needs it), with a .json
beside each that names type, tokenizer and content. What may stand for --input, --train_file and --val_file: see sources.py,
token_layout.py and text.py; what becomes of it: prepare.py.
"""

import os
import sys

if __name__ == "__main__" and not __spec__:  # as a file, not as a module
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import myllm.imports

myllm.imports.check_imports()

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from myllm.errors import InputError, Parser, run_command
from myllm.files import check_writable
from myllm.prepare import default_tokenizer, encoded, prepare, progress_bar, split_text
from myllm.sources import EMBEDDED, Source, are_tokens, find_files
from myllm.token_file import TokenFile, write_token_file
from myllm.token_layout import DTYPES
from myllm.tokenizer import get_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["EMBEDDED", "BatchStream", "Source", "TokenFile", "Windows", "default_tokenizer", "prepare", "shuffled"]


class Windows:
    """All windows of `max_len` tokens of a file, `stride` apart, with targets shifted by one.

    Raises InputError where the file is shorter than one window.
    """

    def __init__(self, tokens: TokenFile, max_len: int, stride: int):
        self.tokens, self.max_len, self.stride = tokens, max_len, stride
        if len(tokens) < max_len + 1:
            raise InputError(
                f"{tokens.name}: {len(tokens)} tokens are fewer than one window of max_len + 1 = {max_len + 1}"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.max_len - 1) // self.stride + 1

    def batch(self, indices: np.ndarray) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Inputs and targets of the windows `indices` (n,): two (n, max_len) int64 tensors."""
        import torch  # here: a search reads its data without

        block = torch.from_numpy(self.ids(indices))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def ids(self, indices: np.ndarray) -> np.ndarray:
        """The ids of the windows `indices` (n,) and the one after each: (n, max_len + 1) int64."""
        return self.tokens.read(np.asarray(indices) * self.stride, self.max_len + 1)

    def spread(self, count: int) -> np.ndarray:
        """`count` window indices spread evenly over the file (all of them where there are fewer), ascending."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))


def shuffled(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) sends `positions` (int64), without ever storing it.

    A six-round Feistel network over the smallest even number of bits that holds n, walking the cycle until the result
    lies below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). `key` chooses the permutation.
    Raises ValueError for a position outside of range(n).
    """
    half = np.uint64(max(1, (max(1, n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = np.random.SeedSequence(key).generate_state(6, np.uint64)

    def encrypt(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for round_key in round_keys:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    if np.size(positions) and not 0 <= np.min(positions) <= np.max(positions) < n:
        raise ValueError(
            f"positions {np.min(positions)} to {np.max(positions)} do not lie in range({n})"
        )  # would walk for ever
    result = encrypt(np.asarray(positions).astype(np.uint64))
    outside = result >= n
    while outside.any():
        result[outside] = encrypt(result[outside])
        outside = result >= n
    return result.astype(np.int64)


class BatchStream:
    """An endless stream of shuffled batches; every epoch is a new order of all windows.

    The position is `epoch` and `batch` within it. The windows that do not fill a last batch are left out of that epoch.
    Raises InputError where the batch is larger than the data.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int):
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.steps_per_epoch = len(windows) // batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"batch_size {batch_size} is larger than the data: {windows.tokens.name} has {len(windows)} windows of"
                f" {windows.max_len} tokens"
            )
        self.epoch = self.batch = 0

    def next(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """The next batch, as Windows.batch gives it."""
        if self.batch >= self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        positions = np.arange(self.batch * self.batch_size, (self.batch + 1) * self.batch_size)
        key = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        self.batch += 1
        return self.windows.batch(shuffled(positions, len(self.windows), key))


def main() -> None:
    parser = Parser(prog="data.py", description="Writes text as train_ids.bin and val_ids.bin.")
    parser.add_argument("--input", required=True, nargs="+", help="text or token files: names, a glob, or a folder")
    parser.add_argument("--out_dir", required=True, help="folder to write to")
    parser.add_argument(
        "--tokenizer", default="gpt2", help="byte, a tiktoken encoding, or a .tiktoken or tokenizer.json file"
    )
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the characters, at the end, for val")
    parser.add_argument(
        "--text_column", help="column that is the text, of .jsonl, .csv, .parquet and .arrow files (default: found)"
    )
    parser.add_argument("--token_dtype", choices=list(DTYPES), help="what bare .bin files hold (default: uint16)")
    args = parser.parse_args()
    if not 0 < args.val_fraction < 1:
        raise InputError(f"--val_fraction is {args.val_fraction}; it must lie between 0 and 1")
    files, tokenizer = find_files(args.input), get_tokenizer(args.tokenizer)
    outputs = [Path(args.out_dir) / name for name in ("train_ids.bin", "val_ids.bin")]
    for path in outputs:
        check_writable(path, "--out_dir")
        if os.path.realpath(path) in map(os.path.realpath, files):
            raise InputError(f"--out_dir {args.out_dir}: {path} is an --input too")
    if are_tokens(files):
        tokens = prepare(args.input, "train", args.tokenizer, tokenizer, token_dtype=args.token_dtype)
        cut = int(len(tokens) * (1 - args.val_fraction))
        parts = [tokens.pieces(0, cut), tokens.pieces(cut, len(tokens))]
        bar = contextlib.nullcontext()
    elif args.token_dtype:
        raise InputError(f"--token_dtype {args.token_dtype} is for .bin files of token ids; --input is text")
    else:
        train, val, size = split_text(files, args.text_column, args.val_fraction)
        bar = progress_bar(size, "tokenizing")
        parts = [encoded(train, tokenizer, bar), encoded(val, tokenizer, bar)]
    with bar:
        for path, ids in zip(outputs, parts, strict=True):
            tokens = write_token_file(path, ids, args.tokenizer, tokenizer, str(path))
            print(f"{path}: {len(tokens)} tokens")


if __name__ == "__main__":
    run_command(main)
