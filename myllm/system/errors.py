"""Errors that a user can mend: one line, and an exit code."""

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code after Ctrl-C
DISK_ERRORS = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "EROFS",
        "EACCES",
        "EPERM",
        "EMFILE",
        "ESTALE",
        "ENAMETOOLONG",
        "ELOOP",
        "EEXIST",
        "ENOTDIR",
        "EISDIR",
        "EBUSY",
    )
    if hasattr(errno, name)
}
"""errno of what a disk, its owner or a name does, and no fault of the code: one line, not a traceback"""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and what would be right."""


class RunError(RuntimeError):
    """The run can't go on for a reason outside of it, such as a full disk. The message is one line."""


class DataChanged(RunError):
    """A data file no longer has the content that a run began with."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors: one line, no usage dump, no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def add_alias(self, alias: str, flag: str) -> None:
        """Lets `alias`, which --help does not name, stand for `flag`."""
        self._option_string_actions[alias] = self._option_string_actions[flag]

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


@contextlib.contextmanager
def naming(flags: str) -> Iterator[None]:
    """Within it, the message of an InputError begins with the `flags` that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flags}: {str(error).removeprefix('trial: ')}") from None


def warn(message: str) -> None:
    """One line on stderr about something that may be meant, but rarely is."""
    print(f"warning: {message}", file=sys.stderr)


def one_line(message: object) -> str:
    """`message` without its line breaks: what the user gave may hold some."""
    return " ".join(str(message).splitlines())


def code_and_text(error: InputError | RunError | OSError) -> tuple[int, str]:
    """(exit code, one line) of an error. Raises an OSError again that the disk is not the cause of."""
    if isinstance(error, InputError | RunError):
        return 2 if isinstance(error, InputError) else 1, one_line(error)
    if error.errno not in DISK_ERRORS:
        raise error
    where = f"{error.filename}: " if error.filename else ""
    return 1, f"{where}{one_line(error.strerror)}"


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's main(); an error of the user's becomes one line on stderr, or with --json an object on stdout.

    Exit codes: 2 for an InputError, 1 for a RunError and for what the disk refuses, 130 for Ctrl-C, 141 where whoever
    read the output has gone (`| head`), as of a process that SIGPIPE ended. What a terminal can't show is escaped. A stream
    that is closed (`>&-`) leads nowhere.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    code: str | int | None
    try:
        try:
            code = main()
        except SystemExit as stop:  # argparse's --help
            code = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit has somewhere to go
        code = 141
    except (InputError, RunError, OSError) as error:
        code, message = code_and_text(error)
        if "--json" in sys.argv:
            print(json.dumps({"error": {"code": code, "message": message}}))
        else:
            print(f"error: {message}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
