"""Text as people have it -> its documents, piece by piece: plain text, and what has it in a column."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from myllm.datasets.compression import opened, refuse_by_name
from myllm.datasets.tabular_text import read_arrow, read_csv, read_jsonl, read_parquet
from myllm.system.errors import InputError
from myllm.system.files import check_regular

PIECE_BYTES = 2**20  # of plain text read at once
TOKEN_KINDS = {".bin": "bin", ".npy": "npy"}
TABLE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv", ".tsv": "csv"}
KINDS = TOKEN_KINDS | TABLE_KINDS | {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
"""endings of names -> what such a file is; all others are plain text"""
COLUMNS = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow}


@dataclass(frozen=True)
class Piece:
    """Some text of a document, in its order."""

    text: str
    ends: bool
    """whether the document ends with it"""
    position: int
    """bytes of the file on disk that were read so far; compressed ones where it is"""


def kind_of(path: Path) -> str:
    """bin, npy, jsonl, csv, parquet, arrow or txt, by the name; a name that says nothing is text."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes.pop()
    return KINDS.get(suffixes[-1] if suffixes else "", "txt")


def read_pieces(path: Path, text_column: str | None = None) -> Iterator[Piece]:
    """Yields the documents of a text file, in pieces. Raises InputError where it can't be read as what it is."""
    check_regular(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    refuse_by_name(path)
    try:
        if read := COLUMNS.get(kind_of(path)):
            for text, position in read(path, text_column):
                yield Piece(text, True, position)
        else:
            yield from _read_text(path)
    except OSError as error:  # pyarrow's too: a stream that ends early, a damaged block
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None


def _read_text(path: Path) -> Iterator[Piece]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    with opened(path) as (reader, raw):
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
