"""Files that are written: the place tried beforehand, the file whole or not there at all."""

import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from myllm.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
STALE_SECONDS = 3600  # a temporary file not written to for so long was left by a process that was killed


def check_regular(path: Path) -> None:
    """Raises InputError where `path` is no file that can be read more than once."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; a pipe can't be read twice, write it into a file first")


def obstacle(path: str | Path) -> str | None:
    """Returns why the file `path` can't be written, or None where it can. Leaves nothing behind, folders included."""
    try:
        path = Path(os.path.realpath(path))  # whole_file follows links, too
        if path.is_dir():
            return "it is a folder"
        folder = path.parent
        if path.exists():
            if not path.is_file():
                return "it is not a regular file"
            if _is_mounted(path):
                return "it is mounted there, and so can't be replaced; name a file in a folder that is mounted"
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError as error:
                if error.errno != errno.EACCES:  # not to be changed; who may not write it may still replace it
                    raise
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            return f"{folder} is not a folder"
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=folder):
            return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _is_mounted(path: Path) -> bool:
    """Returns True if the file `path` is a mount of its own, as containers are given single files. Known on Linux alone."""
    try:
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")
    except OSError:
        return False
    escaped = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", str(path))  # as the kernel writes names
    return any(line.split(" ")[4:5] == [escaped] for line in lines)


def check_writable(path: str | Path, flag: str) -> None:
    """Raises InputError where the file `path`, which `flag` names, can't be written."""
    reason = obstacle(path)
    if reason:
        raise InputError(f"{flag} {path} can't be written: {reason}")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends; after an error nothing has changed.

    What is written is on the disk before it gets its name, so a crash leaves the old file or the new one. Links are
    followed. The temporary file lies beside it, hidden; those of killed processes are removed.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = f".{path.name}."  # and the process: other hidden files of the user's may begin like that
    with contextlib.suppress(OSError):  # of a folder that may not be listed, of files that others have deleted
        for left in path.parent.iterdir():
            killed = left.name.startswith(begin) and left.name[len(begin) :].isdigit()
            if killed and time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk it is not known where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text`, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files may be no UTF-8


def is_disk_full(error: BaseException | None) -> bool:
    """Returns True if `error` says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    )


def disk_use(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def user_folder(variable: str, usual: str) -> Path:
    """This project's part of the user's folder that an environment `variable` names, or else of the `usual` one.

    Raises InputError where the user has no home.
    """
    try:
        return Path(os.environ.get(variable) or usual).expanduser().absolute() / "myllm"
    except RuntimeError:
        raise InputError(f"{usual} is nowhere: HOME is not set, and this user has no home; set {variable}") from None


def cache_dir() -> Path:
    """Where prepared data is kept: in the checkout, or in the user's own cache folder where that can't be written.

    Raises InputError where neither can.
    """
    checkout = ROOT / "experiments" / "runs" / ".cache"
    if (ROOT / "pyproject.toml").is_file() and obstacle(checkout / "a") is None:
        return checkout
    usual = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("LOCALAPPDATA", "~/.cache")
    folder = user_folder("XDG_CACHE_HOME", usual)
    reason = obstacle(folder / "a")
    if reason:
        raise InputError(f"the cache can't be written, neither {checkout} nor {folder}: {reason}; set XDG_CACHE_HOME")
    return folder
