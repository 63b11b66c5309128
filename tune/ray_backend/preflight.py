"""Looks for what a search and Ray need of the machine, before anything heavy starts."""

import os
import shutil
import sys
from pathlib import Path

from myllm.system.errors import InputError, one_line
from myllm.system.files import obstacle, user_folder
from tune.config.spec import SearchSpec
from tune.ray_backend.watchdog import ray_folder
from tune.store.checkpoints import Storage
from tune.store.journal import FILE_NAME

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes
PROGRAMS = ("bash",)  # Ray has bash start each worker


def check_programs() -> None:
    """Raises InputError where a program that Ray calls is not on PATH: Ray would start workers again and again."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise InputError(f"Ray starts its workers with {program}, which is not on PATH; install it, or mend PATH")


def runs_dir(usual: Path) -> Path:
    """The folder of new runs: `usual` in a checkout that can be written, otherwise a folder in the user's data folder.

    Prints a note if it is the latter. Raises InputError if neither can be written.
    """
    in_checkout = (usual.parent.parent / "pyproject.toml").is_file()
    if in_checkout and obstacle(usual / "a") is None:
        return usual
    folder = user_folder("XDG_DATA_HOME", "~/.local/share") / "runs"
    reason = obstacle(folder / "a")
    if reason:
        raise InputError(f"runs can't be written, neither to {usual} nor to {folder}: {reason}; give --storage_path")
    print(f"note: {usual} can't be written; runs are in {folder}" if in_checkout else f"note: runs are in {folder}")
    return folder


def check_writable(run_dir: Path, search: SearchSpec) -> None:
    """Tries every place that a search writes, and leaves nothing behind.

    Raises InputError that names the first place which can't be written.
    """
    check_utf8(run_dir)
    for place in (run_dir / FILE_NAME, run_dir / "ray" / "a"):
        if reason := obstacle(place):
            raise InputError(f"the run's folder {run_dir} can't be written: {reason}")
    root = search.storage_root(run_dir)
    if "://" in root:
        check_remote(root)
    if search.options.address is None:
        folder = ray_folder()
        check_utf8(folder)
        if reason := obstacle(folder / "a"):
            raise InputError(
                f"{folder.parent}, where Ray keeps its logs and sockets, can't be written: {reason}; set RAY_TMPDIR"
            )
        socket = folder / f"session_2026-01-01_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
        if len(os.fsencode(socket)) > LONGEST_SOCKET:
            raise InputError(
                f"{folder.parent}: too long a name for Ray's sockets; set RAY_TMPDIR to a shorter one, /tmp say"
            )


def check_utf8(place: Path) -> None:
    """Raises InputError where the name of `place` is not UTF-8, which Ray can't write."""
    try:
        str(place).encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: its name is not UTF-8, and Ray writes no others; choose another place") from None


def check_remote(root: str) -> None:
    """Raises InputError where no file can be written beside the URI `root`."""
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
