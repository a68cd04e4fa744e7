"""Pairs in the layouts of others, read as those projects' own documentation says.

Each reader here is written from that documentation alone: Flow-Factory's
guidance/datasets.md (strict V2 records), SimpleTuner's FLOW_DPO.md and DATALOADER.md (paired
folders), VeRL-Omni's offline DPO rows; the plain layout is read by `datasets` itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import pytest
from datasets import load_dataset
from mixed_root import mixed_version
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.cli import main
from focusdpo.sharing.pair_layouts import export_pairs
from focusdpo.sharing.pair_records import PairLayout
from focusdpo.store.versions import DatasetVersion

Pixels = np.ndarray


@dataclass
class Foreign:
    """A pair as another trainer sees it."""

    prompt: str
    win: Pixels
    lose: Pixels
    mask: Pixels | None = None
    references: list[Pixels] = field(default_factory=list)


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def flow_factory(folder: Path) -> Iterator[Foreign]:
    """Every key of a record is known, and each side has one picture."""

    def media(holder: dict, keys: set[str]) -> list[Pixels]:
        assert set(holder) == keys
        for one in holder["media"]:
            assert set(one) == {"type", "path"} and one["type"] == "image"
        return [pixels(folder / one["path"]) for one in holder["media"]]

    for line in (folder / "train.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        assert set(record) == {"schema_version", "input", "supervision", "metadata"}
        assert record["schema_version"] == 2
        assert set(record["supervision"]) == {"type", "chosen", "rejected"}
        assert record["supervision"]["type"] == "preference"
        (win,) = media(record["supervision"]["chosen"], {"media"})
        (lose,) = media(record["supervision"]["rejected"], {"media"})
        references = media(record["input"], {"prompt", "media"})
        yield Foreign(record["input"]["prompt"], win, lose, references=references)


def simpletuner(folder: Path) -> Iterator[Foreign]:
    """A conditioning picture has its subject's name below its own folder; white is trained on."""
    backends = json.loads((folder / "multidatabackend.json").read_text("utf-8"))
    sets = {one["id"]: one for one in backends}
    (preferred,) = (one for one in backends if one["dataset_type"] == "image")
    (texts,) = (one for one in backends if one["dataset_type"] == "text_embeds")
    assert texts["default"] and preferred["caption_strategy"] == "textfile"
    paired = {}
    for name in preferred["conditioning_data"]:
        assert sets[name]["dataset_type"] == "conditioning"
        assert sets[name]["source_dataset_id"] == preferred["id"]
        paired[sets[name]["conditioning_type"]] = folder / sets[name]["instance_data_dir"]
    wins = folder / preferred["instance_data_dir"]
    for file in sorted(wins.glob("*.png")):
        yield Foreign(
            file.with_suffix(".txt").read_text("utf-8").strip(),
            pixels(file),
            pixels(paired["reference_strict"] / file.name),
            pixels(paired["mask"] / file.name)[..., 0],
        )


def verl_omni(folder: Path) -> Iterator[Foreign]:
    """Paths count from the Parquet file; a winner never scores below its loser."""
    frame = pandas.read_parquet(folder / "train.parquet")
    for _, row in frame.iterrows():
        assert float(row["win_score"]) >= float(row["lose_score"])
        said = [one["content"] for one in row["prompt"] if one["role"] == "user"]
        assert row["extra_info"]["raw_prompt"] == "\n".join(said)
        yield Foreign(said[0], pixels(folder / row["img_win"]), pixels(folder / row["img_lose"]))


def plain(folder: Path) -> Iterator[Foreign]:
    rows = load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache")
    )
    for row in rows:
        yield Foreign(
            row["prompt"],
            np.asarray(row["win"]),
            np.asarray(row["lose"]),
            np.asarray(row["prior"]),
            [np.asarray(one) for one in row["references"]],
        )


READERS: dict[PairLayout, Callable[[Path], Iterator[Foreign]]] = {
    "plain": plain,
    "flow-factory": flow_factory,
    "simpletuner": simpletuner,
    "verl-omni": verl_omni,
}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return mixed_version(tmp_path_factory.mktemp("root") / "data")


@pytest.mark.parametrize("layout", READERS)
def test_each_layout_is_read_by_its_own_reader(
    layout: PairLayout, version: DatasetVersion, tmp_path: Path
) -> None:
    made = export_pairs(version.store.root, tmp_path / "out", layout)
    read = list(READERS[layout](tmp_path / "out"))
    assert made.pairs == {"train": len(version.rows), "val": 0}
    for found, row in zip(read, version.rows, strict=True):
        images = version.read(row).images
        assert found.prompt == row.prompt
        np.testing.assert_array_equal(found.win, images.win)
        np.testing.assert_array_equal(found.lose, images.lose)
        if found.mask is not None:
            np.testing.assert_array_equal(found.mask > 127, images.prior)
        for picture, wanted in zip(found.references, images.references, strict=False):
            np.testing.assert_array_equal(picture, wanted)
    shown = [len(one.references) for one in read]
    assert shown == ([2] * len(read) if layout in ("plain", "flow-factory") else [0] * len(read))


@pytest.mark.parametrize("layout", READERS)
def test_same_version_same_bytes(
    layout: PairLayout, version: DatasetVersion, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        export_pairs(version.store.root, tmp_path / name, layout)
    sums = [(tmp_path / name / "SHA256SUMS").read_bytes() for name in ("one", "two")]
    assert sums[0] == sums[1] and sums[0].count(b"\n") > 3 * len(version.rows)


def test_painted_pictures_are_marked_and_references_are_not(
    version: DatasetVersion, tmp_path: Path
) -> None:
    export_pairs(version.store.root, tmp_path / "out", "plain")
    export_pairs(version.store.root, tmp_path / "bare", "plain", marks=False)
    for kind, marked in (("win", True), ("lose", True), ("references", False), ("masks", False)):
        for file in (tmp_path / "out" / kind).iterdir():
            with Image.open(file) as image:
                assert ("trainedAlgorithmicMedia" in str(image.getxmp())) == marked, file
    row = version.rows[0]
    with Image.open(tmp_path / "bare" / "win" / f"{row.pair_id}.png") as image:
        assert image.getxmp() == {}


def test_the_command_tells_what_it_wrote(
    version: DatasetVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["export", "pairs", "--root", str(version.store.root), "--out", str(out)]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--layout", "flow-factory", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["layout"] == "flow-factory" and told["pairs"]["train"] == len(version.rows)
    with pytest.raises(UserError, match="there is something already"):
        export_pairs(version.store.root, out, "plain")
