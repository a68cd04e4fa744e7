"""A checkpoint is whole or not there; a damaged one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

TENSORS = {"a/b": torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0)}


def test_round_trip_keeps_bits_and_numbers(tmp_path: Path) -> None:
    meta = {"guard": {"norms": [0.1, 1 / 3]}}
    save_checkpoint(tmp_path, 7, TENSORS, meta)
    got = newest_checkpoint(tmp_path)
    assert got is not None
    assert (got.step, got.meta) == (7, meta)
    assert all(torch.equal(got.tensors[name], value) for name, value in TENSORS.items())


def test_the_newest_two_are_kept_and_leftovers_ignored(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, TENSORS, {})
    (tmp_path / ".tmp-step-000020").mkdir()
    (tmp_path / ".tmp-step-000020" / "state.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000010", "step-000015"]
    save_checkpoint(tmp_path, 20, TENSORS, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000015", "step-000020"]
    save_checkpoint(tmp_path, 20, {"x": torch.ones(1)}, {})
    assert list(load_checkpoint(tmp_path / "step-000020").tensors) == ["x"]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 0.999), cut=st.booleans(), state=st.booleans())
def test_any_damage_is_an_error_that_names_it(
    tmp_path: Path, where: float, cut: bool, state: bool
) -> None:
    path = save_checkpoint(tmp_path, 5, TENSORS, {"guard": {}})
    file = path / ("state.safetensors" if state else "checkpoint.json")
    data = bytearray(file.read_bytes())
    place = int(where * len(data))
    if cut:
        data = data[:place]
    else:
        data[place] ^= 1 << 7
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"step-000005.*[Rr]emove"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_of_before_seals_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, TENSORS, {"guard": {}})
    about = json.loads((path / "checkpoint.json").read_bytes())
    del about["blake2b"]
    about["state_digest"] = about.pop("digests")["state.safetensors"]
    (path / "checkpoint.json").write_text(json.dumps(about))
    got = newest_checkpoint(tmp_path)
    assert got is not None and (got.step, got.meta) == (5, {"guard": {}})
