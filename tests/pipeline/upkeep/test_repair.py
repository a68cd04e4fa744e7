"""A version's own files, LATEST and dataset.json survive damage: the very bytes come back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_root import bring, build, partition, register
from s3_server import s3_server

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.upkeep.garbage import collect, remove_version
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.pipeline.upkeep.repair import damages, mend
from focusdpo.store import manifests as twins
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import sealed
from focusdpo.store.local import LocalFiles
from focusdpo.store.manifests import (
    latest_id,
    partitions_of,
    read_twin,
    reviewed_of,
    twin_bytes,
    versions_of,
)
from focusdpo.store.versions import lineage_of, open_version

PARTS = {
    "index.parquet",
    "lineage.parquet",
    "partitions.parquet",
    "config.yaml",
    "manifest.json",
    "twin.tar",
}
ADVICE = "Run `focusdpo doctor --root .* --repair`"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions."""
    store = Store.open(tmp_path_factory.mktemp("made") / "root")
    register(store, "ant", "bee")
    build(store)
    build(store, setting=1)
    register(store, "cow")
    build(store, setting=1)
    return Path(store.root)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "root")
    return Store.open(tmp_path / "root")


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).parts[0].startswith((".", "swept"))
    }


def folder_of(store: Store, at: int = -1) -> Path:
    return Path(store.root) / "versions" / versions_of(store)[at]["id"]


def test_a_version_has_a_twin_of_all_its_files(store: Store) -> None:
    for manifest in versions_of(store):
        folder = Path(store.root) / "versions" / manifest["id"]
        files = read_twin((folder / "twin.tar").read_bytes())
        assert files is not None and files.keys() == PARTS - {"twin.tar"}
        assert files == {name: (folder / name).read_bytes() for name in files}
        assert manifest["digests"] == twins.digests(
            {name: data for name, data in files.items() if name != "manifest.json"}
        )
    assert damages(store.root) == []
    before = contents(Path(store.root))
    done = mend(store.root)
    assert (done.restored, done.dropped, done.lost) == ([], [], [])
    assert contents(Path(store.root)) == before


NAMES = st.from_regex(r"[a-z]{1,8}\.(parquet|yaml|json)", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=4), st.data())
def test_no_change_of_a_twin_goes_unnoticed(files: dict[str, bytes], data: st.DataObject) -> None:
    whole = twin_bytes(files)
    assert read_twin(whole) == files
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    assert read_twin(whole[:at]) is None
    assert read_twin(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]) is None
    assert read_twin(whole + b"\0") is None


def test_a_twin_names_no_file_elsewhere() -> None:
    assert read_twin(twin_bytes({"../../x.json": b"{}"})) is None


@st.composite
def damage(draw: st.DrawFn) -> tuple[int, str, str, float, int]:
    """Version, file, way, where, and by what a byte changes."""
    name = draw(st.sampled_from([*sorted(PARTS), "LATEST", "dataset.json"]))
    way = draw(st.sampled_from(["flipped", "truncated", "emptied", "deleted", "random"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    return draw(st.integers(0, 2)), name, way, where, draw(st.integers(1, 255))


def where(one: tuple[int, str, str, float, int]) -> tuple[int, str]:
    """No file is damaged twice."""
    return (one[0] if one[1] in PARTS else 0, one[1])


def strike(root: Path, folder: Path, one: tuple[int, str, str, float, int]) -> None:
    _, name, way, share, flip = one
    path = (folder if name in PARTS else root) / name
    data = path.read_bytes()
    at = int(share * len(data))
    if way == "deleted":
        path.unlink()
    else:
        changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        new = {"emptied": b"", "truncated": data[:at], "random": bytes([flip]) * len(data)}
        path.write_bytes(new.get(way, changed))


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(damage(), min_size=1, max_size=3, unique_by=where))
def test_any_damage_is_found_and_mended_to_the_byte(
    made: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ones: list[tuple[int, str, str, float, int]],
) -> None:
    """One file of each version, and LATEST and dataset.json beside; more of one version where its
    twin is whole."""
    root = tmp_path_factory.mktemp("damaged") / "root"
    shutil.copytree(made, root)
    before = contents(root)
    ids = [one["id"] for one in versions_of(Store.open(root))]
    alone = {one[0] for one in ones if one[1] == "twin.tar"}
    ones = [one for one in ones if one[1] not in PARTS - {"twin.tar"} or one[0] not in alone]
    for one in ones:
        strike(root, root / "versions" / ids[one[0]], one)
    assert contents(root) != before
    try:
        found = damages(root)
    except UserError as error:
        assert "doctor --root" in str(error)
    else:
        assert found and all("doctor --root" in one.what for one in found)
    done = mend(root)
    assert len(done.restored) == len(ones) and not done.lost and not done.dropped
    assert contents(root) == before
    assert damages(root) == []
    shutil.rmtree(root)


READ: dict[str, Callable[[Store], object]] = {
    "index.parquet": open_version,
    "lineage.parquet": lambda store: lineage_of(open_version(store)),
    "partitions.parquet": lambda store: partitions_of(store, str(latest_id(store))),
    "manifest.json": open_version,
}


@pytest.mark.parametrize("way", ["truncated", "emptied", "deleted"])
@pytest.mark.parametrize("name", READ)
def test_who_stumbles_on_damage_is_told_what_to_do(store: Store, name: str, way: str) -> None:
    folder = folder_of(store)
    strike(Path(store.root), folder, (0, name, way, 0.4, 1))
    with pytest.raises(UserError, match=f"{name}.*{ADVICE}"):
        READ[name](store)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"../../etc\n"])
def test_a_damaged_latest_is_no_new_root(store: Store, data: bytes) -> None:
    wanted = latest_id(store)
    (Path(store.root) / "LATEST").write_bytes(data)
    for one in (lambda: open_version(store), lambda: build(store, setting=2)):
        with pytest.raises(UserError, match=f"LATEST: damaged.*{ADVICE}"):
            one()
    mend(store.root)
    assert latest_id(store) == wanted


def test_a_lost_latest_is_no_new_root(store: Store) -> None:
    (Path(store.root) / "LATEST").unlink()
    with pytest.raises(UserError, match=f"LATEST: damaged.*missing.*{ADVICE}"):
        open_version(store)


def test_latest_that_names_an_older_version_is_known_by_what_is_left_of_it(store: Store) -> None:
    older = versions_of(store)[0]["id"]
    for left in (older[:5], f"{older[:7]}~{older[8:]}\n"):
        (Path(store.root) / "LATEST").write_text(left)
        assert mend(store.root).restored == ["LATEST"]
        assert latest_id(store) == older


def test_a_first_publish_that_was_stopped_is_no_damage(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    register(store, "ant")
    build(store)
    (tmp_path / "root" / "LATEST").unlink()
    assert damages(store.root) == []
    assert latest_id(store) is None
    assert build(store).new


class Stopped(BaseException):
    """As a kill at that moment would leave it."""


@pytest.mark.parametrize("before", sorted(PARTS) + ["LATEST"])
def test_a_publish_that_was_stopped_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    store = Store.open(tmp_path / "root")
    register(store, "ant")
    build(store)
    real = LocalFiles.write

    def stopping(self: LocalFiles, path: str, *given: bytes, **more: bool) -> bool:
        if path.rpartition("/")[2] == before:
            raise Stopped
        return real(self, path, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "write", stopping)
        with pytest.raises(Stopped):
            build(store, setting=1)
    assert len(open_version(store).rows) == 2, "the one before"
    version = build(store, setting=1)
    assert version.new and damages(store.root) == []
    folder = folder_of(store)
    assert {path.name for path in folder.iterdir()} >= PARTS


def test_a_version_whose_publish_stopped_before_its_twin_gets_one(store: Store) -> None:
    path = folder_of(store, 0) / "twin.tar"
    whole = path.read_bytes()
    path.unlink()
    build(store, setting=2)
    (found,) = damages(store.root)
    assert found.key.endswith("twin.tar")
    assert [path.rpartition("/")[2] for path in mend(store.root).restored] == ["twin.tar"]
    assert path.read_bytes() == whole


def test_a_root_on_s3_is_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        root = f"{server.make_bucket('mended')}/deep"
        store = Store.open(root)
        register(store, "ant")
        old, new = build(store), build(store, setting=1)
        before = server.objects("mended")
        for name in (
            f"versions/{old.id}/manifest.json",
            f"versions/{new.id}/index.parquet",
            f"versions/{new.id}/lineage.parquet",
            "LATEST",
            "dataset.json",
        ):
            server.put("mended", f"deep/{name}", before[f"deep/{name}"][:-3] + b"~~~")
        with pytest.raises(UserError, match=ADVICE):
            damages(root)
        assert len(mend(root).restored) == 5
        assert server.objects("mended") == before, "and no lease is left"
        assert damages(root) == []


def test_what_has_no_right_copy_is_named_and_can_be_built_again(store: Store) -> None:
    folder = folder_of(store)
    for name in ("index.parquet", "twin.tar"):
        (folder / name).write_bytes(b"x")
    (found,) = damages(store.root)
    assert (
        f"index.parquet cannot be mended.*remove the folder {folder}".split(".*")[0] in found.what
    )
    done = mend(store.root)
    assert not done.restored and [one.key for one in done.lost] == [folder.name]
    shutil.rmtree(folder)
    assert mend(store.root).restored == ["LATEST"]
    again = build(store, setting=1)
    assert again.new and again.id == folder.name
    assert damages(store.root) == []


def test_a_file_damaged_beside_its_twin_is_mended_where_the_twin_is_not(store: Store) -> None:
    before = contents(Path(store.root))
    folder = folder_of(store)
    (folder / "config.yaml").write_bytes(b"x")
    twin = (folder / "twin.tar").read_bytes()
    (folder / "twin.tar").write_bytes(twin[:-1] + b"x")
    assert len(mend(store.root).restored) == 2
    assert contents(Path(store.root)) == before


def as_before_twins(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digests"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "twin.tar").unlink()


def test_versions_of_before_there_were_twins_are_whole(store: Store) -> None:
    for at in range(3):
        as_before_twins(folder_of(store, at))
    before = contents(Path(store.root))
    assert damages(store.root) == []
    assert mend(store.root).restored == []
    assert contents(Path(store.root)) == before
    assert reviewed_of(store, str(latest_id(store))) == []
    (folder_of(store) / "index.parquet").write_bytes(b"x")
    (found,) = damages(store.root)
    assert "remove the folder" in found.what


def test_gc_takes_no_version_that_lost_its_manifest(store: Store) -> None:
    folder = folder_of(store, 0)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"{folder.name}/manifest.json: damaged.*{ADVICE}"):
        collect(store, keep_versions=2, min_age=0)
    mend(store.root)
    assert list(collect(store, keep_versions=2, min_age=0).versions) == [folder.name]


def test_a_version_that_is_being_removed_does_not_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions_of(store)[0]["id"]
    real = LocalFiles.remove

    def stopping(self: LocalFiles, path: str, tag: str | None = None) -> None:
        real(self, path, tag)
        if path.endswith("manifest.json"):
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "remove", stopping)
        with pytest.raises(Stopped):
            remove_version(store, name)
    assert damages(store.root) == [] and mend(store.root).restored == []
    assert len(versions_of(store)) == 2


def test_a_twin_forgets_who_is_purged(store: Store) -> None:
    purge(store, ["bee"])
    assert damages(store.root) == []
    for manifest in versions_of(store):
        twin = Path(store.root) / "versions" / manifest["id"] / "twin.tar"
        files = read_twin(twin.read_bytes())
        assert files is not None
        rows = from_parquet(files["index.parquet"], IndexRow)
        assert rows and not any("bee" in row.subject_ids for row in rows)
        assert "bee" not in [one["id"] for one in json.loads(files["manifest.json"])["subjects"]]
    assert mend(store.root).restored == []


@pytest.mark.slow
def test_a_purge_that_was_stopped_is_not_undone(store: Store) -> None:
    """At whatever point: `doctor --repair` brings nothing back, and the same purge ends it."""
    passed: list[str] = []
    root = Path(store.root)
    calm = root.with_name("calm")
    shutil.copytree(root, calm)
    purge(Store.open(calm), ["bee"], now="t", reached=passed.append)
    for stop in range(len(passed)):
        other = root.with_name(f"stopped-{stop}")
        shutil.copytree(root, other)
        left = iter(range(stop))

        def reached(_: str, left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise Stopped

        with pytest.raises(Stopped):
            purge(Store.open(other), ["bee"], now="t", reached=reached)
        rows = {
            one["id"]: open_version(other, one["id"]).ids()
            for one in versions_of(Store.open(other))
        }
        mend(other)
        for name, ids in rows.items():
            assert open_version(other, name).ids() == ids
        purge(Store.open(other), ["bee"], now="t")
        assert {k: v for k, v in contents(other).items() if "registry" not in k} == {
            k: v for k, v in contents(calm).items() if "registry" not in k
        }
        shutil.rmtree(other)


def test_nothing_is_purged_from_a_damaged_version(store: Store) -> None:
    path = folder_of(store, 0) / "config.yaml"
    whole = path.read_bytes()
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=f"config.yaml: damaged.*{ADVICE}"):
        purge(store, ["bee"])
    mend(store.root)
    assert path.read_bytes() == whole
    assert purge(store, ["bee"]).done


@pytest.mark.parametrize("data", [None, b"", b'{"kind": "x"}', b"[]"])
def test_a_lost_header_is_written_anew_where_all_else_is_there(
    store: Store, data: bytes | None
) -> None:
    path = Path(store.root) / "dataset.json"
    whole = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=f"dataset.json.*{ADVICE}"):
        Store.open(store.root)
    assert mend(store.root).restored == ["dataset.json"]
    assert path.read_bytes() == whole


def test_a_header_of_another_layout_is_left_alone(store: Store) -> None:
    path = Path(store.root) / "dataset.json"
    path.write_text('{"kind": "focusdpo dataset", "schema_version": 99}\n')
    with pytest.raises(UserError, match=f"schema version 99, but its versions.*{ADVICE}"):
        Store.open(store.root)
    for at in (path.parent / "versions").glob("*/manifest.json"):
        at.write_text(json.dumps({**json.loads(at.read_text()), "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99, this focusdpo reads"):
        mend(store.root)


def test_a_folder_of_somebody_else_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    with pytest.raises(UserError, match="not a FocusDPO dataset root"):
        mend(tmp_path)
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(UserError, match="dataset.json: damaged.*; remove|remove"):
        mend(tmp_path)
    assert (tmp_path / "dataset.json").read_text() == "mine"


def flipped(path: Path, at: int) -> None:
    """One bit of a file turned, which leaves it JSON."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_of_a_review_is_told_and_left_to_a_person(store: Store) -> None:
    ((pair, *_), _) = partition(store, [bring(store, "ant")], 0)
    review = Audit(store).record(pair, "reject", "ann", reason="its ears are gone")
    (path,) = (Path(store.root) / "reviews").rglob("*.json")
    assert Audit(store).reviews() == [review] and not damages(store.root)
    flipped(path, path.read_bytes().index(b"ears"))
    with pytest.raises(UserError, match=f"{path}: not a review .its checksum is another"):
        Audit(store).reviews()
    (found,) = damages(store.root)
    assert str(path) in found.what and mend(store.root).lost == [found]
    assert path.exists()
    values = dataclasses.asdict(review)
    path.write_text(json.dumps(values))
    assert Audit(store).reviews() == [review], "of before there were checksums"


def test_a_flipped_bit_of_what_a_build_left_is_found_and_it_goes(store: Store) -> None:
    name = build(store).id
    path = Path(store.root) / "versions" / name / "build.json"
    path.write_bytes(sealed({"version": name, "pairs": 24}))
    assert not damages(store.root)
    flipped(path, path.read_bytes().index(b"24"))
    (found,) = damages(store.root)
    assert str(path) in found.what
    assert mend(store.root).restored == [f"versions/{name}/build.json"]
    assert not path.exists() and not damages(store.root)
