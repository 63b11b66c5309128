"""Errors that a user can mend: one line, and an exit code."""

import argparse
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and what would be right."""


class RunError(RuntimeError):
    """The run can't go on for a reason outside of it, such as a full disk. The message is one line."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors: one line, no usage dump, no abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's main(); an error of the user's becomes one line on stderr.

    Exit codes: 2 for an InputError, 1 for a RunError, 130 for Ctrl-C.
    """
    try:
        code = main()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
