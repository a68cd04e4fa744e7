"""The check of the packaged models, and the parts by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket import loading
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.weightfiles import WEIGHTS


def test_a_figure_knows_whether_it_is_reached() -> None:
    assert Figure("m", "f", 0.8, ">= 0.80").ok
    assert not Figure("m", "f", float("nan"), ">= 0.80").ok
    assert not Figure("m", "f", 0.5, "< 0.50").ok
    assert Figure("m", "f", 3.0, "").ok


def test_unknown_parts_and_misplaced_adapters_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="there are generator"):
        loading.build("painter")
    with pytest.raises(UserError, match="takes no adapter"):
        loading.fingerprint("clip", adapter=tmp_path)
    with pytest.raises(UserError, match="holds no adapter"):
        loading.fingerprint("generator", adapter=tmp_path)


def test_fingerprints_cost_no_torch() -> None:
    code = (
        "import sys; from focusdpo.pocket import loading;"
        "print(loading.fingerprint('identity'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_a_built_part_has_the_fingerprint_that_was_planned_and_is_built_once() -> None:
    for name in ("segmenter", "identity", "clip", "judge"):
        assert loading.build(name).fingerprint == loading.fingerprint(name)
        assert loading.build(name) is loading.build(name)


@pytest.mark.slow
def test_the_packaged_autoencoder_reaches_what_is_wanted() -> None:
    from focusdpo.pocket.figures import autoencoder_figures

    assert [figure for figure in autoencoder_figures(WEIGHTS) if not figure.ok] == []
