"""The focusdpo command on the toy suite: for tests that need a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from focusdpo.flows import wiring
from focusdpo.flows.cli import main

wiring.SUITES["pocket"] = "toy_suite"

if __name__ == "__main__":
    main()
