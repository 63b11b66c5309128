"""Opens the data that a user names: token files are compared with the tokenizer, text is tokenized once."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from myllm.datasets.builtin_corpus import corpus_text
from myllm.datasets.data_paths import Source, are_tokens, find_files, is_builtin
from myllm.datasets.documents import Piece, kind_of, read_pieces
from myllm.datasets.encoding import encode_pieces
from myllm.datasets.token_file import TokenFile, names_of, write_token_file
from myllm.datasets.token_layout import LLMC_HEADER_BYTES, LLMC_LLAMA3, llmc_magic, read_sidecar
from myllm.datasets.tokenizer import Tokenizer, identity, is_path
from myllm.system.errors import InputError, warn
from myllm.system.files import cache_dir as usual_cache_dir
from myllm.system.files import check_writable
from myllm.system.progress_bar import Bar

CACHE_VERSION = "1"  # of how text becomes ids; another one leaves the caches of the last alone
HASH_BYTES = 2**22  # read at once
BAR_DELAY = 2  # seconds before a progress bar shows
# Of ids of natural text more than a quarter lie above an eighth of GPT-2's vocabulary; even if only one in a hundred did, a
# thousand ids would all lie below it with a probability of less than 1 in 20,000.
MIN_IDS_TO_JUDGE, FAR_BELOW = 1000, 1 / 8


def progress_bar(total: int, what: str) -> Bar:
    """Returns a progress bar in bytes; quiet for what takes no time."""
    return Bar(total, what, delay=BAR_DELAY)


def text_pieces(files: list[Path], text_column: str | None) -> Iterator[Piece]:
    """Yields the documents of all `files`; positions count bytes from the start of the first."""
    before = 0
    for path in files:
        for piece in read_pieces(path, text_column):
            yield Piece(piece.text, piece.ends, before + piece.position)
        before += path.stat().st_size


def encoded(pieces: Iterable[Piece], tokenizer: Tokenizer, bar: Bar) -> Iterator[np.ndarray]:
    """Yields the ids of all documents, while `bar` follows."""
    for ids, position in encode_pieces(pieces, tokenizer):
        bar.update(position - bar.n)
        yield ids


def _content_key(files: list[Path], text_column: str | None) -> str:
    """Returns the SHA-256 of what the files' text depends on: their bytes, and how they are read."""
    digest = hashlib.sha256()
    with progress_bar(sum(path.stat().st_size for path in files), "checking") as bar:
        for path in files:
            digest.update(f"{kind_of(path)} {path.stat().st_size} {text_column} ".encode())
            with open(path, "rb") as file:
                while block := file.read(HASH_BYTES):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def prepare(
    source: Source,
    split: str,
    tokenizer_name: str,
    tokenizer: Tokenizer,
    cache_dir: Path | None = None,
    token_dtype: str | None = None,
    text_column: str | None = None,
) -> TokenFile:
    """Returns the checked TokenFile of token files, of text, or of `builtin`, where `split` is train or val.

    Text is tokenized once into `cache_dir` (default: files.cache_dir()), under the hash of its content and of the
    tokenizer's. `token_dtype` says what bare .bin files hold, `text_column` which column is the text. Raises InputError for
    bad files, for ids beyond the vocabulary, and for files that belong to another tokenizer.
    """
    if not is_builtin(source):
        files = find_files(source)
        if are_tokens(files):
            return _check_belongs(TokenFile(files, token_dtype), tokenizer_name, tokenizer)
    if token_dtype:
        raise InputError(f"--token_dtype {token_dtype} is for .bin files of token ids; {source} is text")
    pieces: Iterable[Piece]
    if is_builtin(source):
        text, what = corpus_text(split), "the built-in corpus"
        key, pieces, size = hashlib.sha256(text.encode()).hexdigest(), [Piece(text, True, len(text))], len(text)
    else:
        what = names_of(files)
        next(text_pieces(files, text_column), None)  # what can't be read says so before it is hashed
        key, pieces = _content_key(files, text_column), text_pieces(files, text_column)
        size = sum(path.stat().st_size for path in files)
    key = hashlib.sha256(f"{CACHE_VERSION} {identity(tokenizer)} {key}".encode()).hexdigest()[:16]
    cached = (cache_dir or usual_cache_dir()) / f"{key}.bin"
    tokens = _open_cached(cached)
    if tokens is None:
        check_writable(cached, "the cache")
        with progress_bar(size, f"tokenizing {what}") as bar:
            tokens = write_token_file(cached, encoded(pieces, tokenizer, bar), tokenizer_name, tokenizer, what)
    tokens.label = what
    return tokens


def _open_cached(path: Path) -> TokenFile | None:
    """Returns the prepared file `path`, or None where it is not there, or not whole."""
    try:
        return TokenFile(path) if read_sidecar(path) else None
    except InputError:
        return None


def _check_belongs(tokens: TokenFile, tokenizer_name: str, tokenizer: Tokenizer) -> TokenFile:
    """`tokens`, which then knows its tokenizer. Raises InputError where its ids can't be of `tokenizer`."""
    ours, n_vocab = identity(tokenizer), tokenizer.n_vocab
    for path, sidecar, layout in zip(tokens.paths, tokens.sidecars, tokens.layouts, strict=True):
        if sidecar:
            _check_sidecar(path, sidecar, tokenizer_name, ours)
        elif layout.dtype.itemsize < 4 and n_vocab > 2**16:
            remedy = "say --token_dtype uint32 if its ids are wider, or " if layout.kind == "bare" else ""
            raise InputError(
                f"{path}: {layout.dtype.name} ids can't be those of --tokenizer {tokenizer_name}, a vocabulary of"
                f" {n_vocab:,}; {remedy}name the tokenizer it was written with"
            )
    largest = tokens.check_ids(n_vocab)
    if len(tokens) >= MIN_IDS_TO_JUDGE and largest < n_vocab * FAR_BELOW and not any(tokens.sidecars):
        warn(
            f"{tokens.name}: the largest of {len(tokens):,} ids is {largest}, far below the vocabulary of {n_vocab:,} of"
            f" --tokenizer {tokenizer_name}; are these ids of characters, or of another tokenizer?"
        )
    tokens.tokenizer_sha256 = ours
    return tokens


def _check_sidecar(path: Path, sidecar: dict[str, Any], tokenizer_name: str, tokenizer_sha256: str) -> None:
    """Raises InputError where a token file is not the one that `sidecar` describes, or belongs to another tokenizer.

    Only contents count: a tokenizer's file may have moved. A sidecar from before contents were recorded has names only.
    """
    theirs = sidecar["tokenizer"]
    if "tokenizer_sha256" in sidecar:
        if sidecar["tokenizer_sha256"] != tokenizer_sha256:
            same = " of that name, but with other contents" if Path(theirs).name == Path(tokenizer_name).name else ""
            raise InputError(f"{path}: written with --tokenizer {theirs}{same}, not {tokenizer_name}")
    elif Path(theirs).name != Path(tokenizer_name).name:
        raise InputError(f"{path}: written with --tokenizer {theirs}, not {tokenizer_name}")
    if sidecar.get("fingerprint") not in (None, TokenFile(path).fingerprint()):
        raise InputError(
            f"{path}: not the content that the .json beside it describes; prepare it again, or delete the .json"
        )


def default_tokenizer(source: Source) -> str:
    """Returns the tokenizer where the user names none: the one that token files name, gpt2 for bare ones, byte for text.

    Raises InputError where the files are known not to be GPT-2's: beside a nanoGPT meta.pkl, or as llm.c's Llama-3 shards.
    """
    if is_builtin(source):
        return "byte"
    files = find_files(source)
    if not are_tokens(files):
        return "byte"
    path = files[0]
    if sidecar := read_sidecar(path):
        return _moved(sidecar["tokenizer"], path)
    if (path.parent / "meta.pkl").exists():
        raise InputError(
            f"{path}: the meta.pkl beside it says that its ids are of characters, not GPT-2's; name their --tokenizer, "
            "or train on the text itself with --tokenizer byte"
        )
    with open(path, "rb") as file:
        if llmc_magic(file.read(LLMC_HEADER_BYTES)) == LLMC_LLAMA3:
            raise InputError(f"{path}: ids of Llama-3, by its header; name their tokenizer: --tokenizer tokenizer.json")
    return "gpt2"


def _moved(name: str, path: Path) -> str:
    """Returns where the tokenizer `name` of the sidecar of `path` is now: at its old place, or beside the token file."""
    if not is_path(name) or Path(name).exists():
        return name
    for candidate in (path.parent / name, path.parent / Path(name).name):
        if candidate.exists():
            return str(candidate)
    raise InputError(f"{path}: its tokenizer {name} is not there any more; say where it is with --tokenizer")


def split_text(
    files: list[Path], text_column: str | None, val_fraction: float
) -> tuple[Iterator[Piece], Iterator[Piece], int]:
    """Yields the pieces of train, those of val, and the bytes of all: val is the last `val_fraction` of the characters.

    Plain text is cut at the character, anything else where a document ends. Reads all files once to count, so that what
    can't be read says so first. Train is to be read to its end before val. Raises InputError where one would be empty.
    """
    size = sum(path.stat().st_size for path in files)
    characters = last_start = 0  # last_start: characters before the last document
    begins = True
    with progress_bar(size, "counting") as bar:
        for piece in text_pieces(files, text_column):
            if begins and piece.text:
                last_start = characters
            begins = piece.ends
            characters += len(piece.text)
            bar.update(piece.position - bar.n)
    within = all(kind_of(path) == "txt" for path in files)
    cut = max(1, int(characters * (1 - val_fraction)))
    if not within:
        cut = min(cut, last_start)
    if not 0 < cut < characters:
        raise InputError(f"{names_of(files)}: too little text, or too few documents, to be parted into train and val")
    pieces = text_pieces(files, text_column)
    rest: list[Piece] = []

    def train() -> Iterator[Piece]:
        seen = 0
        for piece in pieces:
            room = cut - seen
            seen += len(piece.text)
            if within and seen > cut:
                yield Piece(piece.text[:room], True, piece.position)
                rest.append(Piece(piece.text[room:], piece.ends, piece.position))
                return
            yield piece
            if seen >= cut and piece.ends:
                return

    def val() -> Iterator[Piece]:
        yield from rest
        yield from pieces

    return train(), val(), size
