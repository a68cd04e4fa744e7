"""Purge: no byte of a subject's pictures stays, others stay where they are, whenever it is
stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from kept_root import (
    READ,
    bring,
    build,
    files_with,
    noise,
    pictures_of,
    read_all,
    register,
    rows_of,
)

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.subjects import cutouts, registry
from focusdpo.pipeline.upkeep.garbage import building, reading
from focusdpo.pipeline.upkeep.purge import purge, refuse_unfinished, traces
from focusdpo.pipeline.upkeep.purge_plan import make_plan, read_plans, samples, without
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import latest_id, partitions_of, versions_of
from focusdpo.store.versions import DatasetVersion, lineage_of, open_version

NOW = "2026-02-03T04:05:06+00:00"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ant, bee and cow built; then without bee; then with dog. Bee has three old looks and is in
    no newest version."""
    store = Store.open(tmp_path_factory.mktemp("made") / "root")
    register(store, "ant", "bee", "cow")
    build(store)
    registry.update(store, [bring(store, "bee", look=1)], READ, now="t")
    build(store)
    registry.remove(store, ["bee"])
    build(store)
    register(store, "dog")
    build(store)
    bring(store, "bee", look=2)
    store.commit(cutouts.STAGE, "c" * 32, [], registry.Subject, images={"m.png": noise("m")})
    return Path(store.root)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "root")
    return Store.open(tmp_path / "root")


def all_versions(store: Store) -> list[DatasetVersion]:
    return [open_version(store, one["id"]) for one in versions_of(store)]


def contents(root: Path) -> dict[str, bytes]:
    """All files of a root that are to be equal after equal purges."""
    found = {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).parts[0].startswith((".", "swept"))
    }
    for name in [one for one in found if one.startswith("registry/")]:
        found[name] = json.dumps({**json.loads(found[name]), "when": ""}).encode()
    return found


def test_encoded_pictures_go_too(store: Store) -> None:
    """They do not tell whose they are, so all go; a training makes the others' again."""
    store.files.write("encoded/e1/aa.safetensors", b"latents of an ant")
    purge(store, ["ant"], now=NOW)
    assert store.files.listing("encoded") == {}


def test_no_byte_of_their_pictures_is_left(store: Store) -> None:
    needles = pictures_of(store, "bee")
    assert len(needles) >= 6 + 2 * 2 * 6, "three looks, and winners and losers of six sets"
    assert all(files_with(store.root, needle) for needle in needles.values())
    (store.root / "first.png").write_bytes(b"a contact sheet")
    plan = purge(store, ["bee"], now=NOW)
    assert plan.done
    for name, needle in needles.items():
        assert files_with(store.root, needle) == [], name
    assert not (store.root / "first.png").exists()
    assert store.keys(cutouts.STAGE) == []
    assert list(traces(store, plan)) == []


def test_every_other_pair_stays_readable_where_it_was(store: Store) -> None:
    before = {version.id: version for version in all_versions(store)}
    pixels = {name: read_all(version) for name, version in before.items()}
    purge(store, ["bee"], now=NOW)
    after = {version.id: version for version in all_versions(store)}
    assert after.keys() == before.keys()
    for name, version in after.items():
        gone = rows_of(before[name], "bee")
        assert [row for row in before[name].rows if row not in gone] == list(version.rows)
        wanted = {key: value for key, value in pixels[name].items() if key in version.ids()}
        assert read_all(version) == wanted
        version.verify()
        assert [one.id for one in version.subjects()] == [
            one["id"] for one in before[name].manifest["subjects"] if one["id"] != "bee"
        ]
        assert all(store.has(one.stage, one.key) for one in lineage_of(version))
        # A reader that opened the version before goes on with what it knows.
        for row in version.rows:
            assert before[name].read(row).pair.id == row.pair_id


def test_versions_tell_what_was_purged_and_when(store: Store) -> None:
    before = {one["id"]: one for one in versions_of(store)}
    plan = purge(store, ["bee"], now=NOW)
    first, second, third, fourth = versions_of(store)
    for manifest in (first, second):
        (note,) = manifest["purged"]
        assert (note["subjects"], note["when"]) == (["bee"], NOW)
        lost = before[manifest["id"]]["pairs"]["total"] - manifest["pairs"]["total"]
        assert note["lost"] == {"pairs": lost, "partitions": 3, "subjects": 1}
        assert lost == 6
        assert manifest["partitions"] == 3 == len(partitions_of(store, manifest["id"]))
        assert manifest["rejects"] == {"surplus": 3}
        assert manifest["stages"]["pair"]["artefacts"] == 3
        assert [one["id"] for one in manifest["subjects"]] == ["ant", "cow"]
    for manifest in (third, fourth):
        assert manifest["pairs"] == before[manifest["id"]]["pairs"]
        assert all(note["lost"] == dict.fromkeys(note["lost"], 0) for note in manifest["purged"])
    told = json.loads((store.root / plan.path).read_text())
    assert (told["subjects"], told["when"], told["done"]) == (["bee"], NOW, True)
    assert told["pictures"] == [] and told["artefacts"] == []


def test_the_registry_forgets_its_history_too(store: Store) -> None:
    registry.add(store, [bring(store, "bee")], READ)
    purge(store, ["bee"], now=NOW)
    (number,) = registry.state_numbers(store)
    state = registry.read_registry(store)
    assert state is not None and list(state.entries) == ["ant", "cow", "dog"]
    assert b"bee" not in store.files.read(registry.state_path(number))


def test_rewritten_shards_are_shards(store: Store) -> None:
    sizes = {path.name: path.stat().st_size for path in (store.root / "shards").iterdir()}
    plan = purge(store, ["bee"], now=NOW)
    rewritten = [name for name, left in plan.shards.items() if left is not None]
    assert rewritten and None in plan.shards.values()
    for name in rewritten:
        path = store.root / "shards" / name
        assert path.stat().st_size == sizes[name]
        known = {row.pair_id for v in all_versions(store) for row in v.rows if row.shard == name}
        with tarfile.open(path) as tar:
            assert "__purged__" in tar.getnames()
        stream = wds.WebDataset(str(path), shardshuffle=False)
        assert {one["__key__"] for one in stream} == known
        assert {one.pair_id for one in samples(path.read_bytes(), name)} == known
    for name, left in plan.shards.items():
        assert (store.root / "shards" / name).exists() == (left is not None)


def test_the_next_build_goes_on_without_them(store: Store) -> None:
    before = open_version(store)
    purge(store, ["bee"], now=NOW)
    shards = contents(store.root / "shards")
    again = build(store)
    assert (again.id, again.new) == (before.id, False), "the newest version never named bee"
    assert contents(store.root / "shards") == shards


def test_a_subject_that_comes_back_is_another_version(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    register(store, "ant", "cow")
    build(store)
    register(store, "bee")
    old = build(store)
    purge(store, ["bee"], now=NOW)
    assert len(open_version(store).rows) < len(old.rows)
    registry.add(store, [bring(store, "bee")], READ)
    new = build(store)
    assert new.new and new.id != old.id
    assert new.ids() == old.ids()
    new.verify()
    assert len(read_all(new)) == len(old.rows)


def test_two_with_the_same_pictures_go_together_or_not_at_all(store: Store) -> None:
    mask = noise("x")[..., 0] >= 0
    registry.ingest.put_subject(
        store, id="twin", class_name="dog", pictures=[(noise("bee", 1, 0), mask)]
    )
    before = contents(store.root)
    with pytest.raises(UserError, match="'twin' has the very same pictures.*purge it too"):
        purge(store, ["bee"], now=NOW)
    assert contents(store.root) == before
    assert purge(store, ["twin", "bee"], now=NOW).done


def test_unknown_names_and_running_builds_are_refused(store: Store) -> None:
    before = contents(store.root)
    with pytest.raises(UserError, match=r"holds nothing of a subject 'beee' \(near: bee\)"):
        purge(store, ["bee", "beee"], now=NOW)
    with building(Store.open(store.root)), pytest.raises(UserError, match="a build is at work"):
        purge(store, ["bee"], now=NOW)
    assert contents(store.root) == before


def test_no_sample_goes_from_under_a_training(store: Store) -> None:
    name = latest_id(store)
    assert name is not None
    before = contents(store.root)
    with reading(store.root, name, "a training") as version:
        with pytest.raises(UserError, match=f"a training reads version {name}, .* pairs of bee"):
            purge(store, ["bee"], now=NOW)
        version.verify()
    assert contents(store.root) == before
    assert purge(store, ["bee"], now=NOW).done


def test_the_pocket_worlds_pictures_go_too(store: Store) -> None:
    for name in ("bee", "bee-2"):
        (store.root / "subjects" / name).mkdir(parents=True)
        (store.root / "subjects" / name / "00.png").write_bytes(name.encode())
    purge(store, ["bee"], now=NOW)
    assert not (store.root / "subjects" / "bee" / "00.png").exists()
    assert (store.root / "subjects" / "bee-2" / "00.png").exists()


def test_a_picture_that_is_left_is_named(store: Store) -> None:
    key = next(
        k for k in store.keys("subjects") if store.artefact("subjects", k).partition == "bee"
    )
    (store.root / "a-copy.png").write_bytes(store.image_bytes(f"subjects/{key}/ref0.png"))
    with pytest.raises(UserError, match=r"pictures of bee are left in \['a-copy.png'\]; remove"):
        purge(store, ["bee"], now=NOW)
    with pytest.raises(UserError, match="the purge of bee was stopped; finish it first: .*purge"):
        refuse_unfinished(store)
    (store.root / "a-copy.png").unlink()
    assert purge(store, ["bee"]).when == NOW, "the same purge, finished"
    refuse_unfinished(store)


def test_a_purge_of_one_finishes_that_of_another(store: Store) -> None:
    plan = make_plan(store, ["bee"], NOW)
    plan.write(store)
    purge(store, ["dog"])
    assert [(one.subjects, one.done) for one in read_plans(store)] == [
        (["bee"], True), (["dog"], True),
    ]  # fmt: skip


def test_blanking_is_the_same_twice_and_tells_when_nothing_is_left(store: Store) -> None:
    plan = make_plan(store, ["bee"], NOW)
    for name, left in plan.shards.items():
        data = (store.root / "shards" / name).read_bytes()
        once = without(data, ["bee"], name)
        assert (once is None) == (left is None)
        if once is not None:
            assert len(once) == len(data)
            assert without(once, ["bee"], name) == once
            assert without(once, ["ant", "cow", "dog"], name) is None


KILLED = """
import os, sys
sys.path[:0] = sys.argv[3:]
import test_purge as t
left = int(sys.argv[2])
def reached(point):
    global left
    left -= 1
    if left == 0:
        print(point, flush=True)
        os._exit(9)
t.purge(t.Store.open(sys.argv[1]), ["bee"], now=t.NOW, reached=reached)
"""


@pytest.mark.parametrize("stop", [1, 4, 7, 12])
@pytest.mark.slow
def test_killed_at_any_point_it_ends_in_the_same_state(
    made: Path, tmp_path: Path, store: Store, stop: int
) -> None:
    purge(store, ["bee"], now=NOW)
    wanted = contents(store.root)
    root = tmp_path / "killed"
    shutil.copytree(made, root)
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1] / "helpers")]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(stop), *paths], capture_output=True, text=True
    )
    assert ended.returncode == 9, ended.stderr
    other = Store.open(root)
    latest = open_version(other)
    assert len(read_all(latest)) == len(latest.rows), "the newest version was readable all the time"
    assert latest_id(other) == latest_id(store)
    assert purge(other, ["bee"], now="2030-01-01T00:00:00+00:00").when == NOW
    assert contents(root) == wanted


def test_every_point_is_passed(store: Store) -> None:
    passed: list[str] = []
    purge(store, ["bee"], now=NOW, reached=passed.append)
    assert list(dict.fromkeys(passed)) == [
        "planned", "registry", "index", "shard", "manifest", "artefact", "reviews", "shown",
    ]  # fmt: skip
    assert len(passed) > 20
