"""Finds the files that a user names: one, several, a glob, or a folder."""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from myllm.datasets.documents import kind_of
from myllm.system.errors import InputError
from myllm.system.files import check_regular

BUILTIN = "builtin"
"""name of the corpus that every Python brings along: the source files of its standard library"""
BUILTIN_BEFORE = "embedded"
"""its name before 0.1.0"""
Source = str | Sequence[str]
"""a path, a glob, a folder, BUILTIN, or several of the first three"""
TOKENS = ("bin", "npy")
IN_FOLDERS = re.compile(
    r".+\.(bin|npy|parquet|arrow|(txt|jsonl|ndjson)(\.(gz|bz2|zst))?|json\.(gz|bz2|zst))$", re.IGNORECASE
)
"""what is taken from a folder: a .json or .csv there more often tells of the data than is it"""
DATASET, SPLIT_DATASET = "state.json", "dataset_dict.json"
"""files by which Hugging Face's datasets know a folder that they saved: of one dataset, of one a split"""
SPLITS = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE),
    "val": re.compile(r"(?<![a-z])(val|valid|validation|dev|eval|test)(?![a-z])", re.IGNORECASE),
}
"""words in file names that say what a file is for"""


def is_builtin(source: Source) -> bool:
    """Returns True if `source` is the built-in corpus."""
    names = [source] if isinstance(source, str) else list(source)
    return len(names) == 1 and names[0] in (BUILTIN, BUILTIN_BEFORE)


def absolute(source: Source) -> Source:
    """`source` as it can be named from any folder."""
    if is_builtin(source):
        return BUILTIN
    return os.path.abspath(source) if isinstance(source, str) else [os.path.abspath(one) for one in source]


def find_files(source: Source) -> list[Path]:
    """Returns the files behind `source`: those of a glob or folder in the order of their names, numbers by their value.

    Raises InputError where there are none, where they are both token files and text, where one is named twice, or where a
    folder holds files for both training and validation.
    """
    files: list[Path] = []
    for one in [source] if isinstance(source, str | Path) else source:
        try:
            files += _expand(str(one))
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise InputError(f"{one}: {error.strerror}") from None
    if not files:
        raise InputError("no data file was named")
    seen: set[str] = set()
    for path in files:
        check_regular(path)
        if (real := os.path.realpath(path)) in seen:
            raise InputError(f"{path}: named twice; its text would count double")
        seen.add(real)
    if len({kind_of(path) in TOKENS for path in files}) == 2:
        token_file = next(path for path in files if kind_of(path) in TOKENS)
        text_file = next(path for path in files if kind_of(path) not in TOKENS)
        raise InputError(f"{token_file} holds token ids and {text_file} text: name files of one kind")
    return files


def _expand(name: str) -> list[Path]:
    """Returns the files of one name, glob or folder."""
    if not name:
        raise InputError("the name of a data file is empty")
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or not glob.has_magic(name):
        return [path]
    found = sorted((Path(name) for name in glob.glob(name, recursive=True)), key=_by_number)
    others = {".json", ".pkl"} - {path.suffix}  # which lie beside token files
    found = [path for path in found if path.is_file() and path.suffix not in others]
    if not found:
        raise InputError(f"{name}: no file has such a name")
    return found


def _in_folder(folder: Path) -> list[Path]:
    if (folder / SPLIT_DATASET).is_file():
        splits = ", ".join(sorted(str(part.parent) for part in folder.glob(f"*/{DATASET}")))
        raise InputError(f"{folder}: a saved dataset of several splits; name one of them: {splits}")
    if (folder / DATASET).is_file():
        return _saved_dataset(folder)
    files = sorted((p for p in folder.iterdir() if p.is_file() and IN_FOLDERS.fullmatch(p.name)), key=_by_number)
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: a folder without .bin, .npy, .txt, .jsonl, .parquet or .arrow files")
    if all(any(split.search(path.name) for path in files) for split in SPLITS.values()):
        raise InputError(f"{folder}: a folder with files of both train and val; say which, as with '{folder}/*train*'")
    return files


def _saved_dataset(folder: Path) -> list[Path]:
    """Returns the files of a dataset that was saved; others beside them are caches of its transformations."""
    try:
        return [folder / part["filename"] for part in json.loads((folder / DATASET).read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / DATASET}: names no data files, so this is no dataset that was saved") from None


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts a2 before a10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]


def are_tokens(files: list[Path]) -> bool:
    """Returns True if `files`, from find_files, hold token ids."""
    return kind_of(files[0]) in TOKENS
