"""Bad input: one exception, one line, exit code 2."""

import argparse
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and what would be right."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors: one line, no usage dump, no abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's main(); an InputError becomes `error: ...` on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
