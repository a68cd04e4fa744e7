"""Each version of code that exists, raised: what depends on it is made again, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import toy_suite
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas import shards
from focusdpo.flows import wiring
from focusdpo.flows.build import explain, yields
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline import complexity, shard
from focusdpo.pipeline.subjects import cutouts, ingest
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version

PRODUCT = ("data_schemas", "store", "model", "pipeline", "pocket", "evaluation", "flows")
ROOT = Path(__file__).parents[3]


def build(toy: Toy) -> BuildResult:
    wiring.resident_parts.cache_clear()
    return execute(prepare(resolve(BuildRun, toy.tree())))


def building_on(stage: str) -> set[str]:
    """The stage and all that read what it made, or what they made of it."""
    names = {stage}
    for one in STAGES.values():
        if names.intersection(one.needs):
            names.add(one.name)
    return names


def test_guidance_of_candidates_is_that_of_their_repaints_too() -> None:
    without, given = (
        resolve(BuildRun, {"root": "r", "generate": {"guidance": guidance}})
        for guidance in (None, 1.5)
    )
    changed = {
        name: stage.settings(given)
        for name, stage in STAGES.items()
        if stage.settings(given) != stage.settings(without)
    }
    assert set(changed) == {"generate", "disrupt"}
    assert changed["disrupt"]["guidance"] == changed["generate"]["generate"]["guidance"] == 1.5
    assert "guidance" not in STAGES["generate"].settings(without)["generate"]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_computed_again_with_all_that_build_on_it(
    toy: Toy, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STAGES[stage].module, "VERSION", STAGES[stage].version + 1)
    assert build(toy).made == dict.fromkeys(sorted(building_on(stage), key=list(STAGES).index), 6)
    assert build(toy).made == {}


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("VERSION", [complexity]),
        ("VERSION", [shard]),
        ("SAMPLE_VERSION", [shards, shard, yields, explain]),
    ],
    ids=["complexity", "shard", "sample"],
)
def test_all_shards_are_written_again_from_what_is_stored(
    toy: Toy, name: str, places: list[ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_version(toy.root).rows
    before = {row.shard for row in first}
    assert before and not build(toy).new
    raised = getattr(places[0], name) + 1
    for place in places:
        monkeypatch.setattr(place, name, raised)
    result = build(toy)
    assert result.made == {} and result.new and result.pairs == len(first)
    rows = open_version(toy.root, result.version).rows
    assert {row.shard for row in rows} == set(result.new_shards)
    assert not before.intersection(result.new_shards)
    assert not build(toy).new


@pytest.mark.usefixtures("built")
def test_subjects_are_read_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(toy.root))
    before = set(store.keys(ingest.STAGE))
    monkeypatch.setattr(ingest, "VERSION", ingest.VERSION + 1)
    build(toy)
    assert len(set(Store.open(str(toy.root)).keys(ingest.STAGE)) - before) == len(before) == 3


def test_masks_are_found_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(toy.root))
    picture = np.zeros((48, 48, 3), np.uint8)
    segmenter = toy_suite.PARTS["segmenter"]
    for _ in range(2):
        cutouts.StoredMasks(store, segmenter)(picture, class_name="disc")
    assert len(set(store.keys(cutouts.STAGE))) == 1
    monkeypatch.setattr(cutouts, "VERSION", cutouts.VERSION + 1)
    cutouts.StoredMasks(store, segmenter)(picture, class_name="disc")
    assert len(set(store.keys(cutouts.STAGE))) == 2


def test_no_version_is_read_nowhere() -> None:
    """Of adapters and protocols, too, whose fingerprints and keys have tests of their own."""
    defined: dict[str, Path] = {}
    read: set[str] = set()
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Name) and node.id == "VERSION":
                    if isinstance(node.ctx, ast.Store):
                        defined[path.stem] = path
                    else:
                        read.add(path.stem)
                elif isinstance(node, ast.Attribute) and node.attr == "VERSION":
                    assert isinstance(node.value, (ast.Name, ast.Attribute)), path
                    read.add(node.value.id if isinstance(node.value, ast.Name) else "")
    table = {stage.module.__name__.rpartition(".")[2] for stage in STAGES.values()}
    assert {"complexity", "shard", "ingest", "cutouts", *table} <= set(defined)
    assert set(defined) - read - table == set(), "raising it would change nothing"
