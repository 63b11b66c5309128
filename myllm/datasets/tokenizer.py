"""Tokenizer names -> tokenizers, and what makes one the same as another: its content."""

import base64
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from myllm.system.errors import InputError

# GPT-2's splitting of text into pieces before the byte-pair merges; rank files do not carry a pattern of their own.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[EOS]")
"""what other tokenizers call the end of a text, most usual first"""


class HuggingFaceTokenizer:
    """A tokenizer.json behind the part of tiktoken.Encoding's interface that this project uses.

    Special tokens in a text are read as plain text, except where `allowed_special` has them.
    """

    def __init__(self, name: str, tokenizer: Any):
        self.name, self._tokenizer = name, tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.special: dict[str, int] = {
            token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.n_vocab = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_tokens_set(self) -> set[str]:
        return set(self.special)

    def encode_single_token(self, token: str) -> int:
        """Returns the id of a special token. Raises KeyError where there is none of that name."""
        return self.special[token]

    def encode_ordinary(self, text: str) -> list[int]:
        return self._encode(text, plain=True)

    def encode(self, text: str, allowed_special: set[str], disallowed_special: tuple[str, ...] = ()) -> list[int]:
        return self._encode(text, plain=not allowed_special & self.special_tokens_set)

    def _encode(self, text: str, plain: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = plain
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def content(self) -> dict[str, Any]:
        """Returns all that decides ids: the JSON without truncation and padding."""
        values = json.loads(self._tokenizer.to_str())
        return {key: value for key, value in values.items() if key not in ("truncation", "padding", "post_processor")}

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, (n_vocab,) int64."""
        parts = self.content()
        kinds = json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
        added = self._tokenizer.get_added_tokens_decoder()
        lengths = np.zeros(self.n_vocab, np.int64)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if number in added:
                lengths[number] = 0 if added[number].special else len(token.encode())
            elif '"ByteLevel"' in kinds:  # each character stands for one byte
                lengths[number] = len(token)
            elif '"ByteFallback"' in kinds and len(token) == 6 and token.startswith("<0x"):
                lengths[number] = 1
            elif '"WordPiece"' in kinds:  # a word's first piece stands for the space before it too
                lengths[number] = len(token.encode()) + (-2 if token.startswith("##") else 1)
            else:
                lengths[number] = len(token.replace("\u2581", " ").encode())
        return lengths


Tokenizer = tiktoken.Encoding | HuggingFaceTokenizer


def get_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer called `name`.

    `name` is `byte` (ids 0 to 255 are bytes, 256 is the end of text), any encoding that tiktoken knows, the path of
    a `.tiktoken` rank file, of a Hugging Face tokenizer.json, or of a folder that has one. Raises InputError for an unknown
    name, a bad file, a missing package, or a download that is not possible.
    """
    if name == "byte":
        return byte_tokenizer()
    if name.endswith(".tiktoken"):
        return _build(Path(name).stem, GPT2_PATTERN, _read_ranks(Path(name)))
    if is_path(name):
        return _read_hugging_face(Path(name))
    if name not in tiktoken.list_encoding_names():
        known = ", ".join(["byte", *tiktoken.list_encoding_names()])
        raise InputError(
            f"--tokenizer {name!r} is unknown; known are {known}, or the path of a .tiktoken or tokenizer.json"
        )
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # requests' errors, proxies' errors, a damaged cache: tiktoken passes all of them on
        raise InputError(
            f"--tokenizer {name}: its files are not on this machine and could not be downloaded ({type(error).__name__}); "
            "set TIKTOKEN_CACHE_DIR to a folder that has them, or use --tokenizer byte"
        ) from None


@functools.cache
def byte_tokenizer() -> tiktoken.Encoding:
    """Returns the built-in tokenizer whose ids are bytes."""
    return _build("byte", r"(?s:.)", {bytes([i]): i for i in range(256)})


def _build(name: str, pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    end = max(ranks.values()) + 1
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end})


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Reads lines of `base64(token) rank`."""
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise InputError(f"--tokenizer {path}: line {number} is not 'base64 rank'") from None
    if any(bytes([i]) not in ranks for i in range(256)):
        raise InputError(f"--tokenizer {path}: some of the 256 single bytes have no rank")
    if len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0:
        raise InputError(f"--tokenizer {path}: ranks must be different whole numbers from 0 on")
    return ranks


def _read_hugging_face(path: Path) -> HuggingFaceTokenizer:
    """Reads a tokenizer.json with the package `tokenizers`."""
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file")
    try:
        import tokenizers
    except ImportError:
        raise InputError(f"--tokenizer {path}: needs the package tokenizers; pip install tokenizers") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise InputError(f"--tokenizer {path}: not a Hugging Face tokenizer.json ({error})") from None
    if not tokenizer.get_vocab(with_added_tokens=True):
        raise InputError(f"--tokenizer {path}: its vocabulary is empty")
    return HuggingFaceTokenizer(path.parent.name or path.stem, tokenizer)


@functools.lru_cache(maxsize=8)
def identity(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of all that decides ids: ranks, pattern and special tokens. Two names may share one identity."""
    digest = hashlib.sha256()
    if isinstance(tokenizer, HuggingFaceTokenizer):
        digest.update(json.dumps(tokenizer.content(), sort_keys=True).encode())
    else:  # tiktoken has no public way to ask; its own pickling reads the same three
        digest.update(json.dumps([tokenizer._pat_str, sorted(tokenizer._special_tokens.items())]).encode())
        for token, rank in sorted(tokenizer._mergeable_ranks.items(), key=lambda item: item[1]):
            digest.update(b"%d %d " % (rank, len(token)) + token)
    return digest.hexdigest()


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """Returns the id that ends a document, or None where the tokenizer has none."""
    for name in ENDS_OF_TEXT:
        if name in tokenizer.special_tokens_set:
            return tokenizer.encode_single_token(name)
    return None


def encode(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Token ids of `text`, special tokens read as plain text; (n,) uint16, or uint32 for more than 65,536 ids.

    Halves of surrogate pairs, which are no text, become the replacement character.
    """
    dtype = id_dtype(tokenizer.n_vocab)
    try:
        if tokenizer is byte_tokenizer():
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(dtype)
        if isinstance(tokenizer, HuggingFaceTokenizer):
            return np.array(tokenizer.encode_ordinary(text), dtype)
        return tokenizer.encode_to_numpy(text, disallowed_special=()).astype(dtype)
    except UnicodeEncodeError:
        return encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), tokenizer)


def id_dtype(n_vocab: int) -> np.dtype:
    """Returns the file type of ids below `n_vocab`, little-endian."""
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each token id stands for, (n_vocab,) int64; 0 for special tokens and unused ids."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.byte_lengths()
    lengths = np.zeros(tokenizer.n_vocab, dtype=np.int64)
    for token in tokenizer.token_byte_values():
        lengths[tokenizer.encode_single_token(token)] = len(token)
    return lengths


def is_path(name: str) -> bool:
    """Returns True if the tokenizer `name` is a file or folder, not a name that tiktoken knows."""
    if name.endswith((".tiktoken", ".json")):
        return True
    return os.path.isdir(name) and name not in ("byte", *tiktoken.list_encoding_names())


def resolve(name: str) -> str:
    """`name`, absolute where it is a path: Ray's workers run in folders of their own."""
    return os.path.abspath(name) if is_path(name) else name
