"""Two ablations in one folder would write into each other's cells."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.ablation.run import Ablate
from focusdpo.flows.config import AblateRun
from focusdpo.flows.runner import PlainSteps


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = AblateRun(out=str(tmp_path / "out"), root=str(tmp_path / "data"))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(UserError, match="another ablate"):
        Ablate(run).perform(PlainSteps())
    # The lock is let go of: now it is the dataset that is missing.
    with pytest.raises(UserError, match="data"):
        Ablate(run).perform(PlainSteps())
