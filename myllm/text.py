"""Text as people have it -> its documents, piece by piece: plain, JSON lines, Parquet, the first two also compressed."""

import codecs
import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.errors import InputError
from myllm.files import check_regular

PIECE_BYTES = 2**20  # of plain text read at once
PARQUET_ROWS = 64  # read at once: rows of a megabyte each are still little
TEXT_COLUMNS = ("text", "content", "raw_content", "body", "document", "story", "code")
"""usual names of the column that is the text; where a file has one of them, its other columns are not looked at"""
COMPRESSED = {rb"\x1f\x8b\x08": "gzip", rb"BZh[1-9]1AY&SY": "bz2", rb"\x28\xb5\x2f\xfd": "zstd"}
"""first bytes, a pattern -> what pyarrow calls the compression"""
REFUSED = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a\x07": "a rar archive: unpack it first",
    b"\xfd7zXZ\x00": "xz-compressed, which pyarrow does not read: unpack it, or use .gz, .bz2 or .zst",
    b"\xff\xfe\x00\x00": "UTF-32 text: convert it, as with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16 text: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"%PDF-": "a PDF: extract its text first",
    b"PAR1\x15": "a Parquet file: name it .parquet",
    b"ARROW1\x00\x00": "an Arrow file: write it as .parquet",
    b"\x93NUMPY": "a NumPy array: name it .npy",
}
"""first bytes of what is no text -> the reason"""


@dataclass(frozen=True)
class Piece:
    """Some text of a document, in its order."""

    text: str
    ends: bool
    """whether the document ends with it"""
    position: int
    """bytes of the file on disk that were read so far; compressed ones where it is"""


def kind_of(path: Path) -> str:
    """bin, npy, jsonl, parquet or txt, by the name; a name that says nothing is text."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return {".bin": "bin", ".npy": "npy", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(last, "txt")


def read_pieces(path: Path, text_column: str | None = None) -> Iterator[Piece]:
    """The documents of a text file, in pieces. Raises InputError where it can't be read as what it is."""
    kind = kind_of(path)
    check_regular(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if path.suffix.lower() == ".json":
        raise InputError(f"{path}: a JSON document; write one object a line into a .jsonl")
    if path.suffix.lower() in (".tar", ".tgz"):
        raise InputError(f"{path}: a tar archive: unpack it first")
    reader = {"jsonl": _read_jsonl, "parquet": _read_parquet}.get(kind, _read_text)
    try:
        yield from reader(path, text_column)
    except OSError as error:  # pyarrow's too: a stream that ends early, a damaged block
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """The bytes of a file, decompressed where they need it, and the file on disk, whose tell() is the position there."""
    with open(path, "rb") as file:
        head = file.read(16)
    for magic, reason in REFUSED.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {reason}")
    compression = next((name for magic, name in COMPRESSED.items() if re.match(magic, head)), None)
    with contextlib.ExitStack() as stack:
        if compression is None:
            raw = stack.enter_context(open(path, "rb", buffering=0))
            reader = io.BufferedReader(raw, PIECE_BYTES)
        else:
            import pyarrow

            raw = stack.enter_context(pyarrow.OSFile(str(path)))
            reader = io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), PIECE_BYTES)
        start = reader.peek(2**16)[: 2**16]
        if compression and any(re.match(magic, start) for magic in COMPRESSED):
            raise InputError(f"{path}: compressed twice: unpack it once")
        if start[257:262] == b"ustar":
            raise InputError(f"{path}: a tar archive: unpack it first")
        if start.count(0) * 10 > len(start):
            raise InputError(f"{path}: not text: more than a tenth of its bytes are zero (UTF-16 without its mark?)")
        yield reader, raw


def _read_text(path: Path, text_column: str | None) -> Iterator[Piece]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    with _open(path) as (reader, raw):
        done = 0
        content = reader.read(PIECE_BYTES)
        while content:
            following = reader.read(PIECE_BYTES)
            try:
                text = decode(content, final=not following)
            except UnicodeDecodeError as error:
                at = done + len(content) - len(error.object) + error.start
                raise InputError(f"{path}: not UTF-8 text (byte {at})") from None
            yield Piece(text, not following, raw.tell())
            done += len(content)
            content = following


def pick_column(path: Path, columns: list[str], text_column: str | None) -> str:
    """Which of a file's text `columns` to read. Raises InputError where that is not clear."""
    listed = ", ".join(columns) or "none"
    if text_column is not None:
        if text_column not in columns:
            raise InputError(f"{path}: no text column {text_column!r}; there are {listed}")
        return text_column
    likely = [name for name in columns if name.lower() in TEXT_COLUMNS] or columns
    if len(likely) != 1:
        raise InputError(f"{path}: which column is the text? Say --text_column; the text columns are {listed}")
    return likely[0]


def _read_jsonl(path: Path, text_column: str | None) -> Iterator[Piece]:
    column = None
    with _open(path) as (reader, raw):
        for number, line in enumerate(reader, 1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except (ValueError, RecursionError) as error:
                what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not JSON"
                raise InputError(f"{path}: line {number} is {what}") from None
            if row is None:
                continue
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is no JSON object with a text column")
            if column is None:
                usual = {
                    key for key in row if row[key] is None and key.lower() in TEXT_COLUMNS
                }  # an empty document comes first
                texts = [key for key, value in row.items() if isinstance(value, str) or key == text_column or key in usual]
                column = pick_column(path, texts, text_column)
            text = row.get(column, 0)
            if not isinstance(text, str | None):
                raise InputError(f"{path}: line {number} has no text in the column {column!r}")
            yield Piece(text or "", True, raw.tell())


def _read_parquet(path: Path, text_column: str | None) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    with file:
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        column = pick_column(path, texts, text_column)
        size, rows, total = path.stat().st_size, 0, file.metadata.num_rows
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=[column], use_threads=False):
                for text in batch.column(0).to_pylist():
                    rows += 1
                    yield Piece(text or "", True, size * rows // total)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path}: damaged at row {rows} ({str(error).splitlines()[0]})") from None


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, dictionary-encoded or not."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
