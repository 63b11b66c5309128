"""Opens the training of one configuration of a search. Only workers import this module: the driver needs no torch."""

import dataclasses
from typing import Any

from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.system.errors import DataChanged, InputError
from myllm.training.parallel import SINGLE, ProcessGroup
from myllm.training.train import Run
from tune.config.spec import BuiltinSearch


def open_run(
    search: BuiltinSearch, settings: dict[str, Any], device: str = "cpu", group: ProcessGroup = SINGLE, **changes: Any
) -> Run:
    """Returns the training of one configuration from its beginning, as one of the processes of `group`.

    `changes` replace settings of its TrainConfig. Raises DataChanged if a file is gone, or has other content than the
    search's.
    """
    config = dataclasses.replace(search.train_config(settings), **changes)
    try:
        files = {split: TokenFile(search.data.prepared[split]) for split in ("train", "val")}
    except (OSError, InputError) as error:
        raise DataChanged(f"{error}; put that file back") from None
    check_data(search, files)
    train, val = (Windows(tokens, config.max_len, config.stride) for tokens in files.values())
    return Run(search.model_config(settings), config, train, val, device, group)


def check_data(search: BuiltinSearch, files: dict[str, TokenFile]) -> None:
    """Raises DataChanged where the content of train or val is not the one that the search began with."""
    for split, fingerprint in search.data.fingerprint.items():
        files[split].check_unchanged(fingerprint)
