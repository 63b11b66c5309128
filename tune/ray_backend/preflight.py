"""Looks for what a search and Ray need of the machine, before anything heavy starts."""

import os
import resource
import shutil
import sys
from pathlib import Path

from myllm.system.errors import InputError, RunError, one_line
from myllm.system.files import obstacle, user_folder
from tune.config.spec import SearchSpec
from tune.ray_backend.start import ray_folder
from tune.store.checkpoints import Storage
from tune.store.journal import FILE_NAME

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes
LEAST_ADDRESS_SPACE = 4 * 2**30  # bytes; with 3 GiB Ray 2.60 aborts where it maps its object store, with 4 it works


def check_machine() -> None:
    """Raises InputError where bash is not on PATH, and RunError where this process may not have enough address space."""
    if shutil.which("bash") is None:  # Ray would start workers again and again
        raise InputError("Ray starts its workers with bash, which is not on PATH; install it, or mend PATH")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise RunError(
            f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), and Ray needs"
            f" {LEAST_ADDRESS_SPACE // 2**30}; raise it with: ulimit -v unlimited"
        )


def runs_dir(usual: Path) -> Path:
    """The folder of new runs: `usual` in a checkout that can be written, otherwise a folder in the user's data folder.

    Prints a note if it is the latter. Raises InputError if neither can be written.
    """
    in_checkout = (usual.parent.parent / "pyproject.toml").is_file()
    if in_checkout and obstacle(usual / "a") is None:
        return usual
    folder = user_folder("XDG_DATA_HOME", "~/.local/share") / "runs"
    if reason := obstacle(folder / "a"):
        raise InputError(f"runs can't be written, neither to {usual} nor to {folder}: {reason}; give --storage_path")
    print(f"note: {usual} can't be written; runs are in {folder}" if in_checkout else f"note: runs are in {folder}")
    return folder


def check_writable(run_dir: Path, search: SearchSpec) -> None:
    """Tries every place that a search writes, and leaves nothing behind.

    Raises InputError that names the first place which can't be written.
    """
    folder = ray_folder() if search.options.address is None else None
    for place in (run_dir, folder or run_dir):
        try:
            str(place).encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: its name is not UTF-8, and Ray writes no others; choose another place") from None
    for place in (run_dir / FILE_NAME, run_dir / "ray" / "a"):
        if reason := obstacle(place):
            raise InputError(f"the run's folder {run_dir} can't be written: {reason}")
    root = search.storage_root(run_dir)
    if "://" in root:
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
    if folder:
        socket = folder / f"session_2026-01-01_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
        too_long = "too long a name for Ray's sockets" if len(os.fsencode(socket)) > LONGEST_SOCKET else None
        if reason := obstacle(folder / "a") or too_long:
            raise InputError(
                f"{folder.parent}, where Ray keeps its logs and sockets, can't be written: {reason};"
                " set RAY_TMPDIR to another place, /tmp say"
            )
