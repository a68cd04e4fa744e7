"""A dataset given away: `datasets` and `webdataset` read the store's pixels, the card tells all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kept_root
import numpy as np
import pytest
import webdataset
import yaml
from datasets import Image, load_dataset
from evaluated import HOSTILE
from small_root import small_version

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.cli import main
from focusdpo.pipeline.subjects import registry
from focusdpo.sharing.dataset_export import card, export_dataset, without_paths
from focusdpo.sharing.hub import whole_folder
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import DatasetVersion, open_version

SPLIT = {"train": "train", "val": "validation"}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return small_version(tmp_path_factory.mktemp("root") / "data", scenes=18)


@pytest.fixture(scope="module")
def exported(version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "share"
    made = export_dataset(str(version.store.root), out)
    assert made.pairs == {
        SPLIT[name]: n for name, n in version.manifest["pairs"]["by_split"].items()
    }
    assert set(made.pairs) == {"train", "validation"}, "the fixture should have both splits"
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def same_as_store(version: DatasetVersion, record: dict, split: str) -> None:
    (row,) = [one for one in version.rows if one.pair_id == record["pair_id"]]
    sample = version.read(row)
    images, pair = sample.images, sample.pair
    assert SPLIT[row.split] == split and tuple(record["class_names"]) == row.class_names
    assert (record["prompt"], record["reason"]) == (pair.prompt, pair.reason)
    np.testing.assert_allclose(record["win_identity"], pair.win_identity, rtol=1e-6)
    for name, wanted in (("win", images.win), ("lose", images.lose)):
        np.testing.assert_array_equal(np.asarray(record[name]), wanted)
    np.testing.assert_array_equal(np.asarray(record["prior"]) > 127, images.prior)
    for name, many in (
        ("references", images.references),
        ("masks", images.masks),
        ("reference_masks", images.reference_masks),
    ):
        assert len(record[name]) == len(many)
        for found, wanted in zip(record[name], many, strict=True):
            array = np.asarray(found)
            np.testing.assert_array_equal(array > 127 if wanted.dtype == bool else array, wanted)


def test_datasets_loads_the_folder(version: DatasetVersion, exported: Path, tmp_path: Path) -> None:
    loaded = load_dataset(str(exported), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in loaded.items()} == {
        SPLIT[name]: count for name, count in version.manifest["pairs"]["by_split"].items()
    }
    assert isinstance(loaded["train"].features["win"], Image)
    assert isinstance(loaded["train"].features["references"].feature, Image)
    for split, records in loaded.items():
        for record in records:
            same_as_store(version, record, split)


def test_datasets_streams_the_folder(
    version: DatasetVersion, exported: Path, tmp_path: Path
) -> None:
    ids = set()
    for split in ("train", "validation"):
        for record in load_dataset(
            str(exported), split=split, streaming=True, cache_dir=str(tmp_path)
        ):
            same_as_store(version, record, split)
            ids.add(record["pair_id"])
    assert ids == version.ids()


def test_webdataset_reads_the_shards(version: DatasetVersion, exported: Path) -> None:
    """They are the store's, byte for byte."""
    ids = set()
    for split in ("train", "val"):
        tars = sorted((exported / "webdataset" / SPLIT[split]).glob("*.tar"))
        names = [path.name.partition("-")[2] for path in tars]
        assert names == [Path(one).name for one in version.shards(split)]
        for path, original in zip(tars, version.shards(split), strict=True):
            assert path.read_bytes() == Path(original).read_bytes()
        pipe = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False).decode("pil")
        for sample in pipe:
            (row,) = [one for one in version.rows if one.pair_id == sample["__key__"]]
            images = version.read(row).images
            np.testing.assert_array_equal(np.asarray(sample["win.png"]), images.win)
            np.testing.assert_array_equal(np.asarray(sample["ref1.png"]), images.references[1])
            assert sample["json"]["pair"]["prompt"] == row.prompt
            ids.add(sample["__key__"])
    assert ids == version.ids()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, int]]:
    """Tars of an exported split, whose pairs show one to three subjects; pair id -> how many."""
    folder = tmp_path_factory.mktemp("mixed")
    store = Store.open(folder / "data")
    kept_root.register(store, "one", "two", "three")
    version = kept_root.build(store, most=3)
    export_dataset(store.root, folder / "out")
    tars = sorted(map(str, (folder / "out" / "webdataset" / "train").glob("*.tar")))
    return tars, {row.pair_id: row.num_subjects for row in version.rows_of("train")}


def test_datasets_reads_every_reference_from_the_tars(
    mixed: tuple[list[str], dict[str, int]], tmp_path: Path
) -> None:
    """It takes its columns from the first tar."""
    tars, wanted = mixed
    assert set(wanted.values()) == {1, 2, 3}
    for streaming in (False, True):
        found = load_dataset(
            *("webdataset",), data_files={"train": tars}, split="train", streaming=streaming,
            cache_dir=str(tmp_path),
        )  # fmt: skip
        many = {
            one["__key__"]: sum(one[f"ref{at}.png"] is not None for at in range(3)) for one in found
        }
        assert many == wanted


@pytest.mark.slow
def test_more_workers_than_tars_are_as_the_card_says(
    mixed: tuple[list[str], dict[str, int]],
) -> None:
    tars, wanted = mixed
    card_text = (Path(tars[0]).parents[2] / "README.md").read_text()
    assert f"`train` has {len(tars)}" in card_text
    for message in ("No samples found in dataset", "empty_check=False"):
        assert message in card_text

    def loaded(workers: int, **options: bool) -> set[str]:
        data = webdataset.WebDataset(tars, shardshuffle=False, **options)
        loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers)
        return {one["__key__"] for one in loader}

    with pytest.raises(ValueError, match="No samples found in dataset"):
        loaded(len(tars) + 1)
    assert loaded(len(tars)) == loaded(len(tars) + 1, empty_check=False) == set(wanted)


@pytest.mark.parametrize("address", ["local", "memory://export-root"])
def test_retired_samples_are_left_out(address: str, tmp_path: Path) -> None:
    """Whoever reads a tar elsewhere has no index: a pair that counts no longer must not be in it.
    The root may be remote."""
    store = Store.open(str(tmp_path / "data") if address == "local" else address)
    kept_root.register(store, "one", "two", "three")
    before = kept_root.build(store)
    registry.remove(store, ["two"])
    version = kept_root.build(store)
    assert version.ids() < before.ids()
    shared = {row.shard for row in version.rows} & {
        row.shard for row in before.rows if row.pair_id not in version.ids()
    }
    assert shared, "the fixture should have a shard with retired samples"
    export_dataset(str(store.root), tmp_path / "out")
    tars = sorted(str(path) for path in (tmp_path / "out").rglob("*.tar"))
    found = {one["__key__"] for one in webdataset.WebDataset(tars, shardshuffle=False)}
    assert found == version.ids()
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["pair_id"]) == version.ids()


def test_same_version_same_bytes(version: DatasetVersion, exported: Path, tmp_path: Path) -> None:
    export_dataset(version.store.root, tmp_path / "again", version.id)
    assert bytes_of(tmp_path / "again") == bytes_of(exported)


def test_the_sums_are_those_of_all_files(exported: Path) -> None:
    told = dict(
        reversed(line.split("  ", 1)) for line in (exported / "SHA256SUMS").read_text().splitlines()
    )
    found = bytes_of(exported)
    del found["SHA256SUMS"]
    assert told == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def test_the_card_tells_what_it_should(version: DatasetVersion, exported: Path) -> None:
    _, front, text = (exported / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["configs"][0]["data_files"] == [
        {"split": name, "path": f"data/{name}-*.parquet"} for name in ("train", "validation")
    ]
    assert about["license"] == "other" and "focusdpo" in about["tags"]
    for part in (
        f"dataset version `{version.id}`", "18 of 36 would-be pairs were kept (50%)",
        "`missing_subject`: a subject was not found in the would-be winner | 18", "| MIT | 2 |",
        "| generate: generator | pocket |", "`toy`", "compose 7", "load_dataset(",
        "webdataset as wds",
        "## Known biases and limits", "| train |", "| validation |", "No person's review",
    ):  # fmt: skip
        assert part in text, part
    for at in range(4):
        assert f"](pictures/{at}.png)" in text and (exported / f"pictures/{at}.png").is_file()
    settings = yaml.safe_load((exported / "config.yaml").read_text())
    assert settings == {"suite": "pocket"}
    kept = b"".join(data for name, data in bytes_of(exported).items() if name != "SHA256SUMS")
    assert str(version.store.root).encode() not in kept


def test_what_a_manifest_says_is_one_value_of_the_front_matter(tmp_path: Path) -> None:
    small_version(tmp_path / "data", scenes=2)
    version = open_version(tmp_path / "data")
    forged = {**version.manifest, "id": "x\nlicense: mit\n---\n# `y`", "created": "2026\n# z"}
    text = card(dataclasses.replace(version, manifest=forged), {"train": 1}, [])
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["license"] == "other" and about["pretty_name"].endswith(forged["id"])
    assert "\n# y" not in body and "\n# `y" not in body and "\n# z" not in body


def test_words_of_users_are_text_in_the_card(tmp_path: Path) -> None:
    small_version(tmp_path / "data", scenes=2, prompt=f"{HOSTILE}\n# [x](http://evil.example)")
    export_dataset(tmp_path / "data", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    yaml.safe_load(text.split("---\n")[1])
    body = text.split("---\n", 2)[2]
    assert "alert" in body and "\\<script\\>" in body
    assert "<script" not in body.replace("\\<", "") and "\n# [x]" not in body
    assert "http://evil" not in body


def test_paths_of_the_builder_stay_at_home() -> None:
    given = {"root": "/home/me/data", "a": {"base": "/models/flux", "root": "x"}, "b": ["~/x", 3]}
    assert without_paths(given) == {"a": {"base": ".../flux", "root": "x"}, "b": [".../x", 3]}


def test_a_subject_without_licence_is_refused_or_told(tmp_path: Path, capsys) -> None:
    store = Store.open(tmp_path / "data")
    registry.add(
        store,
        [kept_root.bring(store, "free"), kept_root.bring(store, "whose", licence="")],
        kept_root.READ,
        now="t",
    )
    kept_root.build(store)
    with pytest.raises(UserError, match="no licence is stated for whose; write `licence:`"):
        export_dataset(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = ["export", "dataset", "--root", str(tmp_path / "data"), "--out"]
    with pytest.raises(SystemExit) as stop:
        main([*command, str(tmp_path / "out"), "--allow-unlicensed", "--json"])
    assert not stop.value.code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["unlicensed"] == ["whose"] and told["pairs"] == {"train": 6}
    assert "| not stated | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_a_damaged_shard_leaves_no_folder(tmp_path: Path) -> None:
    version = small_version(tmp_path / "data", scenes=6)
    shard = Path(version.shards()[-1])
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: the sample of pair .* not what was written"):
        export_dataset(tmp_path / "data", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from focusdpo.sharing.hub import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'README.md').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with whole_folder(out) as folder:
        (folder / "x").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert os.listdir(out) == ["x"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--out", "{full}"], "there is something already"),
        ([], "--to dir needs --out FOLDER"),
        (["--to", "hub"], "--to hub needs --repo"),
        (["--to", "hub", "--repo", "a/b/c"], "not a repository's name"),
        (["--to", "hub", "--repo", "alone"], "write OWNER/NAME"),
        (["--out", "{full}/new", "--version", "none"], "none"),
    ],
)
def test_bad_orders(
    version: DatasetVersion, exported: Path, given: list[str], message: str, capsys
) -> None:
    before = bytes_of(exported)
    arguments = [one.format(full=exported) for one in given]
    with pytest.raises(SystemExit) as stop:
        main(["export", "dataset", "--root", str(version.store.root), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert bytes_of(exported) == before and open_version(version.store).id == version.id
