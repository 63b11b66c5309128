"""Files of token ids, read as one memory-mapped stream; and written, with a sidecar that says what they are."""

import hashlib
import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myllm.datasets.token_layout import layout_of, read_sidecar
from myllm.datasets.tokenizer import Tokenizer, id_dtype, identity, resolve
from myllm.system.errors import DataChanged, InputError
from myllm.system.files import whole_file

SMALL_BYTES = 2**26  # data up to this size may stay in this process's memory: 64 MiB
PIECE_WINDOWS = 16  # windows read before their pages are given back: Linux may map 2 MiB around each byte touched
PIECE_IDS = 2**22  # ids looked at together when a whole file is read
OPEN_SHARDS = 64  # shards mapped at once: each holds a file descriptor


Spec = str | Path | Sequence[str | Path] | dict[str, Any]
"""a file, several, or what TokenFile.spec gave"""


def names_of(paths: Sequence[Path]) -> str:
    """Files, for messages."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def are_there(source: Spec) -> bool:
    """Returns True if all files of `source`, as TokenFile takes it, are there."""
    paths = source["paths"] if isinstance(source, dict) else [source] if isinstance(source, str | Path) else source
    return all(Path(path).is_file() for path in paths)


class TokenFile:
    """Files of token ids, read as one memory-mapped stream.

    `source` is a path, several in their order, or what `spec` gave. `token_dtype` says what a bare .bin holds, and
    `tokenizer_sha256` is the identity of the tokenizer that the ids belong to, where it is known.
    Raises InputError where a file is missing, empty, or not what it claims to be.
    """

    def __init__(self, source: Spec, token_dtype: str | None = None, tokenizer_sha256: str | None = None):
        if isinstance(source, dict):
            token_dtype, tokenizer_sha256 = source["token_dtype"], source["tokenizer_sha256"]
            source = source["paths"]
        self.paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
        self.token_dtype = token_dtype
        self.label: str | None = None  # the text that these ids were made of
        self.layouts = [layout_of(path, token_dtype) for path in self.paths]
        self.sidecars = [
            read_sidecar(path) if layout.kind == "sidecar" else {}
            for path, layout in zip(self.paths, self.layouts, strict=True)
        ]
        self.tokenizer_sha256 = tokenizer_sha256 or self.sidecars[0].get("tokenizer_sha256")
        self._stats = self._stats_now()
        self.sizes = [path.stat().st_size for path in self.paths]
        self._begins = np.cumsum([0] + [layout.count for layout in self.layouts]).tolist()  # of each shard, in ids
        self._byte_begins = np.cumsum([0, *self.sizes]).tolist()
        self._maps: dict[int, mmap.mmap] = {}
        self._fingerprint: dict[str, Any] | None = None
        for shard in range(min(OPEN_SHARDS, len(self.paths))):
            self._map(shard)

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def path(self) -> Path:
        """Returns the first file."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """Returns the data as the user named it, for messages."""
        return self.label or names_of(self.paths)

    @property
    def spec(self) -> dict[str, Any]:
        """Returns plain values, fit for JSON, from which TokenFile(spec) opens the same files in any folder."""
        return {
            "paths": [os.path.abspath(path) for path in self.paths],
            "token_dtype": self.token_dtype,
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    @property
    def ids(self) -> np.ndarray:
        """Returns all ids; of several files, in memory."""
        return self.piece(0, len(self))

    def _map(self, shard: int) -> mmap.mmap:
        """Returns the mapped file number `shard`; the one mapped longest ago makes room."""
        if shard not in self._maps:
            if len(self._maps) == OPEN_SHARDS:
                del self._maps[next(iter(self._maps))]
            with open(self.paths[shard], "rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                self._maps[shard].madvise(mmap.MADV_RANDOM)  # no read-ahead: windows are far apart
        return self._maps[shard]

    def _give_back(self) -> None:
        """Takes the files' pages out of this process's memory; the system's own cache keeps them."""
        if self._byte_begins[-1] > SMALL_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def piece(self, start: int, stop: int) -> np.ndarray:
        """Returns the ids from `start` up to `stop`, (stop - start,), of the files' own type; across files, copied."""
        shard = bisect_right(self._begins, start) - 1
        if stop <= self._begins[shard + 1]:
            return self._of_shard(shard, start, stop)
        parts = []
        while start < stop:
            end = self._begins[shard + 1]
            parts.append(self._of_shard(shard, start, min(stop, end)).copy())  # a copy keeps no file open
            start, shard = end, shard + 1
        return np.concatenate(parts)

    def _of_shard(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Returns the ids from `start` up to `stop` of all, which lie in file number `shard`."""
        layout, begin = self.layouts[shard], self._begins[shard]
        ids = np.frombuffer(self._map(shard), layout.dtype, layout.count, layout.offset)
        return ids[start - begin : stop - begin]

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the `length` ids from each of `starts` (n,), as (n, length) int64. Keeps the mapped memory bounded."""
        block = np.empty((len(starts), length), np.int64)
        for row, start in enumerate(starts.tolist()):
            block[row] = self.piece(start, start + length)
            if row % PIECE_WINDOWS == PIECE_WINDOWS - 1:
                self._give_back()
        self._give_back()
        return block

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterable[np.ndarray]:
        """Yields the ids from `start` up to `stop` in order, up to PIECE_IDS at once."""
        stop = len(self) if stop is None else stop
        for begin in range(start, stop, PIECE_IDS):
            yield self.piece(begin, min(begin + PIECE_IDS, stop))
            self._give_back()

    def check_ids(self, vocab_size: int) -> int:
        """Returns the largest id. Raises InputError where one is not in 0 to `vocab_size` - 1. Reads all files once."""
        largest = position = 0
        for ids in self.pieces():
            outside = (ids < 0) | (ids >= vocab_size) if ids.min() < 0 or ids.max() >= vocab_size else None
            if outside is not None:
                where = position + int(np.argmax(outside))
                shard = bisect_right(self._begins, where) - 1
                raise InputError(
                    f"{self.paths[shard]}: token id {self.piece(where, where + 1)[0]} at position"
                    f" {where - self._begins[shard]} is beyond the vocabulary of {vocab_size};"
                    " was it written with another --tokenizer, or another --token_dtype?"
                )
            largest, position = max(largest, int(ids.max())), position + len(ids)
        return largest

    def _stats_now(self) -> list[tuple[int, int, int]]:
        """(inode, bytes, time of the last change in ns) of each file."""
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in self.paths)]

    def check_unchanged(self, fingerprint: dict[str, Any]) -> None:
        """Raises DataChanged where the files' content is not, or no longer, the one with that `fingerprint`.

        The content is read where the files' inode, size or time has changed since they were opened, and the first time.
        """
        try:
            same = self._stats_now() == self._stats and self.fingerprint() == fingerprint
            same = same or TokenFile(self.spec).fingerprint() == fingerprint
        except (OSError, InputError) as error:
            raise DataChanged(f"{self.name} can't be read any more ({error}); put the file back") from None
        if not same:
            raise DataChanged(f"{self.name} is not the file that the run began with; put that file back")

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the content: tokens, bytes, and the SHA-256 of up to 64 evenly spaced 64 KiB pieces."""
        if self._fingerprint is None:
            digest, size = hashlib.sha256(), self._byte_begins[-1]
            for start in sorted({int(s) for s in np.linspace(0, max(0, size - 2**16), 64)}):
                stop = min(start + 2**16, size)
                while start < stop:
                    shard = bisect_right(self._byte_begins, start) - 1
                    begin = self._byte_begins[shard]
                    digest.update(self._map(shard)[start - begin : stop - begin])
                    start = self._byte_begins[shard + 1]
                self._give_back()
            self._fingerprint = {"tokens": len(self), "bytes": size, "sha256_sampled": digest.hexdigest()}
        return self._fingerprint


def write_token_file(path: Path, pieces: Iterable[np.ndarray], name: str, tokenizer: Tokenizer, what: str) -> TokenFile:
    """Writes the ids in `pieces` as a .bin with our .json beside it, each whole or not at all, and opens it.

    The .json names the tokenizer (`name`, absolute where it is a path), its identity and the file's fingerprint.
    Raises InputError where there are no ids at all in `what`.
    """
    dtype = id_dtype(tokenizer.n_vocab)
    with whole_file(path) as file:
        for ids in pieces:
            file.write(np.ascontiguousarray(ids, dtype).data)
        file.flush()
        if file.tell() == 0:
            raise InputError(f"{what}: there is no text in it")
        about = {
            "dtype": dtype.str,
            "tokenizer": resolve(name),
            "tokenizer_sha256": identity(tokenizer),
            "fingerprint": TokenFile(file.name, dtype.name).fingerprint(),
        }
        with whole_file(path.with_suffix(".json")) as beside:
            beside.write(json.dumps(about).encode())
    return TokenFile(path)
