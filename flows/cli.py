"""The command line: `focusdpo --help`.

Exit codes: 0 all done; 1 a mistake of ours, with its traceback; 2 bad input, with what is wrong
and what to do; 3 done, but some subjects or partitions were left out; 130 stopped by the user.
Importing this module takes no time: from its first line on, a command answers to Ctrl-C.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from focusdpo.flows.interrupts import Interrupts

if TYPE_CHECKING:
    import typer

JOBS = ("demo", "build-dataset", "train", "evaluate", "retrain", "ablate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    with Interrupts():
        speaks = os.environ.get("RANK", "0") == "0"  # of several processes, the first
        if speaks and given and given[0] in JOBS and "--help" not in given:
            sys.stderr.write(f"{given[0]} ...\n")  # imports alone may take seconds
        from focusdpo.flows.program import app

        _run(app, "focusdpo", given)


def run_program(program: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    """Run one of our programs and exit with its code; bad input is one line on stderr."""
    with Interrupts():
        _run(program, name, arguments)


def _run(program: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    from focusdpo.data_schemas.errors import ClusterGone, UserError
    from focusdpo.store.remote import Lost

    given = list(arguments)
    parsed: list[Any] = []
    try:
        try:
            program(given, prog_name=name, obj=parsed)
        except SystemExit as ended:  # typer leaves so in any case
            if ended.code or not parsed:
                raise
        result = parsed[0].function(**parsed[0].arguments)
        sys.exit(parsed[0].finish(result))
    except ClusterGone as error:
        _tell(str(error), 2, "--json" in given)
        leave_at_once(2)
    except (UserError, Lost) as error:
        _tell(str(error), 2, "--json" in given)
        sys.exit(2)


def leave_at_once(code: int) -> NoReturn:
    """End without taking the interpreter apart; what was registered for the end is done."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(message: str, code: int, as_json: bool) -> None:
    sys.stderr.write(f"error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")


if __name__ == "__main__":
    main()
