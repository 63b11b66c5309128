"""Trials in an order that holds while they change: what rules ask for again and again is never sorted anew."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sortedcontainers import SortedList

Key = Callable[..., tuple | None]
"""(trial, *marks) -> what the trial is sorted by, which no other trial has; None where it does not belong. It may look at
statuses, at losses at these marks, the trial's own and its repeats', and at how many repeats there are"""


class Order(Sequence):
    """The trials that belong, sorted by `key`. One that changes takes its new place in the logarithm of their number."""

    def __init__(self, key: Key, marks: tuple[int, ...], trials: Iterable[Any]):
        self._key, self._marks = key, marks
        self._places: dict[str, tuple] = {}
        rows = [(trial, key(trial, *marks)) for trial in trials]
        self._places = {trial.trial_id: place for trial, place in rows if place is not None}
        self._rows = SortedList((*place, trial) for trial, place in rows if place is not None)

    def update(self, trial: Any) -> None:
        """Takes in that `trial` has changed."""
        before, place = self._places.get(trial.trial_id), self._key(trial, *self._marks)
        if place == before:
            return
        if before is not None:
            self._rows.remove((*before, trial))
            del self._places[trial.trial_id]
        if place is not None:
            self._rows.add((*place, trial))
            self._places[trial.trial_id] = place

    def rank(self, trial: Any) -> int:
        """How many come before `trial`, which belongs."""
        return self._rows.bisect_left(self._places[trial.trial_id])

    def count_to(self, value: float) -> int:
        """How many have at most `value` as the first part of their key."""
        return self._rows.bisect_right((value, math.inf))

    def groups(self, parts: int) -> Iterator[tuple[tuple, Iterator[tuple]]]:
        """(the first `parts` of a key, the rows that have them: key and trial) of each; a mean and an id follow."""
        at = 0
        while at < len(self._rows):
            same, begin = self._rows[at][:parts], at
            at = self._rows.bisect_right((*same, math.inf, "~"))  # after every id, also where a mean is infinite
            yield same, self._rows.islice(begin, at)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return (row[-1] for row in self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        found = self._rows[index]
        return [row[-1] for row in found] if isinstance(index, slice) else found[-1]
