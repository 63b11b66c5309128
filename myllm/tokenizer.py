"""Tokenizer names -> tiktoken.Encoding."""

import base64
import os
from pathlib import Path

import numpy as np
import tiktoken

from myllm.errors import InputError

# GPT-2's splitting of text into pieces before the byte-pair merges; rank files do not carry a pattern of their own.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"


def get_tokenizer(name: str) -> tiktoken.Encoding:
    """The encoding called `name`.

    `name` is `byte` (ids 0 to 255 are bytes, 256 is the end of text), any encoding that tiktoken knows, or the path of
    a `.tiktoken` rank file. Raises InputError for an unknown name, a bad file, or a download that is not possible.
    """
    if name == "byte":
        return _build("byte", r"(?s:.)", {bytes([i]): i for i in range(256)})
    if name.endswith(".tiktoken"):
        return _build(Path(name).stem, GPT2_PATTERN, _read_ranks(Path(name)))
    if name not in tiktoken.list_encoding_names():
        known = ", ".join(["byte", *tiktoken.list_encoding_names()])
        raise InputError(f"--tokenizer {name!r} is unknown; known are {known}, or the path of a .tiktoken file")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # requests' errors, proxies' errors, a damaged cache: tiktoken passes all of them on
        raise InputError(
            f"--tokenizer {name}: its files are not on this machine and could not be downloaded ({type(error).__name__}); "
            "set TIKTOKEN_CACHE_DIR to a folder that has them, or use --tokenizer byte"
        ) from None


def _build(name: str, pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    end = max(ranks.values()) + 1
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end})


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Reads lines of `base64(token) rank`."""
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file")
    ranks = {}
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
    return ranks


def encode(text: str, encoding: tiktoken.Encoding) -> np.ndarray:
    """Token ids of `text`, special tokens read as plain text; (n,) uint16, or uint32 for more than 65,536 ids."""
    dtype = id_dtype(encoding.n_vocab)
    if encoding.name == "byte":
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(dtype)
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype)


def id_dtype(n_vocab: int) -> np.dtype:
    """The file type of ids below `n_vocab`, little-endian."""
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


def token_bytes(encoding: tiktoken.Encoding) -> np.ndarray:
    """UTF-8 bytes that each token id stands for, (n_vocab,) int64; 0 for special tokens and unused ids."""
    lengths = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token in encoding.token_byte_values():
        lengths[encoding.encode_single_token(token)] = len(token)
    return lengths


def resolve(name: str) -> str:
    """`name`, absolute where it is a path: Ray's workers run in folders of their own."""
    return os.path.abspath(name) if name.endswith(".tiktoken") else name
