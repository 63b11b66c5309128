"""Documents -> token ids: in bounded memory, on every core, with the ids that encoding each document at once would give.

A document longer than a job is cut where the ids do not notice. In tiktoken's patterns no piece reaches from a letter or
digit over the next character that is neither (but for o200k's contractions), so such places are tried, from the last one
back, and each is taken only if the text around it encodes to the same ids cut and whole. A run without any such place, a
megabyte of one letter say, is cut where the job is full: byte-pair merging takes more than linear time and memory on such
runs, and no model learns from how they were merged.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from myllm.datasets.documents import Piece
from myllm.datasets.tokenizer import Tokenizer, encode, end_of_text, id_dtype
from myllm.system.machine import available_cpus

JOB_CHARS = 2**19  # of text that one thread encodes at once
PROBE_CHARS = 256  # on either side of a cut that is tried
PROBES = 32  # cuts tried near the end of a job, and again anywhere in it
NEAR_CHARS = 4096
WORD_END = re.compile(r"[^\W_](?=[\W_])")

Job = list[tuple[bool, str]]
"""texts, each with whether an end-of-text token goes before it"""


def cut_position(text: str, limit: int, tokenizer: Tokenizer) -> int:
    """Returns a position, at most `limit`, where a cut of `text` does not change its ids; `limit` if none is found."""
    for begin in (max(0, limit - NEAR_CHARS), 0):
        ends = [match.end() for match in WORD_END.finditer(text, begin, limit)]
        for position in reversed(ends[-PROBES:]):
            before = text[max(0, position - PROBE_CHARS) : position]
            after = text[position : position + PROBE_CHARS]
            cut = np.concatenate([encode(before, tokenizer), encode(after, tokenizer)])
            if np.array_equal(cut, encode(before + after, tokenizer)):
                return position
    return limit


def jobs(pieces: Iterable[Piece], tokenizer: Tokenizer, job_chars: int = JOB_CHARS) -> Iterator[tuple[Job, int]]:
    """Groups documents, or parts of long ones, into jobs of about `job_chars` characters; and the position reached.

    Empty documents are left out, so that no two end-of-text tokens follow each other.
    """
    parts = end_of_text(tokenizer) is not None
    job: Job = []
    size, position, begun = 0, 0, False  # begun: some document came before
    rest, starts = "", True  # of the present document; starts: none of it is in a job yet
    for piece in pieces:
        rest, position, at = rest + piece.text, piece.position, 0
        while at < len(rest) and (piece.ends or len(rest) - at >= job_chars + PROBE_CHARS):
            text = rest[at : at + job_chars + PROBE_CHARS]
            cut = cut_position(text, job_chars, tokenizer) if len(text) == job_chars + PROBE_CHARS else len(text)
            job.append((parts and starts and begun, text[:cut]))
            at, size, starts, begun = at + cut, size + cut, False, True
            if size >= job_chars // 2:
                yield job, position
                job, size = [], 0
        rest = rest[at:]
        starts = starts or piece.ends
    if job:
        yield job, position


def encode_job(job: Job, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of a job's texts, one after the other."""
    parts = []
    for parted, text in job:
        if parted:
            parts.append(np.array([end_of_text(tokenizer)], id_dtype(tokenizer.n_vocab)))
        parts.append(encode(text, tokenizer))
    return np.concatenate(parts)


def encode_pieces(
    pieces: Iterable[Piece], tokenizer: Tokenizer, threads: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the ids of all documents in order, with the position in the input that they reach.

    Encodes in `threads` threads (default: one a core; tokenizers let go of Python's lock) and reads ahead by a few jobs.
    """
    threads = threads or available_cpus()
    waiting: deque[tuple[Future[np.ndarray], int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job, position in jobs(pieces, tokenizer):
                waiting.append((pool.submit(encode_job, job, tokenizer), position))
                while len(waiting) > 2 * threads:
                    future, reached = waiting.popleft()
                    yield future.result(), reached
            while waiting:
                future, reached = waiting.popleft()
                yield future.result(), reached
        finally:
            for future, _ in waiting:
                future.cancel()
