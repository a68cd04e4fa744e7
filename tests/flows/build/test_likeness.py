"""A build keeps validation pairs out whose winner training shows as well, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixed_root import mixed_version

from focusdpo.data_schemas.pairs import Pair
from focusdpo.flows.build.likeness import LEAKING, winners_apart
from focusdpo.flows.build.yields import Yields
from focusdpo.flows.config import BuildRun
from focusdpo.pipeline.shard import split_of
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.store.versions import DatasetVersion, lineage_of


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
    apart, rejects, notes = winners_apart(version.store, run, Yields([], pairs, [], [], []))
    assert [pair.id for pair in apart.pairs] == [first.id, second.id]
    assert rejects == {LEAKING: 1}
    assert "1 validation pair whose winner training nearly shows" in notes[0]
    keep = BuildRun(root=run.root, duplicates={"keep_in_validation": True})
    kept, rejects, notes = winners_apart(version.store, keep, Yields([], pairs, [], [], []))
    assert kept.pairs == pairs and rejects == {} and "stay there" in notes[0]


def test_rows_that_were_taken_over_count_as_well(version: DatasetVersion) -> None:
    run = BuildRun(root=str(version.store.root))
    rows = [np.asarray(version.read(row).images.win) for row in version.rows]
    assert len(rows) == len(version.rows)
    yields = Yields(list(version.rows), [], [], [], [])
    apart, rejects, _ = winners_apart(version.store, run, yields)
    assert (apart.rows, rejects) == (yields.rows, {})
    assert version.store.files.exists("hashes.parquet")
    purge(version.store, ["s0"])
    assert not version.store.files.exists("hashes.parquet")
