"""`generate --compare`: both models on one order, as `generate` paints each, and what the judge
says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import run
from PIL import Image
from pocket_adapter import pocket_adapter

from focusdpo.flows.generate.compared import COMPARED, Judged, read_compared
from focusdpo.pocket.world.identities import class_names
from focusdpo.pocket.world.world_subjects import draw


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("order")
    arguments = ["--adapter", str(pocket_adapter(folder / "adapter"))]
    for one in draw("train", class_names("train"), 2, 1, 0):
        alpha = one.pictures[0].mask.astype(np.uint8) * np.uint8(255)
        path = folder / f"{one.id}.png"
        Image.fromarray(np.dstack([one.pictures[0].image, alpha]), "RGBA").save(path)
        arguments += ["--reference", str(path), "--class-name", one.identity.class_name]
    return arguments


def test_both_are_painted_as_generate_does_and_judged(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    arguments = ["generate", *order, "--compare", "--count", "2", "--out", str(out), "--json"]
    code, told, _ = run(arguments, capsys)
    assert code == 0
    assert "base-0.png" in told and "identity" in told
    made = read_compared(out)
    assert made is not None and json.loads(told.splitlines()[-1])["sides"].keys() == {
        "base", "adapter",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {COMPARED, *made.files}
    for model, own in (("adapter", order), ("base", order[2:])):
        alone = tmp_path / f"{model}.png"
        seed = str(made.sides[model][1].seed)
        assert run(["generate", *own, "--seed", seed, "--out", str(alone)], capsys)[0] == 0
        assert alone.read_bytes() == (out / made.sides[model][1].file).read_bytes()
    assert all(len(one.each) == 2 for side in made.sides.values() for one in side)
    for refused, said in (
        ([*order, "--compare", "--out", str(out)], "is not empty"),
        ([*order[2:], "--compare", "--out", str(tmp_path / "x")], "needs --adapter"),
        ([*order, "--compare", "--each", "--out", str(tmp_path / "x")], "--compare and --each"),
    ):
        code, _, words = run(["generate", *refused], capsys)
        assert code == 2 and said in words and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("each", "weakest"),
    [((0.9, 0.4), 1), ((0.2, None), 1), ((None,), 0), ((0.1,), None), ((0.7, 0.8, 0.6), 2)],
)
def test_the_failed_subject_is_the_missing_or_the_least_like(
    each: tuple[float | None, ...], weakest: int | None
) -> None:
    one = Judged(file="base-0.png", seed=0, identity=0.5, leakage_margin=None, each=each, words="")
    assert one.weakest == weakest
