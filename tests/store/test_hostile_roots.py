"""A root, a purge file or a run's outputs from a stranger: nothing outside is read, written or
deleted, whatever their files say and wherever their links lead."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kept_root import build, register

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.upkeep.garbage import collect
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.pipeline.upkeep.purge_plan import PurgePlan, read_plans
from focusdpo.pipeline.upkeep.repair import damages, mend
from focusdpo.store import tars
from focusdpo.store.addresses import files_of
from focusdpo.store.artefacts import Store
from focusdpo.store.leases import Holder, Lease, LeaseConfig, Leases
from focusdpo.store.local import LocalFiles
from focusdpo.store.manifests import (
    MANIFEST,
    TWIN,
    digests,
    latest_id,
    manifest_bytes,
    read_twin,
    twin_bytes,
    versions_of,
)
from focusdpo.store.outputs import copy
from focusdpo.store.versions import lineage_of, open_version
from focusdpo.studio.drafts import Drafts

OUTSIDE = ["../../victim.txt", "/victim.txt", "a/../../victim.txt", "..", "", "a//b", "x\0y"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.open(tmp_path_factory.mktemp("hostile") / "root")
    register(store, "rex", "tom")
    build(store)
    return Path(store.root)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "there" / "root")
    (tmp_path / "victim.txt").write_text("mine")
    return tmp_path / "there" / "root"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "victim.txt"


def forge(root: Path, change: Callable[[dict[str, Any]], None], **tables: bytes) -> Path:
    """A version as its author would have written it, digests and twin included."""
    folder = root / "versions" / str(latest_id(Store.open(root)))
    files = read_twin((folder / TWIN).read_bytes())
    assert files is not None
    manifest = json.loads(files.pop(MANIFEST))
    change(manifest)
    files |= {f"{name}.parquet": data for name, data in tables.items()}
    manifest["digests"] = digests(files)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    (folder / TWIN).write_bytes(twin_bytes({**files, MANIFEST: manifest_bytes(manifest)}))
    return folder


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_of_a_manifest_leads_nowhere_outside(root: Path, victim: Path, name: str) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["shards"][0]["name"] = name

    folder = forge(root, rename)
    found = damages(root)
    assert [one.what for one in found if str(folder / MANIFEST) in one.what], found
    mend(root)
    with pytest.raises(UserError, match="manifest.json: damaged .no shard can be called"):
        open_version(root)
    with pytest.raises(UserError, match="manifest.json: damaged"):
        collect(Store.open(root), keep_versions=1, min_age=0)
    assert victim.read_text() == "mine"


def test_a_subject_of_a_manifest_leads_nowhere_outside(root: Path) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["subjects"][0]["artefact"] = "../../../victim"

    forge(root, rename)
    with pytest.raises(UserError, match="manifest.json: damaged .no artefact can be called"):
        open_version(root)


def test_a_row_of_an_index_leads_nowhere_outside(root: Path, victim: Path) -> None:
    rows = list(open_version(root).rows)
    rows[0] = dataclasses.replace(rows[0], shard="../../../victim.txt", offset=0, size=4)
    forge(root, lambda _: None, index=to_parquet(rows, IndexRow))
    with pytest.raises(UserError, match="index.parquet: no shard can be called"):
        open_version(root)


def test_an_artefact_of_a_lineage_leads_nowhere_outside(root: Path) -> None:
    from focusdpo.data_schemas.runs import Artefact

    told = lineage_of(open_version(root))
    told[0] = dataclasses.replace(told[0], stage="../..", key="victim")
    forge(root, lambda _: None, lineage=to_parquet(told, Artefact))
    store = Store.open(root)
    with pytest.raises(UserError, match="lineage.parquet: no artefact can be called"):
        lineage_of(open_version(root))
    assert [one.stage for one in damages(root)] == ["versions"], "doctor tells of it"
    with pytest.raises(UserError, match="no artefact can be called"):
        store.artefact(told[0].stage, told[0].key)
    with pytest.raises(UserError, match="no artefact can be called"):
        store.drop("../..", "victim")


@pytest.mark.parametrize(
    "forged",
    [
        {"shards": {"../../victim.txt": None}},
        {"versions": {"../..": {"pairs": 1, "partitions": 0, "subjects": 0}}},
        {"artefacts": [("../..", "victim")]},
        {"artefacts": "everything"},
        {"subjects": {"rex": 1}},
    ],
)
def test_a_forged_purge_is_refused_by_name(root: Path, victim: Path, forged: Any) -> None:
    plan = PurgePlan(
        **{
            **{"subjects": ["rex"], "when": "t", "partitions": [], "artefacts": [], "shards": {}},
            **{"versions": {}, **forged},
        }
    )
    file = root / plan.path
    file.parent.mkdir()
    file.write_text(json.dumps(dataclasses.asdict(plan)))
    before = {path for path in root.rglob("*.tar")}
    for act in (
        lambda: purge(Store.open(root), ["tom"]),
        lambda: mend(root),
        lambda: damages(root),
    ):
        with pytest.raises(UserError, match=f"{plan.path}: "):
            act()
    assert victim.read_text() == "mine" and before == {path for path in root.rglob("*.tar")}
    file.rename(victim.parent / "away.json")
    assert purge(Store.open(root), ["tom"]).done, "what the message advises helps"


def test_a_registry_leads_nowhere_outside(root: Path) -> None:
    file = sorted((root / "registry").iterdir())[-1]
    values = json.loads(file.read_text())
    values["entries"][0]["artefact"] = "../../../victim"
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"{file.name}: damaged"):
        registry.read_registry(Store.open(root))


@pytest.mark.parametrize("name", [".tmp", "shards", "stages", "versions", "purges", ".leases"])
def test_a_folder_that_is_a_link_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    """What it points to keeps every file, whatever is asked of the root."""
    target = tmp_path / "theirs"
    if (root / name).exists():
        (root / name).rename(target)
    target.mkdir(exist_ok=True)
    (target / f"{os.uname().nodename}~1~0~thesis").write_text("mine")
    (target / "pairs-train-r1-0000000000000000.tar").write_text("mine")
    (root / name).symlink_to(target)
    before = sorted(path.relative_to(target) for path in target.rglob("*"))

    def everything() -> None:
        store = Store.open(root)
        build(store, setting=2)
        versions_of(store)
        collect(store, keep_versions=1, min_age=0)
        read_plans(store)

    with pytest.raises(UserError, match=f"{name}.*a link"):
        everything()
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == before


def test_no_file_is_read_written_or_deleted_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("mine")
    files = LocalFiles(tmp_path / "root")
    files.write("a/own", b"own")
    (tmp_path / "root/a/link").symlink_to(outside / "x")
    (tmp_path / "root/b").symlink_to(outside)
    for act in (
        lambda: files.read("a/link"), lambda: files.exists("a/link"), lambda: files.size("b/x"),
        lambda: files.read("b/x"), lambda: files.write("b/x", b""), lambda: files.remove("b/x"),
        lambda: files.swap("b/x", b"theirs", None), lambda: files.names("b"),
        lambda: files.listing("b"), lambda: files.prune("b"), lambda: files.age("b/x"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="through a link|a link"):
            act()
    assert set(files.below("")) - {".lock"} == {"a/own", "a/link", "b"}, "listed, not followed"
    files.write("a/link", b"own")  # takes the link's place
    (tmp_path / "root/a/other").symlink_to(outside / "x")
    files.remove("a/other")  # the link goes, and nothing else
    files.prune("a")
    assert files.read("a/own") == b"own" and (outside / "x").read_text() == "mine"


def test_a_folder_that_becomes_a_link_meanwhile_is_not_deleted_through(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "root")
    files.write("a/x", b"own")
    assert files.exists("a/x")
    (tmp_path / "root/a").rename(tmp_path / "away")
    (tmp_path / "root/a").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="a link"):
        files.remove("a/x")
    assert (tmp_path / "away/x").exists()


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    for files in (LocalFiles(tmp_path / "deep/root"), files_of("memory://hostile")):
        files.write("a/x", b"")
        for act in (lambda: files.remove(name), lambda: files.write(name, b""),  # noqa: B023
                    lambda: files.read(name), lambda: files.exists(name)):  # noqa: B023  # fmt: skip
            with pytest.raises(UserError, match="is no name of a file inside it"):
                act()
    assert (tmp_path / "victim.txt").read_text() == "mine"


def test_outputs_lead_nowhere_outside(tmp_path: Path) -> None:
    files = files_of("memory://outputs-hostile")
    for name in ("../victim.txt", "/victim.txt", "a/../../victim.txt"):
        kept = {name: {"at": "files/1/x", "size": 0, "blake2b": "0" * 32}}
        state = {"schema": 1, "number": 1, "writer": "w", "files": kept}
        files.write("outputs.json", json.dumps(state).encode())
        with pytest.raises(UserError, match="outputs.json: names a file outside its folder"):
            copy(files, lambda _: tmp_path / "copy", lambda _: True)


def test_a_picture_of_a_draft_leads_nowhere_outside(tmp_path: Path) -> None:
    (tmp_path / "victim.mask.png").write_text("mine")
    place = tmp_path / "drafts" / ("a" * 16)
    place.mkdir(parents=True)
    picture = {"id": "../../victim", "name": "x", "width": 1, "height": 1, "notes": []}
    draft = {"id": place.name, "pictures": [picture]}
    (place / "draft.json").write_text(json.dumps(draft))
    with pytest.raises(UserError, match="draft.json: no picture can be called"):
        Drafts(tmp_path / "drafts").remove(place.name, "../../victim")
    assert (tmp_path / "victim.mask.png").exists()


# Strangers' files and damage


def test_strangers_files_change_nothing(root: Path) -> None:
    store = Store.open(root)
    for folder in ("", "versions", "shards", "stages", "registry", "purges", "stages/subjects"):
        (root / folder).mkdir(exist_ok=True)
        for name in (".DS_Store", "Thumbs.db", "x (conflicted copy).tar"):
            (root / folder / name).write_bytes(b"\0" * 9)
    (root / "versions" / "copy of it").mkdir()
    os.mkfifo(root / "stages" / "pipe")
    assert damages(root) == []
    assert len(versions_of(store)) == 1 and "subjects" in store.stages()
    build(store, setting=3)
    collect(store, keep_versions=1, min_age=0)
    (root / "stages" / "pipe").unlink()
    assert purge(store, ["tom"]).done
    left = sorted(path.name for path in root.rglob("*conflicted*"))
    assert len(left) == 7, "what is not ours is not ours to delete"


def test_a_pipe_or_a_folder_where_a_file_belongs_is_named(root: Path) -> None:
    store = Store.open(root)
    (root / "LATEST").unlink()
    os.mkfifo(root / "LATEST")
    with pytest.raises(UserError, match="LATEST: not a file, where one belongs"):
        latest_id(store)
    (root / "LATEST").unlink()
    (root / "LATEST").mkdir()
    with pytest.raises(UserError, match="LATEST: not a file, where one belongs"):
        latest_id(store)


def test_json_without_a_bottom_is_damage(root: Path) -> None:
    deep = "[" * 100_000
    file = root / "versions" / str(latest_id(Store.open(root))) / MANIFEST
    file.write_text(deep)
    with pytest.raises(UserError, match="manifest.json: damaged .nested too deeply"):
        open_version(root)
    assert mend(root).restored, "the twin has the right bytes"
    (root / "dataset.json").write_text(deep)
    with pytest.raises(UserError, match="dataset.json: damaged"):
        Store.open(root)


def test_a_lease_for_ever_has_run_out(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for seconds in (1e18, float("inf"), float("nan"), -1.0, "long"):
        holder = Holder("elsewhere~1~2", "work", "then", seconds)  # type: ignore[arg-type]
        files.write(".leases/a/b.json", json.dumps(dataclasses.asdict(holder)).encode())
        os.utime(tmp_path / ".leases/a/b.json", (1e9, 1e9))
        answer = Leases(files, LeaseConfig()).ask("a/b", "work")
        assert isinstance(answer, Lease)
        answer.release()


def test_a_member_of_negative_size_is_damage() -> None:
    head = bytearray(tars.header("x", 0))
    head[124:136] = b"\xff" * 10 + b"\xfe\x00"  # base 256, below zero
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(UserError, match="size below zero"):
        list(tars.members(bytes(head) * 2, "it"))
    with pytest.raises(UserError, match="size below zero"):
        tars.first_size(bytes(head), "it")


def test_a_flipped_bit_in_the_registry_is_seen(root: Path) -> None:
    file = sorted((root / "registry").iterdir())[-1]
    whole = file.read_text()
    assert damages(root) == []
    file.write_text(whole.replace("CC0", "CC1", 1))
    with pytest.raises(UserError, match=f"{file.name}: damaged .*not what was written"):
        registry.read_registry(Store.open(root))
    assert [one.stage for one in damages(root)] == ["registry"]
    values = json.loads(whole)
    del values["blake2b"]  # as an earlier focusdpo wrote it
    file.write_text(json.dumps(values))
    assert registry.read_registry(Store.open(root)) is not None
