"""SCR's and PSRBench's folders as they are published, and their scores against plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_pictures as fp
import numpy as np
import photo_folder
import pytest
import toy_world
from foreign_pictures import CONFIG, MISSING, RIGHT
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.measure.config import LayoutName
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.public_layouts import read_layout
from focusdpo.evaluation.measure.run import MeasureResult, measure
from focusdpo.evaluation.measure.sight import PSR, SCR, PhotographSight

REFERENCES = {"a disc": ("disc", 0.0, 0), "square": ("square", 240.0, 2)}


def save(path: Path, things: Sequence[Any], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(toy_world.picture(things, seed)).save(path)
    return path


def sight(*published: str) -> PhotographSight:
    """A judge whose whole pictures and boxes are truly computed."""
    parts: Any = (toy_world.Segmenter(), photo_folder.Identity(), toy_world.Clip())
    return PhotographSight(*parts, CONFIG, ("toy",), published=published)


def judged(
    layout: LayoutName, results: Path, bench: Path, out: Path, *published: str
) -> MeasureResult:
    plan = plan_pictures(read_layout(layout, results, bench))
    table = fp.write_rows(out.parent / "unused", {"a": [RIGHT]})
    request = fp.request(table, out, load=lambda: sight(*published))
    return measure(replace(request, plan=plan))


def cosine(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    """Of the toy encoder's vectors of two whole pictures."""
    first, second = photo_folder.Identity().embed_whole([a, b])
    return float(first @ second)


def pixels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def scr(tmp_path: Path) -> tuple[Path, Path]:
    """Two prompts by two models with two seeds, as scripts/run_*.py of the benchmark leave them."""
    bench, results = tmp_path / "checkout", tmp_path / "checkout" / "results"
    for name, thing in REFERENCES.items():
        save(bench / "val_dataset" / f"{name}.jpg", [thing], 7)
    for model, shown in (("mosaic", RIGHT), ("psr", MISSING)):
        for prompt in ("01_no_interaction", "14_interaction"):
            records = []
            for seed in (42, 43):
                save(results / model / prompt / f"{seed}.png", shown, seed)
                subjects = [
                    {"image": "val_dataset/a disc.jpg", "name": "disc", "idip": True},
                    {"image": "/old/machine/val_dataset/square.jpg", "caption": "square"},
                ]
                records.append(
                    {
                        "model": model, "prompt_id": prompt, "seed": seed, "subjects": subjects,
                        "prompt": f"a disc and a square {prompt}", "skipped": False,
                        "output_path": f"/results/{model}/{prompt}/{seed}.png",
                    }
                )  # fmt: skip
            records.append({"model": model, "prompt_id": prompt, "seed": 44, "error": "no memory"})
            (results / model / prompt / "meta.json").write_text(json.dumps(records))
    return bench, results


def test_scrs_prompts_are_read_as_published(scr: tuple[Path, Path]) -> None:
    bench, results = scr
    table = read_layout("scr", results, bench)
    assert [(row.model, row.seed) for row in table.rows] == [
        (model, seed) for model in ("mosaic", "psr") for _ in range(2) for seed in (42, 43)
    ]
    assert [one.class_name for one in table.rows[0].subjects] == ["disc", "square"]
    assert plan_pictures(table).protocol == "foreign/scr"
    assert len(table.problems) == 4 and all("no memory" in str(one) for one in table.problems)
    alone = read_layout("scr", results / "psr", bench)
    assert {row.model for row in alone.rows} == {"model"} and len(alone.rows) == 4
    with pytest.raises(UserError, match="git clone"):
        read_layout("scr", results, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_path": "/results/mosaic/01_no_interaction/99.png"}, "there is no picture"),
        ({"subjects": []}, "no list of 1 to 10"),
        ({"subjects": [{"image": "val_dataset/../../x.png"}]}, "leads out of"),
        ({"subjects": [{"image": "val_dataset/square.jpg"}] * 2}, "asked for twice"),
        ({"prompt": None, "subjects": [{"name": "x"}]}, "without 'image'"),
    ],
)
def test_a_wrong_record_is_named_and_the_rest_goes_on(
    scr: tuple[Path, Path], change: dict[str, Any], said: str
) -> None:
    bench, results = scr
    meta = results / "mosaic" / "01_no_interaction" / "meta.json"
    records = json.loads(meta.read_text())
    records[0] |= change
    meta.write_text(json.dumps(records))
    table = read_layout("scr", results, bench)
    assert len(table.rows) == 7
    assert any(f"{meta}, record 1: " in str(one) and said in str(one) for one in table.problems)


def test_scr_as_published_is_of_whole_photographs(scr: tuple[Path, Path], tmp_path: Path) -> None:
    bench, results = scr
    result = judged("scr", results, bench, tmp_path / "out", SCR)
    wanted: dict[str, list[float]] = {}
    for model in ("mosaic", "psr"):
        for file in sorted((results / model).glob("*/*.png")):
            wanted.setdefault(model, []).extend(
                cosine(pixels(file), pixels(bench / "val_dataset" / f"{name}.jpg"))
                for name in REFERENCES
            )
    whole = result.of("whole_dino")
    for model, cosines in wanted.items():
        assert whole[model].mean == pytest.approx(np.mean(cosines), abs=1e-6)
        assert whole[model].protocol == SCR
        for level in (40, 50, 60):
            share = np.mean([value < level / 100 for value in cosines])
            assert result.of(f"whole_scr_{level}")[model].mean == pytest.approx(share)
    assert {row.group for row in result.rows if row.metric == "whole_scr_40"} == {
        "all", "2 subjects",
    }  # fmt: skip
    assert any("CLIP-I" in note for note in result.notes)
    silent = judged("scr", results, bench, tmp_path / "silent")
    assert not silent.of("whole_dino") and any(
        "needs a judge with DINOv2" in n for n in silent.notes
    )


@pytest.fixture
def psrbench(tmp_path: Path) -> tuple[Path, Path]:
    bench, results = tmp_path / "PSRBench", tmp_path / "run"
    for name, thing in REFERENCES.items():
        save(bench / "subjects" / f"{name}.png", [thing], 5)
    save(bench / "subjects" / "other square.png", [("square", 120.0, 1)], 6)
    twins = (("square", 240.0, 0), ("square", 120.0, 2))
    for file, shown in (("0", RIGHT), ("1", MISSING), ("2", twins)):
        save(results / "outputs" / "Attribute" / f"{file}.png", shown, 3)
    save(results / "outputs" / "Three" / "0.png", [*RIGHT, ("square", 120.0, 1)], 4)
    disc, square, other = (f"subjects/{one}.png" for one in (*REFERENCES, "other square"))

    def sample(subset: str, number: int, *pairs: tuple[str, str]) -> dict[str, Any]:
        return {
            "instruction": f"{subset} {number}",
            "input_path": [path for path, _ in pairs],
            **{f"category{at}": word for at, (_, word) in enumerate(pairs, 1)},
            "result_path": f"outputs/{subset}/{number}.png",
        }

    two = (disc, "disc"), (square, "square")
    samples = [sample("Attribute", number, *two) for number in (0, 1)]
    samples.append(sample("Attribute", 2, (square, "square"), (other, "square")))
    unpainted = {key: value for key, value in samples[0].items() if key != "result_path"}
    (results / "Attribute.json").write_text(json.dumps([*samples, unpainted]))
    three = sample("Three", 0, *two, (other, "square"))
    (results / "Three.json").write_text(json.dumps([three]))
    return bench, results


def test_psrbench_is_read_as_published(psrbench: tuple[Path, Path]) -> None:
    bench, results = psrbench
    table = read_layout("psrbench", results, bench)
    assert [len(row.subjects) for row in table.rows] == [2, 2, 2, 3]
    assert [row.prompt for row in table.rows][:2] == ["Attribute 0", "Attribute 1"]
    (problem,) = table.problems
    assert "Attribute.json, sample 4" in str(problem) and "'result_path'" in str(problem)
    with pytest.raises(UserError, match="download PSRBench"):
        read_layout("psrbench", results, None)


def test_psrbenchs_consistency_as_published(psrbench: tuple[Path, Path], tmp_path: Path) -> None:
    """A second implementation: the surest box of each word; the whole picture where there is none;
    of two subjects of one word the second has the second box, of three each the first."""
    bench, results = psrbench
    result = judged("psrbench", results, bench, tmp_path / "out", PSR)

    def crop(path: Path, word: str, number: int = 0) -> np.ndarray:  # type: ignore[type-arg]
        image = pixels(path)
        found = sorted(toy_world.blobs(image), key=lambda blob: -blob[2][word])
        if number >= len(found):
            return image
        x0, y0, x1, y1 = found[number][1]
        return image[y0:y1, x0:x1]

    subjects = bench / "subjects"
    disc, square, other = (subjects / f"{one}.png" for one in (*REFERENCES, "other square"))
    asked = {
        "Attribute/0": [(disc, "disc", 0), (square, "square", 0)],
        "Attribute/1": [(disc, "disc", 0), (square, "square", 0)],
        "Attribute/2": [(square, "square", 0), (other, "square", 1)],
        "Three/0": [(disc, "disc", 0), (square, "square", 0), (other, "square", 0)],
    }
    wanted = [
        np.mean(
            [
                cosine(crop(results / "outputs" / f"{name}.png", word, at), crop(reference, word))
                for reference, word, at in own
            ]
        )
        for name, own in asked.items()
    ]
    scores = EvaluationFolder(Path(result.out)).foreign
    assert [one.crop_dino for one in scores] == pytest.approx(wanted, abs=1e-6)
    (row,) = result.of("crop_dino").values()
    assert row.mean == pytest.approx(np.mean(wanted), abs=1e-6) and row.protocol == PSR
    assert not result.of("whole_dino") and any("HPSv3" in note for note in result.notes)
