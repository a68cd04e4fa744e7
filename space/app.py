"""The demo as a Hugging Face Space, or `python app.py` anywhere.

FOCUSDPO_PRESET names the models (pocket runs on a CPU; flux-uno, flux2-klein, sdxl-ip-adapter need
a GPU), FOCUSDPO_ADAPTER the folder of the adapter; without it, `adapter/` beside this file when
there is one, and else the base is shown alone.
"""

import os
import sys
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.demo_app import DemoAppConfig, serve

beside = Path(__file__).parent / "adapter"
given = os.environ.get("FOCUSDPO_ADAPTER") or (str(beside) if beside.is_dir() else "")

if __name__ == "__main__":
    try:
        serve(
            DemoAppConfig(
                preset=os.environ.get("FOCUSDPO_PRESET", "pocket"),
                adapter=Path(given) if given else None,
            )
        )
    except UserError as error:
        sys.exit(f"error: {error}")
