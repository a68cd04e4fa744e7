"""The command line: `focusdpo --help`.

Exit codes: 0 all done; 1 a mistake of ours, with its traceback; 2 bad input, with what is wrong
and what to do; 3 done, but some subjects or partitions were left out; 130 stopped by the user.

Ctrl-C: one line and code 130, within two seconds and at any moment; so importing this module takes
no time. A command first gets the chance to leave in order (locks, leases and progress bars let go
of). After `GRACE_SECONDS` it ends wherever it is: what is stored is whole at every moment, so
nothing is lost. Python runs signal handlers between two steps of the interpreter only, and a model
may compute for minutes in one; so a thread waits for the signal, too.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from focusdpo.flows.terminal import LOADS, heard, printable, protect

if TYPE_CHECKING:
    import typer

JOBS = ("demo", "build-dataset", "train", "evaluate", "measure", "retrain", "rounds", "ablate")

MESSAGE = "stopped; what was finished is kept: run it again"
CODE = 130
GRACE_SECONDS = 1.2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    protect()
    with Interrupts(to_the_end=arguments is None), _heard(given):
        from focusdpo.flows.program import app

        try:
            _run(app, "focusdpo", given)
        except SystemExit as ended:
            if arguments is None and _loads():
                leave_at_once(ended.code if isinstance(ended.code, int) else bool(ended.code))
            raise


def _heard(given: Sequence[str]) -> AbstractContextManager[None]:
    """Says at once that a job has begun, and of any other command so if it takes a second: imports
    alone may."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes
    if not (first and given) or {"--help", "--version"} & set(given):
        return contextlib.nullcontext()
    line = f"{'focusdpo' if given[0].startswith('-') else given[0]} ..."
    if given[0] not in JOBS:
        return heard(line)
    sys.stderr.write(f"{line}\n")
    return contextlib.nullcontext()


def run_program(program: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    """Run one of our programs and exit with its code; bad input is one line on stderr."""
    protect()
    with Interrupts():
        _run(program, name, arguments)


def _run(program: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    from focusdpo.data_schemas.errors import ClusterGone, UserError
    from focusdpo.flows.terminal import in_words, is_users
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
    except RuntimeError as error:
        from focusdpo.flows.fit import lost_card, out_of_memory

        run = parsed[0].arguments.get("run") if parsed else None
        if out_of_memory.out_of_memory(error):
            _tell(out_of_memory.in_words(error, run), 2, "--json" in given)
        elif lost_card.card_is_lost(error):
            _tell(lost_card.in_words(error), 2, "--json" in given)
        else:
            raise
        sys.exit(2)
    except OSError as error:
        if not is_users(error):
            raise
        _tell(in_words(error), 2, "--json" in given)
        sys.exit(2)


def _loads() -> bool:
    """A model is still being loaded beside this thread."""
    return any(thread.name.startswith(LOADS) for thread in threading.enumerate())


def leave_at_once(code: int) -> NoReturn:
    """End without taking the interpreter apart; what was registered for the end is done."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(message: str, code: int, as_json: bool) -> None:
    sys.stderr.write(f"error: {printable(message)}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")


class Interrupts:
    """For the length of a block, Ctrl-C ends this process. To be entered in the main thread.

    `to_the_end`: also while the interpreter is taken apart after it, when others, as Prefect, may
    take seconds to store what they know."""

    def __init__(self, *, to_the_end: bool = False) -> None:
        self.stopping = False
        self._to_the_end = to_the_end

    def __enter__(self) -> Interrupts:
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler == signal.SIG_IGN:  # as for a job in the background of a script
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        signal.signal(signal.SIGINT, self._interrupt)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handler == signal.SIG_IGN:
            return
        if self.stopping:  # whatever the interrupt was turned into on its way here
            sys.stdout.flush()
            leave()
        if self._to_the_end:
            sys.stdout.flush()
            self.stopping = True  # nothing is left that could end in order
            return
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGINT, self._handler)
        os.close(self._write)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            leave()  # asked for again
        self.stopping = True
        raise KeyboardInterrupt

    def _watch(self) -> None:
        while signals := os.read(self._read, 64):
            if signal.SIGINT in signals:
                time.sleep(GRACE_SECONDS)
                leave()
        os.close(self._read)


def leave() -> NoReturn:
    """End this process, and say why where it is the one that speaks."""
    if os.environ.get("RANK", "0") == "0":
        cursor = "\r\x1b[?25h\x1b[K" if os.isatty(2) else ""  # a progress bar had hidden it
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, f"{cursor}{MESSAGE}\n".encode())
    os._exit(CODE)


if __name__ == "__main__":
    main()
