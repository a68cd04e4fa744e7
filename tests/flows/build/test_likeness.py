"""A build keeps validation pairs out whose winner training shows as well, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixed_root import mixed_version
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.pairs import Pair
from focusdpo.flows.build.likeness import LEAKING, compare_pairs
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.shard import split_of
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.store.versions import DatasetVersion, lineage_of, open_version


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    return mixed_version(tmp_path / "data")


def pairs_of(version: DatasetVersion) -> list[Pair]:
    lineage = [one for one in lineage_of(version) if one.stage == "pair"]
    return [pair for one in lineage for pair in version.store.read("pair", one.key, Pair)]


def test_only_validation_loses_pairs_and_only_by_default(version: DatasetVersion) -> None:
    import dataclasses

    run = BuildRun(root=str(version.store.root))
    names = [f"p{at}" for at in range(100)]
    val = next(name for name in names if split_of(name, run.shard) == "val")
    train = next(name for name in names if split_of(name, run.shard) == "train")
    first, second = pairs_of(version)[:2]
    pairs = [
        dataclasses.replace(first, partition=train),
        # The same winner once more, as a scene of validation.
        dataclasses.replace(first, id="leaks", scene_id="other", partition=val),
        dataclasses.replace(second, partition=val),
    ]
    alike = compare_pairs(version.store, run, pairs)
    assert alike.leaking == {"leaks"}
    assert "1 validation pair whose winner training nearly shows" in alike.notes[0]
    keep = BuildRun(root=run.root, duplicates={"keep_in_validation": True})
    kept = compare_pairs(version.store, keep, pairs)
    assert not kept.leaking and "stay there" in kept.notes[0]


def test_rows_that_were_taken_over_count_as_well(version: DatasetVersion) -> None:
    run = BuildRun(root=str(version.store.root))
    rows = [np.asarray(version.read(row).images.win) for row in version.rows]
    assert len(rows) == len(version.rows)
    assert not compare_pairs(version.store, run, [], version.rows).leaking
    assert version.store.files.exists("hashes.parquet")
    purge(version.store, ["s0"])
    assert not version.store.files.exists("hashes.parquet")


def test_a_build_leaves_them_out_and_counts_them(toy: Toy) -> None:
    """New pairs and rows of the version before alike."""
    near = {"shard": {"val_share": 0.5}, "duplicates": {"bits": 16, "keep_in_validation": True}}
    execute(prepare(resolve(BuildRun, toy.tree(**near))))
    everything = open_version(str(toy.root))
    assert everything.rows_of("val") and LEAKING not in everything.manifest["rejects"]
    near["duplicates"] = {"bits": 16}
    execute(prepare(resolve(BuildRun, toy.tree(**near))))
    version = open_version(str(toy.root))
    count = version.manifest["rejects"][LEAKING]
    assert everything.ids("train") == version.ids("train")
    assert 0 < count == len(everything.rows) - len(version.rows)
