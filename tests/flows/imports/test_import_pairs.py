"""Pairs from elsewhere become a dataset version: what is told is kept to the pixel, what is not is
found, and what cannot be used is told by file and line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_suite
import toy_world
from mixed_root import mixed_version
from PIL import Image
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.cli import main
from focusdpo.flows.config import ImportRun
from focusdpo.flows.imports.run import import_pairs
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.pipeline.upkeep.repair import damages
from focusdpo.sharing.pair_layouts import export_pairs
from focusdpo.sharing.pair_records import PairLayout
from focusdpo.store.versions import DatasetVersion, open_version

LAYOUTS: tuple[PairLayout, ...] = ("plain", "flow-factory", "simpletuner", "verl-omni")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return mixed_version(tmp_path_factory.mktemp("root") / "data")


def losses(version: DatasetVersion, out: Path) -> list[float]:
    config = TrainConfig.model_validate(SETTINGS | {"steps": 4})  # each pair twice at least
    train(
        tiny_backbone(image_size=(96, 96)),
        version.samples(),
        config,
        out,
        dataset_version=version.id,
    )
    return [float(row["loss"]) for row in table_rows(out)]


@pytest.fixture(scope="module")
def curve(version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(version, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_trains_alike(
    layout: PairLayout, version: DatasetVersion, curve: list[float], tmp_path: Path
) -> None:
    """Same pairs, same masks: the same loss at every step."""
    export_pairs(version.store.root, tmp_path / "away", layout)
    run = ImportRun(root=str(tmp_path / "back"))
    result = import_pairs(run, [tmp_path / "away"])
    assert (result.problems, result.rejects) == ([], {})
    back = open_version(tmp_path / "back")
    assert back.ids() == version.ids()
    assert losses(back, tmp_path / "run") == pytest.approx(curve, abs=1e-4)
    assert max(curve) - min(curve) > 1e-3, "a flat curve would show nothing"
    assert damages(tmp_path / "back") == []
    again = import_pairs(run, [tmp_path / "away"])
    assert (again.version, again.new) == (result.version, False)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that measure the toy world's pixels."""
    monkeypatch.setattr(wiring, "suite", lambda family: toy_suite)
    wiring.resident_parts.cache_clear()
    yield
    wiring.resident_parts.cache_clear()


HUES = {"disc": 0.0, "square": 120.0}


def write_toys(folder: Path) -> list[dict[str, str]]:
    """Three pairs without any mask: a repainted loser, one painted anew, and a winner that lacks a
    subject."""
    folder.mkdir(parents=True)
    for word, hue in HUES.items():
        mask = toy_world.shape_mask(word, 24, 24, radius=12)
        picture = np.full((48, 48, 3), 255, np.uint8)
        picture[mask] = toy_world.colour_of(hue)
        Image.fromarray(picture).save(folder / f"{word}.png")
    right = [("disc", 0.0, 0), ("square", 120.0, 2)]
    scenes = {
        "win": (right, 1), "repainted": ([("disc", 240.0, 0), right[1]], 1),
        "anew": ([("disc", 240.0, 1), ("square", 120.0, 0)], 2), "lacking": (right[:1], 3),
    }  # fmt: skip
    for name, (things, seed) in scenes.items():
        picture = toy_world.picture(things, seed)
        if name == "anew":
            picture[picture.std(axis=2) == 0] += 60  # another ground
        Image.fromarray(picture).save(folder / f"{name}.png")
    common = {"prompt": "a disc and a square on grey"}
    common |= {"reference_1": "disc.png", "class_1": "disc", "subject_1": "red"}
    common |= {"reference_2": "square.png", "class_2": "square", "subject_2": "green"}
    return [
        {**common, "winner": win, "loser": lose}
        for win, lose in (("win.png", "repainted.png"), ("win.png", "anew.png"),
                          ("lacking.png", "anew.png"))
    ]  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, str]], **how: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\r\n", **how)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_what_is_not_told_is_found(toys: None, tmp_path: Path) -> None:
    rows = write_toys(tmp_path / "set")
    table = write_csv(tmp_path / "set" / "pairs.csv", rows, delimiter=";")
    result = import_pairs(ImportRun(root=str(tmp_path / "data")), [table])
    assert result.rejects == {"missing_subject": 1} and result.problems == []
    back = open_version(tmp_path / "data")
    by_source = {one.row.source: one.read() for one in back.samples()}
    assert set(by_source) == {"disrupt", "rank"}
    disc = toy_world.slot_mask("disc", 0)
    prior = by_source["disrupt"].images.prior
    assert (prior & disc).sum() == disc.sum() and prior.sum() < 1.6 * disc.sum()
    for name, place, slots in (("disrupt", 0, [0]), ("rank", 0, [0, 1]), ("rank", 1, [2, 0])):
        word = ("disc", "square")[place]
        wanted = np.logical_or.reduce([toy_world.slot_mask(word, slot) for slot in slots])
        found = by_source[name].images.masks[place]
        assert (found & wanted).sum() / (found | wanted).sum() > 0.9
    pair = by_source["disrupt"].pair
    assert pair.win_identity[0] > pair.lose_identity[0] + 0.1
    assert pair.win_identity[1] == pytest.approx(pair.lose_identity[1], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"winner": "absent.png"}, "absent.png: no such file"),
        ({"winner": "../outside.png"}, "leads out of"),
        ({"loser": "win.png"}, "are the same picture"),
        ({"loser": "small.png"}, "a pair's pictures have one size"),
        ({"mask_1": "black.png"}, "black.png is empty"),
        ({"mask_1": "small.png"}, "save both with one size"),
        ({"box_1": "60 60 70 70"}, "holds no pixel"),
        ({"box_1": "left"}, "expected x0 y0 x1 y1"),
        ({"reference_1": "", "reference_2": ""}, "no reference"),
        ({"subject_2": "red"}, "subject red is there twice"),
        ({"reference_2": "disc.png", "subject_1": "", "subject_2": "", "class_2": "disc"},
         "have the same reference"),
        ({"class_1": "dragon"}, "does not know 'dragon'"),
        ({"prompt": " "}, "prompt"),
        ({"subject_1": "a b"}, "a name has letters"),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_and_the_others_go_on(
    change: dict[str, str], what: str, toys: None, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    good, bad, _ = write_toys(folder)
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "small.png")
    shutil.copy(folder / "win.png", tmp_path / "outside.png")
    empty = dict.fromkeys(("mask_1", "box_1"), "")
    table = write_csv(folder / "pairs.csv", [good | empty, bad | empty | change])
    run = ImportRun(root=str(tmp_path / "data"))
    result = import_pairs(run, [table])
    (told,) = result.problems
    assert f"{table}, line 3" in told and what in told
    assert result.pairs == 1
    with pytest.raises(UserError, match="line 3"):
        import_pairs(run.model_copy(update={"strict": True}), [table])


def test_a_broken_line_of_json_is_told_by_its_number(toys: None, tmp_path: Path) -> None:
    good, bad, _ = write_toys(tmp_path / "set")
    table = tmp_path / "set" / "pairs.jsonl"
    lines = [json.dumps(good), "", json.dumps(bad)[:-9], "[1]"]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    result = import_pairs(ImportRun(root=str(tmp_path / "data")), [table])
    assert result.pairs == 1
    assert [told.partition(":")[0] for told in result.problems] == [
        f"{table}, line 3", f"{table}, line 4",
    ]  # fmt: skip


def test_the_command_ends_with_3_where_rows_were_left_out(
    toys: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_toys(tmp_path / "set")[:2]
    rows[1]["loser"] = rows[1]["winner"]
    table = write_csv(tmp_path / "set" / "pairs.csv", rows, delimiter="\t")
    words = ["import", "pairs", str(table), "--root", str(tmp_path / "data"), "--json"]
    with pytest.raises(SystemExit, match="3"):
        main(words)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pairs"] == 1 and "line 3" in told["problems"][0]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--strict"])


def test_another_size_is_refused_or_fitted(toys: None, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    good, other, _ = write_toys(folder)
    for name in ("win", "anew"):
        with Image.open(folder / f"{name}.png") as image:
            image.resize((144, 96), Image.Resampling.NEAREST).save(folder / f"large-{name}.png")
    other |= {"winner": "large-win.png", "loser": "large-anew.png"}
    table = write_csv(folder / "pairs.csv", [good, other])
    result = import_pairs(ImportRun(root=str(tmp_path / "one")), [table])
    assert result.pairs == 1 and "give --size" in result.problems[0]
    run = ImportRun(root=str(tmp_path / "two"), imports={"size": 48})
    import_pairs(run, [table])
    sizes = {one.read().images.win.shape for one in open_version(tmp_path / "two").samples()}
    assert sizes == {(48, 48, 3)}


def test_foreign_records_without_ours_are_read(toys: None, tmp_path: Path) -> None:
    """What Flow-Factory's and VeRL-Omni's own tools write: no masks, no classes, no names."""
    folder = tmp_path / "set"
    row = write_toys(folder)[0]

    def media(*names: str) -> dict[str, Any]:
        return {"media": [{"type": "image", "path": name} for name in names]}

    chosen = {"chosen": media(row["winner"]), "rejected": media(row["loser"])}
    record = {
        "schema_version": 2,
        "input": {"prompt": row["prompt"], **media("disc.png", "square.png")},
        "supervision": {"type": "preference", **chosen},
        "metadata": {"annotator": "somebody"},
    }
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    result = import_pairs(ImportRun(root=str(tmp_path / "data")), [folder])
    (sample,) = open_version(tmp_path / "data").samples()
    assert result.problems == [] and sample.row.class_names == ("disc", "square")
    record["input"]["prompt"] = "two things on grey"
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="line 1: class_name: not told"):
        import_pairs(ImportRun(root=str(tmp_path / "other")), [folder])


def test_simpletuners_own_folders_are_read(toys: None, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    row = write_toys(tmp_path / "toys")[0]
    for below, name in (("w", row["winner"]), ("l", row["loser"])):
        (folder / below).mkdir(parents=True)
        shutil.copy(tmp_path / "toys" / name, folder / below / "a.png")
    (folder / "w" / "a.txt").write_text(row["prompt"])
    (folder / "references").mkdir()
    for at, word in enumerate(HUES):
        shutil.copy(tmp_path / "toys" / f"{word}.png", folder / "references" / f"a-{at}.png")
    backends = [
        {"id": "p", "dataset_type": "image", "type": "local", "instance_data_dir": "w",
         "conditioning_data": ["r"]},
        {"id": "r", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
         "type": "local", "instance_data_dir": "l", "source_dataset_id": "p"},
    ]  # fmt: skip
    (folder / "multidatabackend.json").write_text(json.dumps(backends))
    result = import_pairs(ImportRun(root=str(tmp_path / "data")), [folder])
    assert (result.pairs, result.problems) == (1, [])
    shutil.rmtree(folder / "references")
    with pytest.raises(UserError, match="no reference"):
        import_pairs(ImportRun(root=str(tmp_path / "other")), [folder])


def test_a_built_root_is_not_imported_into(
    toys: None, version: DatasetVersion, tmp_path: Path
) -> None:
    write_toys(tmp_path / "set")
    with pytest.raises(UserError, match="a --root of its own"):
        import_pairs(ImportRun(root=str(version.store.root)), [tmp_path / "set"])
