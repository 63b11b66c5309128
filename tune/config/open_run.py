"""Opens the training of one configuration of a search. Only workers import this module: the driver needs no torch."""

import dataclasses
from typing import Any

from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.training.train import Run
from tune.config.spec import SearchSpec


def open_run(search: SearchSpec, hyper_parameters: dict[str, Any], device: str = "cpu", **changes: Any) -> Run:
    """Returns the training of one configuration from its beginning, on the search's prepared files.

    `changes` replace settings of its TrainConfig. Raises DataChanged if the files' content is not the search's any more.
    """
    config = dataclasses.replace(search.train_config(hyper_parameters), **changes)
    files = {split: TokenFile(search.data.prepared[split]) for split in ("train", "val")}
    for split, fingerprint in search.data.fingerprint.items():
        files[split].check_unchanged(fingerprint)
    train, val = (Windows(tokens, config.max_len, config.stride) for tokens in files.values())
    return Run(search.model_config(hyper_parameters), config, train, val, device=device)
