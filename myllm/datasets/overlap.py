"""Compares validation data with training data: a loss on the training text says nothing about new text."""

import numpy as np

from myllm.datasets.token_file import TokenFile
from myllm.system.errors import InputError, warn

PROBES = 64
"""passages of the validation data that are searched for in the training data"""
PASSAGE = 96
"""tokens of a passage; shorter ones, such as licences and imports, recur by themselves"""
MOST_IDS = 2**26
"""training ids that are searched, from the start: about a second"""
CHUNK = 2**16
"""training ids that are compared at once: they fit into a core's cache"""
WARN_SHARE = 0.1
"""share of the passages found from which a warning is due"""


def check_separate(train: TokenFile, val: TokenFile) -> None:
    """Compares the ids of training and validation data.

    Raises InputError where both hold the same ids, whatever their files are called. Warns where more than WARN_SHARE of
    PROBES passages of the validation data occur in the first MOST_IDS training ids.
    """
    share = overlap(train, val)
    if share == 1 and len(train) == len(val) and _same(train, val):
        raise InputError(
            f"--val_file {val.name} holds the same text as --train_file: val_loss would say nothing about new text; name "
            "other text, or part this one with myllm/data.py --val_fraction 0.1"
        )
    if share > WARN_SHARE:
        warn(
            f"{share:.0%} of the passages of {val.name} occur in {train.name} as well: val_loss says little of new text; "
            "part the text with myllm/data.py --val_fraction 0.1"
        )


def overlap(train: TokenFile, val: TokenFile) -> float:
    """Returns the share of evenly spaced passages of `val` that occur in `train`, from 0 to 1.

    The passages are PASSAGE ids long, or as long as the shorter data.
    """
    length = min(PASSAGE, len(train), len(val))
    starts = np.unique(np.linspace(0, len(val) - length, PROBES).astype(np.int64))
    passages = val.read(starts, length)
    waiting = {passage.tobytes() for passage in passages}
    total = len(waiting)
    wanted = np.zeros(2**16, bool)
    wanted[_keys(passages, length)[:, 0]] = True
    searched = min(len(train), MOST_IDS)
    for begin in range(0, searched, CHUNK):
        ids = train.read(np.array([begin]), min(CHUNK + length - 1, searched - begin))[0]
        for start in np.flatnonzero(wanted[_keys(ids, length)]):
            waiting.discard(ids[start : start + length].tobytes())
        if not waiting:
            break
    return 1 - len(waiting) / total


def _keys(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns a 16-bit hash of each passage of `length` ids along the last axis, made of four of its ids."""
    count = max(0, ids.shape[-1] - length + 1)
    values = ids.astype(np.uint32)
    key = np.zeros((*ids.shape[:-1], count), np.uint32)
    for offset in (0, length // 3, 2 * length // 3, length - 1):
        key += values[..., offset : offset + count]
        key *= np.uint32(0x9E3779B1)  # 2^32 over the golden ratio, odd: Knuth's multiplicative hashing
    return key >> np.uint32(16)


def _same(train: TokenFile, val: TokenFile) -> bool:
    """Returns True if both hold the same ids in the same order."""
    return all(np.array_equal(one, other) for one, other in zip(train.pieces(), val.pieces(), strict=True))
