"""Fault injection: the real commands, killed and damaged at moments that a seed chooses, and what
was lost. `python -m tests.chaos --help`; docs/chaos.md tells what is asserted and what was found.
"""

import sys
from pathlib import Path

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
if str(HELPERS) not in sys.path:  # where the toy suite and the S3 server lie
    sys.path.append(str(HELPERS))
