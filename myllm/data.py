"""Token files, windows over them, and a seeded stream of batches whose position is two whole numbers.

    python -m myllm.data --input text.txt --out_dir DIR --tokenizer gpt2 --val_fraction 0.1

writes train_ids.bin and val_ids.bin: flat little-endian uint16 ids (uint32 where the vocabulary needs it), with a small
.json beside each that names the type and the tokenizer. A .bin without one is uint16.
"""

import hashlib
import json
import mmap
import os
import sysconfig
from pathlib import Path

import numpy as np
import tiktoken
import torch

from myllm.errors import InputError, Parser, run_command
from myllm.tokenizer import encode, get_tokenizer, id_dtype

EMBEDDED = "embedded"
"""Name of the corpus that every Python brings along: the source files of its standard library."""
CACHE_DIR = Path(__file__).resolve().parent.parent / "experiments" / "runs" / ".cache"
SMALL_BYTES = 2**26  # a file up to this size may stay in this process's memory: 64 MiB
PIECE = 16  # windows read before their pages are given back: Linux may map 2 MiB around each byte touched


class TokenFile:
    """A memory-mapped .bin file of token ids.

    Raises InputError where the file is missing, empty, or not a whole number of ids.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file")
        self.sidecar = read_sidecar(self.path)
        self.dtype = np.dtype(self.sidecar.get("dtype", "<u2"))
        size = self.path.stat().st_size
        if size == 0:
            raise InputError(f"{self.path}: the file is empty")
        if size % self.dtype.itemsize:
            raise InputError(f"{self.path}: {size} bytes are no whole number of {self.dtype.itemsize}-byte token ids")
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_RANDOM)  # no read-ahead: windows are far apart
        self.ids = np.frombuffer(self._map, dtype=self.dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` ids from each of `starts` (n,), as (n, length) int64. Keeps the mapped memory bounded."""
        block = np.empty((len(starts), length), np.int64)
        for i in range(0, len(starts), PIECE):
            block[i : i + PIECE] = self.ids[starts[i : i + PIECE, None] + np.arange(length)]
            self._give_back()
        return block

    def _give_back(self) -> None:
        """Takes the file's pages out of this process's memory; the system's own cache keeps them."""
        if len(self._map) > SMALL_BYTES and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def check_ids(self, vocab_size: int) -> None:
        """Raises InputError where an id is not below `vocab_size`. Reads the whole file once, in pieces."""
        piece = 2**22
        for start in range(0, len(self.ids), piece):
            ids = self.ids[start : start + piece]
            if ids.max() >= vocab_size:
                where = start + int(np.argmax(ids >= vocab_size))
                raise InputError(
                    f"{self.path}: token id {self.ids[where]} at position {where} is beyond the vocabulary of {vocab_size};"
                    " was it written with another --tokenizer?"
                )
            self._give_back()

    def fingerprint(self) -> dict:
        """Identifies the content: tokens, bytes, and the SHA-256 of up to 64 evenly spaced 64 KiB pieces."""
        digest = hashlib.sha256()
        size = len(self._map)
        for start in sorted({int(s) for s in np.linspace(0, max(0, size - 2**16), 64)}):
            digest.update(self._map[start : start + 2**16])
            self._give_back()
        return {"tokens": len(self), "bytes": size, "sha256_sampled": digest.hexdigest()}


def read_sidecar(path: Path) -> dict:
    """The .json beside a .bin, or {}. Raises InputError where it is not one of ours."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        values = json.loads(sidecar.read_text())
        if values["dtype"] not in ("<u2", "<u4"):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{sidecar}: expected a JSON object with "dtype": "<u2" or "<u4"') from None
    return values


class Windows:
    """All windows of `max_len` tokens of a file, `stride` apart, with targets shifted by one.

    Raises InputError where the file is shorter than one window.
    """

    def __init__(self, tokens: TokenFile, max_len: int, stride: int):
        self.tokens, self.max_len, self.stride = tokens, max_len, stride
        if len(tokens) < max_len + 1:
            raise InputError(
                f"{tokens.path}: {len(tokens)} tokens are fewer than one window of max_len + 1 = {max_len + 1}"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.max_len - 1) // self.stride + 1

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the windows `indices` (n,): two (n, max_len) int64 tensors."""
        block = torch.from_numpy(self.tokens.read(np.asarray(indices) * self.stride, self.max_len + 1))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def spread(self, count: int) -> np.ndarray:
        """`count` window indices spread evenly over the file (all of them where there are fewer), ascending."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))


def shuffled(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) sends `positions` (int64), without ever storing it.

    A six-round Feistel network over the smallest even number of bits that holds n, walking the cycle until the result
    lies below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). `key` chooses the permutation.
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
                f"batch_size {batch_size} is larger than the data: {windows.tokens.path} has {len(windows)} windows of"
                f" {windows.max_len} tokens"
            )
        self.epoch = self.batch = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch, as Windows.batch gives it."""
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        positions = np.arange(self.batch * self.batch_size, (self.batch + 1) * self.batch_size)
        key = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        self.batch += 1
        return self.windows.batch(shuffled(positions, len(self.windows), key))


def corpus_texts() -> tuple[list[bytes], list[bytes]]:
    """The embedded corpus: the standard library's .py files as (train, val), split by the hash of their names (1 in 16).

    Tests, generated tables, bundled packages and files that are not UTF-8 are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "pydoc_data",
        "encodings",
    }
    train, val = [], []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if left_out & set(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError:
            continue
        name_hash = hashlib.sha256(relative.as_posix().encode()).digest()[0]
        (val if name_hash < 16 else train).append(content)
    return train, val


def _write_ids(path: Path, ids: np.ndarray, tokenizer: str) -> None:
    """Writes a token file and its .json, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"dtype": ids.dtype.str.replace("=", "<"), "tokenizer": tokenizer})
    for target, content in ((path.with_suffix(".json"), about.encode()), (path, ids.tobytes())):
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(content)
        os.replace(temporary, target)


def read_text(path: Path) -> str:
    """The text of a file, line ends untouched. Raises InputError where it is missing, empty or not UTF-8."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path}: the file is empty")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def prepare(path: str, split: str, tokenizer: str, encoding: tiktoken.Encoding, cache_dir: Path = CACHE_DIR) -> TokenFile:
    """The checked TokenFile behind what a user names: a .bin, a text file, or `embedded` (then `split` is train or val).

    Text is tokenized once into `cache_dir`, under the hash of its content and tokenizer. Raises InputError for bad files,
    for ids beyond the vocabulary, and for a .bin that says it was made with another tokenizer.
    """
    if path == EMBEDDED or not path.endswith(".bin"):
        text = b"\n".join(corpus_texts()[split == "val"]).decode() if path == EMBEDDED else read_text(Path(path))
        key = hashlib.sha256(f"{encoding.name} {encoding.n_vocab} ".encode() + text.encode()).hexdigest()[:16]
        cached = cache_dir / f"{key}.bin"
        if not cached.is_file():
            _write_ids(cached, encode(text, encoding), tokenizer)
        return TokenFile(cached)
    tokens = TokenFile(path)
    written_with = tokens.sidecar.get("tokenizer", tokenizer)
    if written_with != tokenizer:
        raise InputError(f"{path}: written with --tokenizer {written_with}, not {tokenizer}")
    tokens.check_ids(encoding.n_vocab)
    return tokens


def default_tokenizer(train_file: str) -> str:
    """The tokenizer where the user names none: that of the .json beside a .bin, gpt2 for a bare .bin, else byte."""
    if not train_file.endswith(".bin"):
        return "byte"
    return read_sidecar(Path(train_file)).get("tokenizer", "gpt2")


def main() -> None:
    parser = Parser(prog="python -m myllm.data", description="Tokenizes a text into train_ids.bin and val_ids.bin.")
    parser.add_argument("--input", required=True, help="UTF-8 text file")
    parser.add_argument("--out_dir", required=True, help="folder to write to")
    parser.add_argument("--tokenizer", default="gpt2", help="byte, a tiktoken encoding, or a .tiktoken file")
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the characters, at the end, for val")
    args = parser.parse_args()
    if not 0 < args.val_fraction < 1:
        raise InputError(f"--val_fraction is {args.val_fraction}; it must lie between 0 and 1")
    text = read_text(Path(args.input))
    encoding = get_tokenizer(args.tokenizer)
    cut = int(len(text) * (1 - args.val_fraction))
    for name, part in (("train_ids.bin", text[:cut]), ("val_ids.bin", text[cut:])):
        ids = encode(part, encoding)
        _write_ids(Path(args.out_dir) / name, ids.astype(id_dtype(encoding.n_vocab)), args.tokenizer)
        print(f"{Path(args.out_dir) / name}: {len(ids)} tokens")


if __name__ == "__main__":
    run_command(main)
