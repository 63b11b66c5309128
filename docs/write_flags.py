"""Writes docs/flags.md from the parsers of the commands: python -m docs.write_flags"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import myllm.data
import tune.report
from myllm.system.errors import Parser
from myllm.training import trainer
from tune.config.command_line import DATA_FLAGS, RESUME_FLAGS, search_parser
from tune.config.overrides import FLAGS

PAGE = Path(__file__).resolve().parent / "flags.md"
INTRO = """# Flags

This page is for whoever looks up an option. `python -m docs.write_flags` writes it from the commands.

On `--resume` a search takes the flags marked "yes". Data may be named anew if its content is the same.
"""


class ParserFound(Exception):
    """Carries the parser of a command."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(main: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a command's `main` builds, without running the command."""

    def stop(parser: argparse.ArgumentParser) -> None:
        raise ParserFound(parser)

    with patch.object(Parser, "parse_args", stop):
        try:
            main()
        except ParserFound as found:
            return found.parser
    raise RuntimeError(f"{main.__module__} parses no arguments")


def on_resume(name: str) -> str:
    """How a flag of search.py may stand beside --resume."""
    if name in (*RESUME_FLAGS, "dry_run", "allow_other_owner", "resume"):
        return "yes"
    return "same content" if name in DATA_FLAGS else "same meaning" if name in FLAGS else "no"


def value_of(action: argparse.Action) -> str:
    """The word that stands for a flag's value; empty where it takes none."""
    if action.nargs == 0:
        return ""
    kind = getattr(action.type, "__name__", "text").replace("str", "text").upper()
    word = action.metavar or (",".join(map(str, action.choices)) if action.choices else kind)
    return f"`{word}`{' ...' if action.nargs == '+' else ''}"


def table(parser: argparse.ArgumentParser, resumes: bool = False) -> str:
    """The flags of a command as a table in Markdown."""
    heads = ["flag", "value", "default", "meaning", *(["on `--resume`"] if resumes else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "-|" * len(heads)]
    for action in parser._actions:
        if action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        text = " ".join((action.help or "").replace("%%", "%").split())
        told = re.search(r" \((?:default|unset): ([^()]*)\)$", text)
        default = told.group(1) if told else action.default
        shown = "" if default in (None, argparse.SUPPRESS) or default is False else default if told else f"`{default!r}`"
        meaning = (text[: told.start()] if told else text).replace("|", "\\|").replace("<", "&lt;")
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        cells = [f"`{name}`", value_of(action), shown, meaning, *([on_resume(action.dest)] if resumes else [])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def flags_page() -> str:
    """The text of docs/flags.md."""
    commands = {
        "python myllm/training/trainer.py": parser_of(trainer.parse_args),
        "python myllm/data.py": parser_of(myllm.data.main),
        "python tune/report.py": parser_of(tune.report.main),
    }
    parts = [INTRO, "## python tune/search.py\n", table(search_parser(), resumes=True)]
    for name, parser in commands.items():
        parts += [f"## {name}\n", f"{parser.description}\n", table(parser)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(flags_page())
