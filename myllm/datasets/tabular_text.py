"""Files of which one column is the text: JSON lines, CSV, Parquet, Arrow. Each row of it is a document."""

import csv
import io
import itertools
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from myllm.datasets.compression import opened
from myllm.system.errors import InputError, one_line

TABLE_ROWS = 64  # of Parquet and Arrow, read at once: rows of a megabyte each are still little
CELL_CHARS = 2**26  # of a .csv: Python's reader takes four bytes a character, twice while it grows
DELIMITERS = ",;\t|"
END = object()
TEXT_COLUMNS = ("text", "content", "raw_content", "body", "document", "story", "code")
"""usual names of the column that is the text; where a file has one of them, its other columns are not looked at"""

Document = tuple[str, int]
"""a text, and the bytes of the file on disk that were read by then"""


def pick_column(path: Path, columns: list[str], text_column: str | None) -> str:
    """Returns which of a file's text `columns` to read. Raises InputError where that is not clear."""
    listed = ", ".join(columns) or "none"
    if text_column is not None:
        if text_column not in columns:
            raise InputError(f"{path}: no text column {text_column!r}; there are {listed}")
        return text_column
    likely = [name for name in columns if name.lower() in TEXT_COLUMNS] or columns
    if len(likely) != 1:
        raise InputError(f"{path}: which column is the text? Say --text_column; the text columns are {listed}")
    return likely[0]


def read_jsonl(path: Path, text_column: str | None) -> Iterator[Document]:
    """Reads one JSON object a line."""
    column = None
    with opened(path) as (reader, raw):
        for number in itertools.count(1):
            row = _next_value(reader)
            if row is END:
                return
            if row is None:
                continue
            if isinstance(row, Exception) or not isinstance(row, dict):
                what = "not UTF-8 text" if isinstance(row, UnicodeDecodeError) else "not JSON"
                what = what if isinstance(row, Exception) else "no JSON object with a text column"
                how = ""
                if number == 1 and ".json" in (suffix.lower() for suffix in path.suffixes[-2:]):
                    how = ": one object a line is read; jq -c '.[]' makes such lines of an array"
                raise InputError(f"{path}: line {number} is {what}{how}")
            if column is None:
                usual = {
                    key for key in row if row[key] is None and key.lower() in TEXT_COLUMNS
                }  # an empty document comes first
                texts = [key for key, value in row.items() if isinstance(value, str) or key == text_column or key in usual]
                column = pick_column(path, texts, text_column)
            text = row.get(column, 0)
            del row  # the text alone lives on while it is encoded
            if not isinstance(text, str | None):
                raise InputError(f"{path}: line {number} has no text in the column {column!r}")
            yield text or "", raw.tell()


def _next_value(reader: io.BufferedReader) -> Any:
    """Returns the value of the next line, None for an empty line, an exception for a damaged one, END after the last.

    Only the text of a long line is held while it is parsed: one emoji makes each character take four bytes.
    """
    line = reader.readline()
    if not line:
        return END
    try:
        text = line.decode("utf-8-sig")
        del line
        return None if not text or text.isspace() else json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def read_csv(path: Path, text_column: str | None) -> Iterator[Document]:
    """Reads a table whose first line names the columns and shows the delimiter."""
    usual_limit, number = csv.field_size_limit(CELL_CHARS), 1
    with opened(path) as (reader, raw):
        try:
            lines = io.TextIOWrapper(reader, "utf-8-sig", newline="")
            first = lines.readline()
            delimiter = max(DELIMITERS, key=first.count)
            rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
            names, at = next(rows), None
            if any(_is_number(name) for name in names) or len(set(names)) < len(names):
                raise InputError(f"{path}: its first line must name the columns, each once")
            for row in rows:
                number = rows.line_num
                if not row:  # an empty line
                    continue
                if len(row) != len(names):
                    raise InputError(f"{path}: line {number} ends a row of {len(row)} cells, not {len(names)}")
                if at is None:
                    texts = [name for name, cell in zip(names, row, strict=True) if not _is_number(cell)]
                    texts += [text_column] if text_column in set(names) - set(texts) else []
                    at = names.index(pick_column(path, texts, text_column))
                yield row[at], raw.tell()
        except csv.Error as error:
            too_long = f"a cell has more than {CELL_CHARS:,} characters; is a quote not closed?"
            reason = too_long if "field limit" in str(error) else str(error)
            raise InputError(f"{path}: the row after line {number} is no CSV: {reason}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: not UTF-8 text, after line {number}") from None
        finally:
            csv.field_size_limit(usual_limit)  # it is the whole process's


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_parquet(path: Path, text_column: str | None) -> Iterator[Document]:
    """Reads a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path)), pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file ({one_line(error)[:200]})") from None
    with file:
        column = pick_column(path, _texts(file.schema_arrow), text_column)
        size, total = path.stat().st_size, file.metadata.num_rows
        batches = file.iter_batches(TABLE_ROWS, columns=[column], use_threads=False)
        for text, rows in _documents(path, (batch.column(0) for batch in batches)):
            yield text, size * rows // total


def read_arrow(path: Path, text_column: str | None) -> Iterator[Document]:
    """Reads an Arrow file or stream: Feather, and what Hugging Face's datasets save.

    Their batches are large, so the file is mapped, and its pages are given back after every few rows.
    """
    import pyarrow
    import pyarrow.ipc

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = pyarrow.BufferReader(pyarrow.py_buffer(mapped))
    try:
        if mapped[:6] == b"ARROW1":
            found = pyarrow.ipc.open_file(source)
            schema, batches = found.schema, (found.get_batch(i) for i in range(found.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(source)
            schema = batches.schema
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an Arrow file ({one_line(error)[:200]})") from None
    column = pick_column(path, _texts(schema), text_column)
    at = schema.get_field_index(column)
    parts = (
        batch.slice(begin, TABLE_ROWS).column(at) for batch in batches for begin in range(0, batch.num_rows, TABLE_ROWS)
    )
    for text, rows in _documents(path, parts):
        if rows % TABLE_ROWS == 0 and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
        yield text, source.tell()


def _documents(path: Path, parts: Iterable[Any]) -> Iterator[tuple[str, int]]:
    """Yields the texts in columns of a table, and how many rows were read by then."""
    import pyarrow

    rows = 0
    try:
        for part in parts:
            for text in part.to_pylist():
                rows += 1
                yield text or "", rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged at row {rows} ({one_line(error)[:200]})") from None


def _texts(schema: Any) -> list[str]:
    """Returns the columns of an Arrow schema that are text, dictionary-encoded or not."""
    import pyarrow.types as types

    kinds = {field.name: field.type.value_type if types.is_dictionary(field.type) else field.type for field in schema}
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    return [name for name, kind in kinds.items() if any(check(kind) for check in is_text)]
