"""Decides what the integers of a token file are, and checks what the file claims.

| file | ids |
|-|-|
| `.bin` with our `.json` beside it | as that says; it also names the tokenizer and the content |
| `.bin` of llm.c | a header of 256 int32: magic 20240520 for uint16, 20240801 for uint32; the count is checked |
| `.npy` | a one-dimensional array of integers |
| any other `.bin` | uint16 as nanoGPT writes them, or what --token_dtype says; little-endian |
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from myllm.system.errors import InputError
from myllm.system.files import check_regular

DTYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
"""what --token_dtype may say of a bare .bin"""
LLMC_HEADER_BYTES = 1024
LLMC_GPT2, LLMC_LLAMA3 = 20240520, 20240801
LLMC = {LLMC_GPT2: ("<u2", 1), LLMC_LLAMA3: ("<u4", 7)}
"""magic number -> type and version, as in llm.c's dev/data/data_common.py: GPT-2's ids and Llama-3's"""
ARCHIVES = {b"\x1f\x8b\x08": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""first bytes of compressed files; of ids they would be a rare chance, and --token_dtype says that they are ids"""
PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"
MIN_TEXT_BYTES = 64  # this many printable bytes in a row do not occur by chance in ids
LOOKED_AT = 2**22  # ids at the start of a bare file that are checked for their width


@dataclass(frozen=True)
class Layout:
    """Position and type of the ids in a file."""

    dtype: np.dtype
    offset: int
    """bytes before the first id"""
    count: int
    """ids"""
    kind: str
    """bare, llm.c, npy or sidecar: who says so"""


def read_sidecar(path: Path) -> dict[str, Any]:
    """Returns the content of our .json beside the token file `path`, or {} where there is none, or only a foreign one."""
    try:
        values = json.loads(path.with_suffix(".json").read_text("utf-8"))
        ours = values["dtype"] in ("<u2", "<u4") and isinstance(values["tokenizer"], str)
        ours = ours and isinstance(values.get("fingerprint", {}), dict)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return values if ours else {}


def layout_of(path: Path, token_dtype: str | None = None) -> Layout:
    """Reads and checks what the integers of `path` are; `token_dtype`, a key of DTYPES, speaks for a bare file.

    Raises InputError where the file is missing, empty, of another kind, or does not hold what it claims.
    """
    check_regular(path)
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: the file is empty")
    with open(path, "rb") as file:
        head = file.read(LLMC_HEADER_BYTES)
        if head.startswith(b"\x93NUMPY"):
            layout = _npy_layout(path, file)
        elif sidecar := read_sidecar(path):
            layout = _flat(path, size, np.dtype(sidecar["dtype"]), "sidecar")
            described = sidecar.get("fingerprint", {}).get("bytes", size)
            if described != size:
                raise InputError(
                    f"{path}: {size} bytes, but the .json beside it describes {described}: "
                    "the file was replaced or cut; prepare it again, or delete the .json"
                )
        elif path.suffix == ".npy":
            raise InputError(f"{path}: not a NumPy array file")
        elif llmc_magic(head) is not None:
            layout = _llmc_layout(path, size, head)
        else:
            return _bare_layout(path, size, head, token_dtype)
    if token_dtype and np.dtype(DTYPES[token_dtype]) != layout.dtype:
        raise InputError(f"{path}: says itself that its ids are {layout.dtype.name}; --token_dtype is {token_dtype}")
    return layout


def _flat(path: Path, size: int, dtype: np.dtype, kind: str) -> Layout:
    if size % dtype.itemsize:
        raise InputError(f"{path}: {size} bytes are no whole number of {dtype.itemsize}-byte token ids")
    return Layout(dtype, 0, size // dtype.itemsize, kind)


def _npy_layout(path: Path, file: Any) -> Layout:
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
    except Exception:  # NumPy parses the header as Python; what that raises on a damaged one is not documented
        raise InputError(f"{path}: the header of this NumPy array can't be read") from None
    if dtype.kind not in "iu" or len(shape) != 1 or not shape[0]:
        raise InputError(f"{path}: an array of {dtype} and shape {shape}; it must be integers in one dimension")
    found = path.stat().st_size - file.tell()
    if found != shape[0] * dtype.itemsize:
        raise InputError(f"{path}: its header promises {shape[0]} ids of {dtype.itemsize} bytes, {found} bytes follow")
    return Layout(dtype, file.tell(), shape[0], "npy")


def llmc_magic(head: bytes) -> int | None:
    """Returns the magic number of llm.c's format that `head`, a file's first bytes, begins with, or None."""
    magic = int(np.frombuffer(head, "<i4", 1)[0]) if len(head) >= 12 else 0
    return magic if magic in LLMC else None


def _llmc_layout(path: Path, size: int, head: bytes) -> Layout:
    magic, version, count = (int(value) for value in np.frombuffer(head, "<i4", 3))
    dtype, expected = LLMC[magic]
    if version != expected:
        raise InputError(f"{path}: version {version} of llm.c's format {magic}; only version {expected} is known")
    found, width = size - LLMC_HEADER_BYTES, np.dtype(dtype).itemsize
    if count < 1 or found != count * width:
        raise InputError(f"{path}: its llm.c header promises {count} ids of {width} bytes, {found} bytes follow")
    return Layout(np.dtype(dtype), LLMC_HEADER_BYTES, count, "llm.c")


def _bare_layout(path: Path, size: int, head: bytes, token_dtype: str | None) -> Layout:
    layout = _flat(path, size, np.dtype(DTYPES[token_dtype or "uint16"]), "bare")
    if token_dtype:
        return layout
    for magic, name in ARCHIVES.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {name} data, not token ids; unpack it, or say --token_dtype uint16 if it is")
    if len(head) >= MIN_TEXT_BYTES and not head.translate(None, PRINTABLE):
        raise InputError(f"{path}: text, not token ids; name it .txt, or say --token_dtype uint16 if it is ids")
    wider = wider_than_uint16(np.fromfile(path, "<u2", LOOKED_AT), size)
    if wider:
        raise InputError(
            f"{path}: read as uint16, every second value is next to nothing: its ids are wider; say --token_dtype {wider}"
        )
    return layout


def wider_than_uint16(ids: np.ndarray, size: int) -> str | None:
    """Returns the wider type that ids read as uint16 really have, or None. `size` is that of the file, in bytes.

    The upper halves of wider ids are zero, or below 16 for a vocabulary of up to a million. In ids that are uint16 every
    second one would have to be among the first 16 of the vocabulary: that is no text, unless all of them are.
    """
    lower, upper = ids[0::2], ids[1::2]
    if len(upper) < 8 or not lower.any() or size % 4:
        return None
    if not (upper.max() == 0 or (upper.max() < 16 and lower.max() >= 4096)):
        return None
    return "int64" if size % 8 == 0 and not ids[2::4].any() and not ids[3::4].any() else "uint32"
