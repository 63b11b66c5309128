"""Who takes idle slots. A slot is the cores or GPUs of a trial while there is work for every worker."""

from collections.abc import Mapping
from dataclasses import dataclass

JOIN_SECONDS = 6.0
"""seconds that a trial stands still when it takes more slots: a new worker, its partners, torch, the checkpoint; measured
4.9 on two cores that others used as well"""
WORTH = 2.0
"""times JOIN_SECONDS that more slots must save if each were of full use; `auto` has measured half of that use"""


@dataclass(frozen=True)
class Training:
    """A training that runs, as far as its need of slots goes."""

    seconds: float
    """until its segment ends, if it has one slot"""
    batch_size: int
    """windows of an optimizer step, which its processes share evenly"""
    slots: int = 1
    """that it has now"""


def share_idle(trainings: Mapping[str, Training], idle: int, processes: int = 1) -> dict[str, int]:
    """Returns the slots of each training, by name, once the `idle` ones are given away.

    The training that would end last takes as many as its batch can be divided among next, again and again. A slot is worth
    `processes` processes. Nobody gives up a slot.
    """
    slots = {name: one.slots for name, one in trainings.items()}
    while True:
        for name in sorted(slots, key=lambda name: -trainings[name].seconds / slots[name]):
            wider = range(slots[name] + 1, slots[name] + idle + 1)
            more = next((count for count in wider if trainings[name].batch_size % (count * processes) == 0), None)
            if more is not None:
                idle -= more - slots[name]
                slots[name] = more
                break
        else:
            return slots


def is_worth_joining(training: Training, slots: int) -> bool:
    """Returns True if the rest of the training is long enough for a new start with that many slots."""
    return training.seconds * (1 / training.slots - 1 / slots) > WORTH * JOIN_SECONDS


def is_worth_leaving(training: Training) -> bool:
    """Returns True if the rest of the training is so long that others, who could begin, should not wait for its slots."""
    return training.slots > 1 and training.seconds / training.slots > JOIN_SECONDS
