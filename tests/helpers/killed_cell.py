"""Something to give a worker process in place of a cell. Importing it loads nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class KilledCell:
    """Its worker is killed the first time; the next one finds it finished."""

    marker: Path
    name: str = "killed"

    def finished(self) -> dict[str, Any]:
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"process": os.getpid()}
