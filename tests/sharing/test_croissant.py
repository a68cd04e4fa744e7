"""The machine-readable card: valid to mlcroissant, which reads the very pairs by it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mlcroissant
import numpy as np
import pytest
from small_root import small_version

from focusdpo.data_schemas.subjects import Origin
from focusdpo.sharing.dataset_export import export_dataset
from focusdpo.store.versions import DatasetVersion

RAI = (
    *("data_collection", "data_collection_type", "data_biases", "data_use_cases"),
    *("data_limitations", "data_social_impact", "personal_sensitive_information"),
    *("data_annotation_protocol", "machine_annotation_tools", "data_preprocessing_protocol"),
    "data_release_maintenance_plan",
)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return small_version(tmp_path_factory.mktemp("root") / "data", scenes=18)


@pytest.fixture(scope="module")
def exported(version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "share"
    export_dataset(version.store.root, out)
    return out


def test_mlcroissant_finds_nothing_wrong_and_reads_the_pairs(
    version: DatasetVersion, exported: Path
) -> None:
    dataset = mlcroissant.Dataset(str(exported / "croissant.json"))
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    rows = {row.pair_id: row for row in version.rows}
    seen = set()
    for name in ("train", "validation"):
        for record in dataset.records(name):
            told = {key.removeprefix(f"{name}/"): value for key, value in record.items()}
            row = rows[told["pair_id"].decode()]
            assert told["prompt"].decode() == row.prompt
            assert told["margin"] == pytest.approx(row.margin, abs=1e-6)
            np.testing.assert_array_equal(np.asarray(told["win"]), version.read(row).images.win)
            seen.add(row.pair_id)
    assert seen == set(rows)


def test_the_responsible_ai_fields_are_there(exported: Path) -> None:
    metadata = mlcroissant.Dataset(str(exported / "croissant.json")).metadata
    empty = [name for name in RAI if not getattr(metadata, name)]
    assert empty == []
    assert metadata.license == ["MIT"]


def test_statistics_are_those_of_each_shard(version: DatasetVersion, exported: Path) -> None:
    told = json.loads((exported / "statistics.json").read_text())["shards"]
    assert sum(one["pairs"] for one in told) == len(version.rows)
    for one in told:
        data = (exported / one["file"]).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        own = [row for row in version.rows if row.shard == Path(one["file"]).name.partition("-")[2]]
        assert len(own) == one["pairs"] > 0
        margins = [row.margin for row in own]
        assert one["margin"]["mean"] == pytest.approx(np.mean(margins), abs=1e-6)
        assert one["margin"]["high"] == pytest.approx(max(margins), abs=1e-6)
        assert one["by_class"] == {"cat": len(own), "dog": len(own)}


def test_cards_tell_of_sources_and_persons(tmp_path: Path) -> None:
    version = small_version(
        tmp_path / "data", origin=Origin(source="our | studio", person=True, consent="Ada, 2026")
    )
    export_dataset(version.store.root, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| s0 |")]
    assert "Ada, 2026" in row and row.count("|") - row.count("\\|") == 5
    metadata = mlcroissant.Dataset(str(tmp_path / "out" / "croissant.json")).metadata
    assert "1 of the subjects" in metadata.personal_sensitive_information[0]
