"""Windows over token files, and a seeded stream of batches whose position is two whole numbers."""

from typing import TYPE_CHECKING

import numpy as np

from myllm.datasets.token_file import TokenFile
from myllm.system.errors import InputError

if TYPE_CHECKING:
    import torch


class Windows:
    """All windows of `max_len` tokens of a file, `stride` apart, with targets shifted by one.

    Raises InputError where the file is shorter than one window.
    """

    def __init__(self, tokens: TokenFile, max_len: int, stride: int):
        self.tokens, self.max_len, self.stride = tokens, max_len, stride
        if len(tokens) < max_len + 1:
            raise InputError(
                f"{tokens.name}: {len(tokens)} tokens are fewer than one window of max_len + 1 = {max_len + 1}"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.max_len - 1) // self.stride + 1

    def batch(self, indices: np.ndarray) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Inputs and targets of the windows `indices` (n,): two (n, max_len) int64 tensors."""
        import torch  # here: a search reads its data without

        block = torch.from_numpy(self.ids(indices))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def ids(self, indices: np.ndarray) -> np.ndarray:
        """Returns the ids of the windows `indices` (n,) and the one after each: (n, max_len + 1) int64."""
        return self.tokens.read(np.asarray(indices) * self.stride, self.max_len + 1)

    def spread(self, count: int) -> np.ndarray:
        """`count` window indices spread evenly over the file (all of them where there are fewer), ascending."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))


def shuffled(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Returns the images of `positions` (int64) under a pseudo-random permutation of range(n) that is never stored.

    A six-round Feistel network over the smallest even number of bits that holds n, walking the cycle until the result
    lies below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). `key` chooses the permutation.
    Raises ValueError for a position outside of range(n).
    """
    half = np.uint64(max(1, (max(1, n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = np.random.SeedSequence(key).generate_state(6, np.uint64)

    def encrypt(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for round_key in round_keys:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    if np.size(positions) and not 0 <= np.min(positions) <= np.max(positions) < n:
        raise ValueError(
            f"positions {np.min(positions)} to {np.max(positions)} do not lie in range({n})"
        )  # the walk would never end
    result = encrypt(np.asarray(positions).astype(np.uint64))
    outside = result >= n
    while outside.any():
        result[outside] = encrypt(result[outside])
        outside = result >= n
    return result.astype(np.int64)


class BatchStream:
    """An endless stream of shuffled batches; every epoch is a new order of all windows.

    The position is `epoch` and `batch` within it. The windows that do not fill a last batch are left out of that epoch.
    Of several processes that share each batch, process `rank` of `processes` gets every window whose number in the batch is
    `rank` modulo `processes`. Raises InputError where the batch is larger than the data.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, rank: int = 0, processes: int = 1):
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.rank, self.processes = rank, processes
        self.steps_per_epoch = len(windows) // batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"batch_size {batch_size} is larger than the data: {windows.tokens.name} has {len(windows)} windows of"
                f" {windows.max_len} tokens"
            )
        self.epoch = self.batch = 0

    def next(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Returns this process's part of the next batch, as Windows.batch gives it."""
        if self.batch >= self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        begin = self.batch * self.batch_size
        positions = np.arange(begin + self.rank, begin + self.batch_size, self.processes)
        key = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        self.batch += 1
        return self.windows.batch(shuffled(positions, len(self.windows), key))
