"""The comparison sheet shows the right picture in each place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.scenes import Scene
from focusdpo.evaluation.run import comparison_sheet

SIDE = 8


def plain(value: int) -> NDArray[np.uint8]:
    return np.full((SIDE, SIDE, 3), value, np.uint8)


def scene(number: int, subjects: int) -> Scene:
    names = tuple(f"{number}-{place}" for place in range(subjects))
    return Scene(
        id=f"{number:016x}",
        partition=f"{number:016x}",
        subject_ids=names,
        class_names=("cat",) * subjects,
        prompt="",
        variant=0,
        seed=0,
    )


def test_a_column_holds_a_scenes_references_and_what_each_model_painted_of_it() -> None:
    scenes = [scene(0, 1), scene(1, 2), scene(2, 3), scene(3, 2), scene(4, 2), scene(5, 2)]
    references = {
        name: plain(10 * at + place)
        for at, one in enumerate(scenes)
        for place, name in enumerate(one.subject_ids)
    }
    pictures = {
        model: [plain(base + at) for at in range(len(scenes))]
        for model, base in (("base", 100), ("adapter", 200))
    }
    sheet = np.asarray(comparison_sheet(scenes, references, pictures, limit=2))
    step = SIDE + 2
    cells = sheet[2 + SIDE // 2 :: step, 2 + SIDE // 2 :: step, 0]
    # Of the scenes of two, 1, 3, 4 and 5, every second one.
    assert cells.tolist() == [[10, 40], [11, 41], [101, 104], [201, 204]]
    # Of those of two in which a subject failed, all; the failed scene of one is not shown.
    failed = {scenes[at].id for at in (0, 3, 5)}
    sheet = np.asarray(comparison_sheet(scenes, references, pictures, failed=failed))
    cells = sheet[2 + SIDE // 2 :: step, 2 + SIDE // 2 :: step, 0]
    assert cells.tolist() == [[30, 50], [31, 51], [103, 105], [203, 205]]


def test_without_scenes_of_two_the_others_are_shown() -> None:
    scenes = [scene(0, 1), scene(1, 3)]
    references = {name: plain(7) for one in scenes for name in one.subject_ids}
    sheet = np.asarray(comparison_sheet(scenes, references, {"base": [plain(1), plain(2)]}))
    step = SIDE + 2
    cells = sheet[2 + SIDE // 2 :: step, 2 + SIDE // 2 :: step, 0]
    assert cells.tolist() == [[7, 7], [255, 7], [255, 7], [1, 2]]
