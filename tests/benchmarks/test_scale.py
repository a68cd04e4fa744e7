"""`python -m benchmarks --scale` in small: real commands on a real root."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale import scale_figures
from focusdpo.data_schemas.errors import UserError


@pytest.mark.slow
def test_a_subject_more_touches_nothing_else(tmp_path: Path) -> None:
    figures = {one.name: one for one in scale_figures(tmp_path / "out", 10, candidates=160)}
    own = figures["one subject more: its partitions"].value
    assert own >= 1 and figures["partitions of the root"].value >= 10
    assert figures["one subject more: stages of partitions computed"].value == 7 * own
    assert figures["one subject more: computed beyond its partitions"].value == 0
    assert figures["one subject more: older artefacts and shards changed"].value == 0
    assert figures["candidates planned"].value == pytest.approx(160, rel=0.5)
    assert figures["plan, everything there: whole command"].value < 120, "however busy it is here"


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="new --out"):
        scale_figures(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
