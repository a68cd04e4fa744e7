"""The focusdpo command on the toy suite: for tests that need a process of its own. TOY_SUITE names
another of these helpers instead. Workers that it starts import this module and know the suite, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from focusdpo.flows import wiring
from focusdpo.flows.cli import main

wiring.SUITES["pocket"] = os.environ.get("TOY_SUITE", "toy_suite")

if __name__ == "__main__":
    main()
