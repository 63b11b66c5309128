"""Every place that a search will write, tried before anything heavy."""

import os
import tempfile
from pathlib import Path

from myllm.errors import InputError, one_line
from myllm.files import obstacle
from tune.journal import FILE_NAME
from tune.settings import Search
from tune.storage import Storage


def runs_dir(usual: Path) -> Path:
    """The folder of new runs: `usual`, or where that can't be written the user's own, which one line then says.

    Raises InputError where neither can.
    """
    if (usual.parent.parent / "pyproject.toml").is_file() and obstacle(usual / "a") is None:
        return usual
    folder = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser().absolute() / "myllm" / "runs"
    reason = obstacle(folder / "a")
    if reason:
        raise InputError(f"runs can't be written, neither to {usual} nor to {folder}: {reason}; give --storage_path")
    print(f"note: {usual} can't be written; runs are in {folder}")
    return folder


def check_places(run_dir: Path, search: Search) -> None:
    """Raises InputError that names the first place which can't be written; leaves nothing behind."""
    for place in (run_dir / FILE_NAME, run_dir / "ray" / "a"):
        if reason := obstacle(place):
            raise InputError(f"the run's folder {run_dir} can't be written: {reason}")
    root = search.storage_root(run_dir)
    if "://" in root:
        check_remote(root)
    if search.config.address is None:
        folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        if reason := obstacle(folder / "ray" / "a"):
            raise InputError(f"{folder}, where Ray keeps its logs and sockets, can't be written: {reason}; set RAY_TMPDIR")


def check_remote(root: str) -> None:
    """Raises InputError where no file can be written below the URI `root`."""
    try:
        storage = Storage(root)
        parent = storage.path.rpartition("/")[0]
        trial = f"{parent}/.myllm-{os.getpid()}"
        storage.filesystem.create_dir(parent, recursive=True)
        with storage.filesystem.open_output_stream(trial) as file:
            file.write(b"x")
        storage.filesystem.delete_file(trial)
    except (OSError, ValueError) as error:
        raise InputError(f"--storage_path {root} can't be written: {one_line(error)[:300]}") from None
