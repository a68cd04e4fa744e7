"""The command line in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from focusdpo.flows.cli import main


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0 if code is None else 1), out, err


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command that must end well says with --json."""
    code, out, err = run([*arguments, "--json"], capsys)
    assert code == 0, out[-3000:] + err[-6000:]
    found: dict[str, Any] = json.loads(out.rstrip().splitlines()[-1])
    return found
