"""Opens files that should be text: decompresses them where necessary, and refuses other formats by name."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError

BLOCK_BYTES = 2**20  # read from the disk at once
COMPRESSED = {rb"\x1f\x8b\x08": "gzip", rb"BZh[1-9]1AY&SY": "bz2", rb"\x28\xb5\x2f\xfd": "zstd"}
"""first bytes, a pattern -> what pyarrow calls the compression"""
AS_TEXT = "extract its text into a .txt first"
AS_IDS = "write its ids as .npy, or its text as .jsonl"
BY_NAME = {
    (".tar", ".tgz"): "a tar archive: unpack it first",
    (".docx", ".doc", ".odt", ".pptx", ".ppt", ".odp"): f"an office document: {AS_TEXT}",
    (".xlsx", ".xls", ".ods"): "a spreadsheet: save it as .csv",
    (".epub", ".mobi"): f"a book: {AS_TEXT}",
    (".npz",): "several NumPy arrays in one archive: write the one with the ids as .npy",
    (".pt", ".pth", ".ckpt", ".safetensors", ".gguf"): f"weights, or tensors: {AS_IDS}",
    (".pkl", ".pickle"): f"a pickle, which could run anything and is not opened: {AS_IDS}",
    (".h5", ".hdf5"): f"an HDF5 file: {AS_IDS}",
    (".tfrecord", ".tfrecords"): f"TensorFlow records: {AS_IDS}",
}
"""endings of what is no text -> the reason; the bytes alone would say less, a Word document is a zip archive"""
BY_CONTENT = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a\x07": "a rar archive: unpack it first",
    b"\xfd7zXZ\x00": "xz-compressed, which pyarrow does not read: unpack it, or use .gz, .bz2 or .zst",
    b"\x04\x22\x4d\x18": "lz4-compressed: unpack it, or use .gz, .bz2 or .zst",
    b"\xff\xfe\x00\x00": "UTF-32 text: convert it, as with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16 text: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"%PDF-": f"a PDF: {AS_TEXT}",
    b"{\\rtf": f"a rich text document: {AS_TEXT}",
    b"\xd0\xcf\x11\xe0": f"an office document: {AS_TEXT}",
    b"SQLite format 3\x00": "an SQLite database: write its text as .jsonl",
    b"\x89HDF\r\n": f"an HDF5 file: {AS_IDS}",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"GGUF": f"weights, or tensors: {AS_IDS}",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream: name it .arrow",
    b"FEA1": "a Feather file of version 1: write it as .parquet",
    b"\x93NUMPY": "a NumPy array: name it .npy",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"a pickle, which is not opened: {AS_IDS}"),
}
"""first bytes of what is no text -> the reason"""


def refuse_by_name(path: Path) -> None:
    """Raises InputError where the name of `path` says that it is no text."""
    for endings, reason in BY_NAME.items():
        if path.suffix.lower() in endings:
            raise InputError(f"{path}: {reason}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """Opens a file for reading its bytes, decompressed where necessary; also gives the file on disk for its tell().

    Raises InputError for what is no UTF-8 text by its first bytes.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    for magic, reason in BY_CONTENT.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {reason}")
    compression = next((name for magic, name in COMPRESSED.items() if re.match(magic, head)), None)
    with contextlib.ExitStack() as stack:
        reader: Any  # typeshed's BufferedReader is generic in what it reads
        if compression is None:
            raw = stack.enter_context(open(path, "rb", buffering=0))
            reader = io.BufferedReader(raw, BLOCK_BYTES)
        else:
            import pyarrow

            raw = stack.enter_context(pyarrow.OSFile(os.fsencode(path)))
            reader = io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), BLOCK_BYTES)
        start = reader.peek(2**16)[: 2**16]
        if compression and any(re.match(magic, start) for magic in COMPRESSED):
            raise InputError(f"{path}: compressed twice: unpack it once")
        if start[257:262] == b"ustar":
            raise InputError(f"{path}: a tar archive: unpack it first")
        if start.count(0) * 10 > len(start):
            raise InputError(f"{path}: not text: more than a tenth of its bytes are zero (UTF-16 without its mark?)")
        yield reader, raw
