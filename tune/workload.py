"""The training of one configuration of a search. Imported by workers alone: the driver needs no torch."""

from myllm.config import TrainConfig
from myllm.data import TokenFile, Windows
from myllm.training.train import Run
from tune.settings import Search


def open_run(search: Search, config: TrainConfig, device: str = "cpu") -> Run:
    """The training of one configuration of a search, from its beginning, on the search's prepared files."""
    files = [TokenFile(search.data.prepared[split]) for split in ("train", "val")]
    windows = [Windows(tokens, config.max_len, config.stride) for tokens in files]
    return Run(search.model, config, *windows, device=device)
