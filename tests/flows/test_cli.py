"""The command line: exit codes, messages that help, one machine-readable line last, and nothing
lost whatever is fed to it."""

from __future__ import annotations

import inspect
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from in_process import run
from PIL import Image
from toy_root import TOY_CLI, Toy
from typer.main import get_command

from focusdpo.flows.cli import run_program
from focusdpo.flows.commands.options import command, run_models
from focusdpo.flows.config import Run, TrainRun, _Train
from focusdpo.flows.program import app
from focusdpo.flows.settings import option_of, sentence
from focusdpo.model.objective_registry import OBJECTIVES
from focusdpo.store.versions import open_version

Capture = pytest.CaptureFixture[str]


def last_json(out: str) -> dict[str, object]:
    line = out.rstrip("\n").rpartition("\n")[2]
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


ROOT = get_command(app)


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        yield " ".join((*words, name)), one
        yield from commands(one, (*words, name)) if hasattr(one, "commands") else ()


COMMANDS = dict(commands(ROOT))
MODELS = dict(run_models(ROOT))


def test_help_names_every_command(capsys: Capture) -> None:
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    assert [name for name in ROOT.commands if f"\n  {name}" not in out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_each_option(name: str, capsys: Capture) -> None:
    code, out, _ = run([*name.split(), "--help"], capsys)
    assert code == 0 and "Usage: focusdpo" in out
    options = [line for line in out.splitlines() if line.lstrip().startswith("--")]
    assert options and all(len(line.split("  ")) > 1 for line in options)


def test_help_imports_neither_torch_nor_prefect() -> None:
    code = (
        "import sys; from focusdpo.flows.cli import main\n"
        f"for name in {list(COMMANDS)}:\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = ('torch', 'prefect', 'diffusers', 'transformers', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.rstrip().endswith("[]")


def test_a_build_prints_one_machine_readable_line_last(toy: Toy, capsys: Capture) -> None:
    code, out, _ = run([*toy.arguments, "--json"], capsys)
    told = last_json(out)
    assert code == 0
    assert told["command"] == "build-dataset" and told["new"] is True
    assert told["pairs"] and told["root"] == str(toy.root)


@pytest.mark.usefixtures("built")
def test_a_run_in_which_nothing_changed_loads_no_model_and_no_engine(toy: Toy) -> None:
    """Also with Prefect wanted: in a process of its own, so that imports can be counted."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = {[*TOY_CLI[1:], *toy.arguments[:-1], '--json']!r}\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print([m for m in ('torch', 'prefect', 'diffusers', 'transformers') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *_, line, imported = ended.stdout.rstrip().splitlines()
    assert imported == "[]"
    assert json.loads(line)["new"] is False
    assert "no model is loaded and no engine started" in ended.stdout


def test_plan_computes_nothing(toy: Toy, capsys: Capture) -> None:
    code, out, _ = run([*toy.arguments, "--plan", "--json"], capsys)
    plan = last_json(out)["plan"]
    assert code == 0 and isinstance(plan, dict) and set(plan.values()) == {6}
    assert not (toy.root / "stages" / "generate").exists()


# Pictures that cannot be used, and words of the message that each must get.
def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a picture")


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path)


def huge(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def invisible(path: Path) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(path)


BAD = [
    (empty, "0 bytes"),
    (text, "bad.png"),
    (truncated, "bad.png"),
    (one_pixel, "1 x 1"),
    (huge, "megapixels"),
    (invisible, "nothing is visible"),
]


def add_bad(toy: Toy, name: str, make: Callable[[Path], None]) -> None:
    (toy.subjects / name).mkdir()
    (toy.subjects / name / "subject.yaml").write_text("class_name: disc\n")
    make(toy.subjects / name / "bad.png")


@pytest.mark.parametrize(("make", "words"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_a_bad_picture_stops_a_strict_build(
    make: Callable[[Path], None], words: str, toy: Toy, capsys: Capture
) -> None:
    add_bad(toy, "mean", make)
    code, _, err = run([*toy.arguments, "--strict", "--plan"], capsys)
    assert code == 2 and words in err and "mean/bad.png" in err and "Traceback" not in err


def test_bad_pictures_cost_their_subjects_alone(toy: Toy, capsys: Capture) -> None:
    for make, _ in BAD:
        add_bad(toy, f"mean-{make.__name__}", make)
    code, out, _ = run([*toy.arguments, "--json"], capsys)
    told = last_json(out)
    problems = told["problems"]
    assert code == 3 and isinstance(problems, list) and len(problems) == len(BAD)
    for make, words in BAD:
        assert any(words in line and f"mean-{make.__name__}" in line for line in problems)
    assert told["pairs"] and told["partitions"] == 6
    # They are mended: what was built is not computed again.
    for make, _ in BAD:
        shutil.rmtree(toy.subjects / f"mean-{make.__name__}")
    toy.add(mean=("disc", 60.0))
    code, out, _ = run([*toy.arguments, "--json"], capsys)
    assert code == 0 and last_json(out)["made"] == dict.fromkeys(
        ("compose", "generate", "segment", "describe", "disrupt", "score", "pair"), 4
    )


def cmyk(path: Path) -> None:
    Image.new("CMYK", (64, 64), (0, 200, 200, 0)).save(path.with_suffix(".jpg"))


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(path)


def palette(path: Path) -> None:
    Image.new("RGB", (64, 64), "red").convert("P").save(path)


def rotated(path: Path) -> None:
    image = Image.new("RGB", (80, 40), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path.with_suffix(".jpg"), exif=exif)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("make", [cmyk, sixteen_bit, palette, rotated, animated])
def test_odd_pictures_are_read(make: Callable[[Path], None], toy: Toy, capsys: Capture) -> None:
    (toy.subjects / "odd").mkdir()
    (toy.subjects / "odd" / "subject.yaml").write_text("class_name: square\n")
    make(toy.subjects / "odd" / "one.png")
    code, _, err = run([*toy.arguments, "--strict", "--plan"], capsys)
    assert code == 0, err


def test_a_subject_without_a_picture(toy: Toy, capsys: Capture) -> None:
    (toy.subjects / "nobody").mkdir()
    code, _, err = run([*toy.arguments, "--strict"], capsys)
    assert code == 2 and "nobody" in err and "no picture" in err


def test_two_subjects_of_one_name(toy: Toy, capsys: Capture) -> None:
    toy.add(RED=("disc", 0.0))
    code, _, err = run([*toy.arguments, "--strict"], capsys)
    assert code == 2 and "RED" in err and "same name" in err


def test_an_unknown_class_is_told_with_those_near(toy: Toy, capsys: Capture) -> None:
    toy.add(odd=("disc", 30.0))
    (toy.subjects / "odd" / "subject.yaml").write_text("class_name: squares\n")
    code, _, err = run([*toy.arguments, "--strict"], capsys)
    assert code == 2 and "'squares'" in err and "square" in err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--set", "pair.min_dropp=1"], "did you mean 'min_drop'"),
        (["--set", "pair.min_drop=lots"], "pair.min_drop"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--preset", "nowhere"], "there are"),
        (["--subjects", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_built(
    extra: list[str], words: str, toy: Toy, capsys: Capture
) -> None:
    code, out, err = run([*toy.arguments, *extra, "--json"], capsys)
    assert code == 2 and words in err and "Traceback" not in err
    assert words in str(last_json(out)["error"])
    assert not (toy.root / "versions").exists()


def test_an_unknown_option_is_refused(capsys: Capture) -> None:
    code, _, err = run(["build-dataset", "--rooot", "x"], capsys)
    assert code == 2 and "--rooot" in err


@pytest.mark.usefixtures("built")
def test_a_root_of_another_schema_version(toy: Toy, capsys: Capture) -> None:
    before = toy.files("shards")
    header = toy.root / "dataset.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"schema_version": 99}))
    code, _, err = run(toy.arguments, capsys)
    assert code == 2 and "schema version 99" in err
    assert toy.files("shards") == before


def test_a_folder_that_is_no_root(toy: Toy, capsys: Capture) -> None:
    toy.root.mkdir()
    (toy.root / "letters.txt").write_text("mine")
    code, _, err = run(toy.arguments, capsys)
    assert code == 2 and "letters.txt" in err
    assert (toy.root / "letters.txt").read_text() == "mine"


@pytest.mark.usefixtures("built")
def test_a_truncated_shard_is_named_mended_and_nothing_is_computed(
    toy: Toy, capsys: Capture, tmp_path: Path
) -> None:
    whole = toy.files("shards")
    shard = next((toy.root / "shards").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    train = ["train", "--root", str(toy.root), "--out", str(tmp_path / "t"), "--no-prefect"]
    code, _, err = run(train, capsys)
    assert code == 2 and shard.name in err and "doctor" in err
    code, _, err = run(["inspect", str(toy.root), "--verify"], capsys)
    assert code == 2 and shard.name in err
    code, out, _ = run(["doctor", "--root", str(toy.root), "--repair"], capsys)
    assert "1 damaged" in out
    code, out, _ = run([*toy.arguments, "--json"], capsys)
    assert code == 0 and last_json(out)["made"] == {}
    assert toy.files("shards") == whole


@pytest.mark.usefixtures("built")
def test_a_damaged_artefact_is_named_and_made_again(toy: Toy, capsys: Capture) -> None:
    whole, pairs = toy.files("stages"), {row.pair_id for row in open_version(toy.root).rows}
    artefact = next((toy.root / "stages" / "score").rglob("*.tar"))
    artefact.write_bytes(artefact.read_bytes()[:-9000] or b"x")
    for pair in (toy.root / "stages" / "pair").rglob("*.tar"):
        pair.unlink()
    code, out, err = run([*toy.arguments, "--json"], capsys)
    assert code == 3 and "doctor" in str(last_json(out)["failed"])
    run(["doctor", "--root", str(toy.root), "--repair"], capsys)
    assert run(toy.arguments, capsys)[0] == 0
    assert toy.files("stages") == whole
    assert {row.pair_id for row in open_version(toy.root).rows} == pairs


def test_a_full_disk_is_told_and_the_same_command_goes_on(toy: Toy) -> None:
    """No file may grow beyond 30 kB, which the store treats as it does a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    command = [*TOY_CLI, *toy.arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit
    )
    assert ended.returncode == 2, ended.stderr
    assert "the disk is full" in ended.stderr and "Traceback" not in ended.stderr
    made = toy.files("stages")
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert made and made.items() <= toy.files("stages").items()


@pytest.mark.usefixtures("built")
def test_inspect_tells_what_there_is_and_where_a_pair_came_from(toy: Toy, capsys: Capture) -> None:
    code, out, _ = run(["inspect", str(toy.root), "--json"], capsys)
    told = last_json(out)
    assert code == 0 and told["stages"]["generate"]["records"] == 18
    assert "generate" in out and "subjects" in out
    from focusdpo.store.versions import open_version

    row = open_version(str(toy.root)).rows[0]
    code, out, _ = run(["inspect", str(toy.root), "--pair", row.pair_id, "--json"], capsys)
    stages = [one["stage"] for one in last_json(out)["artefacts"]]
    assert code == 0 and {"compose", "generate", "segment", "disrupt", "score"} <= set(stages)
    code, _, err = run(["inspect", str(toy.root), "--pair", "ffff"], capsys)
    assert code == 2 and "no pair 'ffff'" in err


@pytest.mark.parametrize("name", MODELS)
def test_settings_prints_what_set_takes(name: str, capsys: Capture) -> None:
    code, out, _ = run(["settings", *name.split(), "--json"], capsys)
    told = last_json(out)["settings"]
    assert code == 0 and isinstance(told, dict)
    assert all(f"{field} = " in out for field in told)
    model = MODELS[name]
    assert ("pair.min_drop" in told) == ("pair" in model.model_fields)
    assert ("train.objective.beta" in told) == issubclass(model, _Train)


def test_a_near_command_is_named(capsys: Capture) -> None:
    code, _, err = run(["settings", "trian"], capsys)
    assert code == 2 and "did you mean 'train'?" in err and "export adapter" in err


@pytest.mark.parametrize("name", MODELS)
def test_options_are_the_marked_fields_of_the_model(name: str) -> None:
    fields = MODELS[name].model_fields
    marked = {name: option for name, field in fields.items() if (option := option_of(field))}
    parameters = {one.name: one for one in COMMANDS[name].params}
    own = set(inspect.signature(inspect.unwrap(COMMANDS[name].callback)).parameters) - {"run"}
    common = {"json", "help"} | ({"set_"} if issubclass(MODELS[name], Run) else set())
    assert set(marked) <= set(parameters) and set(parameters) - common - own <= set(marked)
    for field, option in marked.items():
        parameter = parameters[field]
        assert option.flag.partition("/")[0] in parameter.opts
        assert parameter.help == sentence(fields[field].description)
        assert parameter.required == fields[field].is_required()
        if not parameter.required and fields[field].default not in ((), None):
            assert parameter.default == fields[field].default


@pytest.mark.parametrize(
    ("extra", "version"),
    [
        ([], "latest"),
        (["--set", "version=abc"], "abc"),
        (["--set", "version=abc", "--version", "xyz"], "xyz"),
        (["--set", "version=abc", "--version", "latest"], "latest"),
    ],
)
def test_only_given_options_lie_over_set(extra: list[str], version: str) -> None:
    given: list[TrainRun] = []

    def keep(run: TrainRun) -> None:
        given.append(run)

    program = typer.Typer()
    program.command()(command(keep))
    with pytest.raises(SystemExit, match="0"):
        run_program(program, "keep", ["--root", "r", "--out", "o", *extra])
    assert [run.version for run in given] == [version]


def test_train_names_every_objective(capsys: Capture) -> None:
    _, out, _ = run(["train", "--help"], capsys)
    assert all(f"{name}: {OBJECTIVES[name].about}" in " ".join(out.split()) for name in OBJECTIVES)


def test_inspect_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(["inspect", str(tmp_path / "none")], capsys)
    assert code == 2 and "build-dataset" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reference", "a.png", "--class-name", "disc"], "a.png"),
        (["--reference", "a.png", "--class-name", "disk"], "near: disc"),
        (
            ["--reference", "a.png", "--class-name", "disc", "--class-name", "disc"],
            "2 --class-name",
        ),
        ([*(["--reference", "a.png", "--class-name", "disc"] * 4)], "at most 3"),
    ],
)
def test_generate_says_what_is_wrong(
    arguments: list[str], words: str, toy: Toy, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.png"
    code, _, err = run(["generate", *arguments, "--out", str(out)], capsys)
    assert code == 2 and words in err and not out.exists()


def test_generate_writes_a_picture_that_tells_how_it_was_made(
    toy: Toy, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "deep" / "out.png"
    picture = str(toy.subjects / "red" / "0.png")
    arguments = ["--reference", picture, "--class-name", "disc", "--seed", "5", "--out", str(out)]
    code, told, _ = run(["generate", *arguments, "--json"], capsys)
    assert code == 0 and last_json(told)["prompt"] == "a disc on grey"
    with Image.open(out) as image:
        assert image.text["focusdpo:seeds"] == "[5]"  # type: ignore[attr-defined]
        first = np.asarray(image).copy()
    run(["generate", *arguments], capsys)
    with Image.open(out) as image:
        assert (np.asarray(image) == first).all()


def test_an_absent_adapter_is_named(tmp_path: Path, capsys: Capture) -> None:
    where = str(tmp_path / "adapter")
    arguments = ["evaluate", "--adapter", where, "--out", str(tmp_path / "e"), "--no-prefect"]
    code, _, err = run(arguments, capsys)
    assert code == 2 and where in err


def test_training_without_a_dataset(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["train", "--root", str(tmp_path / "r"), "--out", str(tmp_path / "t")]
    code, _, err = run([*arguments, "--no-prefect"], capsys)
    assert code == 2 and "build-dataset" in err


def test_an_unknown_pocket_model(capsys: Capture, tmp_path: Path) -> None:
    code, _, err = run(["pocket", "train", "oracle", "--out", str(tmp_path)], capsys)
    assert code == 2 and "autoencoder" in err


def test_pocket_subjects_writes_a_folder_that_build_dataset_takes(
    tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "s"
    assert run(["pocket", "subjects", str(folder), "--count", "3"], capsys)[0] == 0
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    assert len(names) == 3 and all(len(list((folder / n).glob("*.png"))) == 2 for n in names)
    code, out, _ = run(["pocket", "subjects", str(folder), "--count", "3"], capsys)
    assert code == 0 and "there already" in out
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "x.txt").write_text("x")
    code, _, err = run(["pocket", "subjects", str(mine)], capsys)
    assert code == 2 and (mine / "x.txt").exists()
