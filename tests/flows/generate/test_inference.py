"""Painting from Python and the command line: one code, pictures that tell how they were made, the
same bytes once more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pocket_adapter import pocket_adapter, small_adapter
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.inference import (
    MAX_PROMPT,
    About,
    Generator,
    Painted,
    again,
    read_about,
    sheet,
    unsaid,
)

Capture = pytest.CaptureFixture[str]


def red(toy: Toy) -> tuple[Path, str]:
    return toy.subjects / "red" / "0.png", "disc"


def test_five_lines_and_the_command_line_give_the_same_bytes(
    toy: Toy, tmp_path: Path, capsys: Capture
) -> None:
    generator = Generator("pocket")
    pictures = generator("a disc on grey", [red(toy)], seeds=[0, 7])
    pictures[1].save(tmp_path / "api.png")
    assert [one.about.seeds for one in pictures] == [(0,), (7,)]
    assert not np.array_equal(np.asarray(pictures[0].image), np.asarray(pictures[1].image))
    order = ["--reference", str(red(toy)[0]), "--class-name", "disc", "--prompt", "a disc on grey"]
    code, _, err = run(
        ["generate", *order, "--seeds", "7", "--out", str(tmp_path / "cli.png")], capsys
    )
    assert code == 0, err
    assert (tmp_path / "cli.png").read_bytes() == (tmp_path / "api.png").read_bytes()


def test_a_subject_that_the_prompt_does_not_name_is_told(
    toy: Toy, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    order = ["--reference", str(red(toy)[0]), "--class-name", "disc", "--count", "3", "--each"]
    for prompt, told in (("a square on grey", 1), ("a disc on grey", 0)):
        caplog.clear()
        out = ["--out", str(tmp_path / "made.png"), "--prompt", prompt]
        assert run(["generate", *order, *out], capsys)[0] == 0
        assert len(caplog.messages) == told
        assert all("the disc is not in the prompt" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("prompt", "words", "missing"),
    [
        ("A teddy bear, two keys.", ("teddy bear", "key"), []),
        ("a bear on a teddy", ("teddy bear", "key"), ["teddy bear", "key"]),
        ("anything at all", ("object",), []),
        ("a cat", ("cat", "cat", "star", "star"), ["star"]),
        ("\u8349\u5730\u4e0a\u7684\u732b", ("\u732b", "\u72d7"), ["\u72d7"]),
    ],
)
def test_words_that_a_prompt_does_not_say(
    prompt: str, words: tuple[str, ...], missing: list[str]
) -> None:
    assert unsaid(prompt, words) == missing


def test_a_picture_tells_all_that_made_it(toy: Toy, tmp_path: Path) -> None:
    import hashlib
    from importlib.metadata import version

    file, word = red(toy)
    (one,) = Generator()("a disc on grey", [(file, word)], seeds=[3])
    with Image.open(one.save(tmp_path / "deep" / "one.png")) as image:
        told = dict(image.text)  # type: ignore[attr-defined]
    assert told["focusdpo:prompt"] == "a disc on grey" and told["focusdpo:seeds"] == "[3]"
    assert told["focusdpo:version"] == version("focusdpo") and told["focusdpo:preset"] == "pocket"
    (reference,) = json.loads(told["focusdpo:references"])
    assert reference == {
        "file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()
    }  # fmt: skip
    assert json.loads(told["focusdpo:settings"])["ingest"]["size"] > 0
    assert read_about(tmp_path / "deep" / "one.png") == one.about


@pytest.mark.parametrize("extra", [["--seeds", "5"], ["--seeds", "1,4-6", "--columns", "2"]])
def test_once_more_gives_the_same_bytes(
    toy: Toy, tmp_path: Path, capsys: Capture, extra: list[str]
) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    file, word = red(toy)
    order = ["--reference", str(file), "--class-name", word, "--prompt", "a disc on grey, schön"]
    assert run(["generate", *order, *extra, "--out", str(first)], capsys)[0] == 0
    code, out, _ = run(["generate", "--again", str(first), "--out", str(second), "--json"], capsys)
    assert code == 0 and json.loads(out.splitlines()[-1])["same"] is True
    assert second.read_bytes() == first.read_bytes()
    moved = tmp_path / "moved.png"
    file.rename(moved)
    with pytest.raises(UserError, match="no such file"):
        again(first)
    assert again(first, [moved]).png() == first.read_bytes()


def test_what_changed_since_is_told(toy: Toy, tmp_path: Path) -> None:
    (one,) = Generator()("a disc on grey", [red(toy)])
    path = one.save(tmp_path / "one.png")
    with pytest.raises(UserError, match="not the picture that"):
        again(path, [toy.subjects / "blue" / "0.png"])
    with pytest.raises(UserError, match="was made from 1 references; give as many"):
        again(path, [red(toy)[0], red(toy)[0]])
    with pytest.raises(UserError, match="made without an adapter"):
        again(path, adapter=tmp_path)
    other = one.about.model_copy(update={"fingerprint": "ffff"})
    Painted(one.image, other).save(path)
    with pytest.raises(UserError, match="made by other models"):
        again(path)


def test_a_sheet_has_a_place_for_every_seed(toy: Toy) -> None:
    made = Generator()("a disc on grey", [red(toy)], seeds=[1, 2, 3])
    whole = sheet(made, columns=2)
    width, height = made[0].image.size
    assert whole.image.size == (2 * (width + 2) + 2, 2 * (height + 2) + 2)
    assert whole.about.seeds == (1, 2, 3) and whole.about.columns == 2
    for at, one in enumerate(made):
        x, y = 2 + at % 2 * (width + 2), 2 + at // 2 * (height + 2)
        cut = np.asarray(whole.image)[y : y + height, x : x + width]
        np.testing.assert_array_equal(cut, np.asarray(one.image))
    assert sheet(made[:1]) is made[0]


def test_each_seed_to_its_own_file(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    file, word = red(toy)
    order = ["--reference", str(file), "--class-name", word, "--seeds", "4,9", "--each"]
    assert run(["generate", *order, "--out", str(tmp_path / "p.png")], capsys)[0] == 0
    assert sorted(one.name for one in tmp_path.glob("p*.png")) == ["p-4.png", "p-9.png"]
    assert read_about(tmp_path / "p-9.png").seeds == (9,)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * (MAX_PROMPT + 1), f"has {MAX_PROMPT + 1} characters, at most {MAX_PROMPT}"),
        ("a disc\x00", "character 7 is U\\+0000, a control character"),
        ("a\ndisc", "character 2 is U\\+000A"),
        ("\ud800", "U\\+D800"),
        ("  ", "the prompt is empty"),
    ],
)
def test_bad_prompts(toy: Toy, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Generator().about(prompt, [red(toy)], [0])


def test_bad_seeds_words_and_adapters(toy: Toy, tmp_path: Path) -> None:
    generator = Generator()
    for seeds in ([], [-1], [2**31]):
        with pytest.raises(UserError, match="give at least one, each from 0 to"):
            generator.about("a disc", [red(toy)], seeds)
    with pytest.raises(UserError, match="near: disc"):
        generator.about("a disk", [(red(toy)[0], "disk")], [0])
    with pytest.raises(UserError, match="0 references"):
        generator.about("nobody", [], [0])
    with pytest.raises(UserError, match="holds no adapter"):
        Generator(adapter=tmp_path)
    with pytest.raises(UserError, match="no such preset"):
        Generator("none")


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def foreign(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)


def no_picture(path: Path) -> None:
    path.write_text("<svg onload=alert(1)>")


def half_told(path: Path) -> None:
    info = PngInfo()
    info.add_text("focusdpo:prompt", "a")
    info.add_text("focusdpo:seeds", "[1")
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "not a readable PNG"),
        (foreign, "not from `focusdpo generate`"),
        (no_picture, "not a readable PNG"),
        (half_told, "damaged or from another version"),
        (Path.unlink, "no such file"),
    ],
)
def test_pictures_that_tell_nothing(toy: Toy, tmp_path: Path, spoil, message: str) -> None:
    (one,) = Generator()("a disc on grey", [red(toy)])
    path = one.save(tmp_path / "one.png")
    spoil(path)
    with pytest.raises(UserError, match=message):
        read_about(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch", "a.csv", "--again", "b.png"], "give one of them"),
        (["--batch", "a.csv", "--prompt", "x"], "--prompt: the CSV tells that already"),
        (["--again", "b.png", "--class-name", "x"], "--class-name: the picture tells that"),
        (["--seeds", "3-1"], "a range goes up"),
        (["--seeds", "one"], "'one' is no seed"),
    ],
)
def test_orders_that_contradict_themselves(
    toy: Toy, tmp_path: Path, capsys: Capture, given: list[str], message: str
) -> None:
    code, _, err = run(["generate", *given, "--out", str(tmp_path / "o.png")], capsys)
    assert code == 2 and message in err


def test_all_fields_of_about_come_back(tmp_path: Path) -> None:
    """Also those with words that Latin-1 has no signs for."""
    about = About(
        version="1", prompt="ein Hund, 犬 <b>", class_names=("犬",), references=(), seeds=(1, 2),
        columns=2, adapter="runs/ä", adapter_digest="ab", preset="p.yaml",
        settings={"a": {"b": [1, None, "犬"]}}, fingerprint="f",
    )  # fmt: skip
    path = Painted(Image.new("RGB", (8, 8)), about).save(tmp_path / "x.png")
    assert read_about(path) == about


@pytest.mark.slow
def test_the_pocket_generator_with_an_adapter(tmp_path: Path, capsys: Capture) -> None:
    """The real models: a picture of base and adapter, each once more to the same bytes, and an
    exported adapter instead of the trained one."""
    from focusdpo.pocket.world.world_subjects import WorldConfig, export
    from focusdpo.sharing.adapter_export import export_adapter

    export(tmp_path / "subjects", WorldConfig(subjects=1))
    (file, *_) = sorted((tmp_path / "subjects").glob("*/*.png"))
    word = file.parent.name.rpartition("-")[0]
    pocket_adapter(tmp_path / "run" / "adapter")
    base, adapted = (
        Generator("pocket", adapter=folder)(f"a {word} on snow", [(file, word)], [3])[0]
        for folder in (None, tmp_path / "run" / "adapter")
    )
    assert not np.array_equal(np.asarray(base.image), np.asarray(adapted.image))
    for name, one in (("base", base), ("adapted", adapted)):
        path = one.save(tmp_path / f"{name}.png")
        assert again(path).png() == path.read_bytes()
    export_adapter(tmp_path / "run" / "adapter", tmp_path / "given")
    made = again(tmp_path / "adapted.png", adapter=tmp_path / "given")
    assert made.png() == (tmp_path / "adapted.png").read_bytes()
    with pytest.raises(UserError, match="was made without an adapter"):
        again(tmp_path / "base.png", adapter=tmp_path / "given")


def test_an_adapter_that_diverged_paints_nothing_and_is_named(
    tmp_path: Path, capsys: Capture
) -> None:
    """The real models: generate and evaluate end with 2 and keep no picture."""
    from focusdpo.pocket.models.pocket_painter import PocketGenerator
    from focusdpo.pocket.world.world_subjects import WorldConfig, export

    adapter = small_adapter(PocketGenerator.load().backbone, tmp_path / "nan", float("nan"), "CC0")
    export(tmp_path / "subjects", WorldConfig(subjects=1))
    (file, *_) = sorted((tmp_path / "subjects").glob("*/*.png"))
    word = file.parent.name.rpartition("-")[0]
    out = tmp_path / "black.png"
    code, _, err = run(
        ["generate", "--reference", str(file), "--class-name", word, "--adapter",
         str(adapter), "--out", str(out)], capsys,
    )  # fmt: skip
    assert code == 2 and not out.exists()
    assert f"the generator with the adapter {adapter}: 100% of its pixels are not finite" in err
    code, _, err = run(
        ["evaluate", "--adapter", str(adapter), "--out", str(tmp_path / "judged"), "--no-prefect",
         "--set", "held_out.singles=1", "--set", "held_out.pairs=1", "--set", "held_out.triples=0",
         "--set", "held_out.same_class_pairs=0", "--set", "evaluate.images_per_scene=1"], capsys,
    )  # fmt: skip
    assert code == 2 and "are not finite numbers" in err
    assert not list((tmp_path / "judged").rglob("adapter/*.png"))
    assert not (tmp_path / "judged" / "run.json").exists()
