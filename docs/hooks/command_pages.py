"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

HEAD = """# Command line

Made of the commands when this site was built; `focusdpo COMMAND --help` tells the same. Results go
to stdout, progress and the log to stderr; `--json` prints one machine-readable line last.

Exit codes: 0 all done; 1 a mistake of ours, with its traceback; 2 bad input, with what is wrong and
what to do; 3 done, but some subjects or partitions were left out; 130 stopped by the user (the same
command goes on).
"""


def root_command() -> Any:
    """`focusdpo` as a click command."""
    from focusdpo.flows.program import app

    return get_command(app)


def commands_page() -> str:
    """One section per command."""
    command = root_command()
    parts = [HEAD, "## Before any command", _options(command, "focusdpo")]
    for words, one in commands(command):
        parts += [f"## {' '.join(words)}", *_told(words, one)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def commands(command: Any, words: tuple[str, ...] = ("focusdpo",)) -> Iterator[tuple[Any, Any]]:
    """(words, command) of every command, groups included, in the order of --help."""
    for name, one in sorted(getattr(command, "commands", {}).items()):
        if one.hidden:
            continue
        yield (*words, name), one
        yield from commands(one, (*words, name))


def _told(words: tuple[str, ...], command: Any) -> list[str]:
    if hasattr(command, "commands"):
        names = ", ".join(f"[{name}](#{'-'.join((*words, name))})" for name in command.commands)
        return [_plain(command.help or ""), f"Commands: {names}."]
    return [_plain(command.help or ""), _usage(words, command), _options(command, " ".join(words))]


def _usage(words: tuple[str, ...], command: Any) -> str:
    with typer.Context(command, info_name=" ".join(words)) as context:
        pieces = " ".join(command.collect_usage_pieces(context))
    return f"```\n{' '.join(words)} {pieces}\n```"


def _options(command: Any, what: str) -> str:
    with typer.Context(command, info_name=what) as context:
        records = [param.get_help_record(context) for param in command.params]
    rows = [f"| `{names}` | {_cell(text)} |" for names, text in filter(None, records)]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows]) if rows else ""


def _plain(text: str) -> str:
    """A docstring's paragraphs. What stands in angle brackets is text, not markup."""
    return inspect.cleandoc(text).replace("\b\n", "").replace("<", "&lt;")


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|")
