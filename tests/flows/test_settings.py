"""One typed model checks presets, --set and Prefect parameters, and names what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from in_process import run
from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import config
from focusdpo.flows.config import (
    SECTIONS,
    AblateRun,
    BuildRun,
    DemoRun,
    EvaluateRun,
    FocusMapsRun,
    GenerateRun,
    ImportRun,
    NoiseLevelsRun,
    RetrainRun,
    RoundsRun,
    StudioRun,
    TrainRun,
)
from focusdpo.flows.measure.config import MeasureRun
from focusdpo.flows.settings import (
    as_yaml,
    changes,
    load_preset,
    merge,
    nested,
    parse_overrides,
    preset_names,
    resolve,
)

RUNS = (
    *(BuildRun, TrainRun, FocusMapsRun, NoiseLevelsRun, EvaluateRun, AblateRun, DemoRun),
    *(RetrainRun, RoundsRun, ImportRun, MeasureRun),
)
REQUIRED = {"root": "r", "out": "o", "adapter": "a", "pictures": "p"}


def given_for(model: type) -> dict[str, object]:
    return {name: value for name, value in REQUIRED.items() if name in model.model_fields}


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("model", RUNS)
def test_every_preset_is_valid_for_every_run(name: str, model: type) -> None:
    run = resolve(model, {"preset": name, **given_for(model)})
    assert run.preset == name


@pytest.mark.parametrize("out", ["s3://b/x", "file:///b/x"])
@pytest.mark.parametrize("model", [m for m in RUNS if "out" in m.model_fields])
def test_who_takes_an_address_as_out(model: type, out: str) -> None:
    if model in (TrainRun, EvaluateRun, MeasureRun, RetrainRun):
        assert resolve(model, {**given_for(model), "out": out}).out == out
    else:
        with pytest.raises(UserError, match=f"out={out}: this command writes to a local folder"):
            resolve(model, {**given_for(model), "out": out})


SECRETS = [
    "s3://key:hunter2@bucket/x",
    "S3://key:hunter2@bucket/x",
    "s3:/key:hunter2@bucket",
    "https://store.example/x?X-Amz-Signature=hunter2",
    "gs://bucket/x?a=b&X-Goog-Signature=hunter2",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize(
    ("model", "field"),
    [
        (model, field)
        for model in (*RUNS, StudioRun)
        for field in ("root", "out", "adapter", "subjects", "data", "runs")
        if field in model.model_fields
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(
    model: type, field: str, address: str
) -> None:
    given = {**given_for(model), field: (address,) if field == "runs" else address}
    with pytest.raises(UserError, match=f"{field}: .*an address holds no password") as refused:
        resolve(model, given)
    assert "hunter2" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("address", SECRETS[:2])
def test_no_command_prints_or_stores_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    address: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for order in (
        ["build-dataset", "--root", address],
        ["train", "--root", "r", "--out", address],
        ["evaluate", "--adapter", address, "--out", "e"],
        ["inspect", address],
        ["doctor", "--root", address],
    ):
        code, out, err = run(order, capsys)
        assert code == 2 and "an address holds no password" in err, order
        assert "hunter2" not in out + err
    assert not list(tmp_path.iterdir())


def test_a_section_of_the_preset_lies_under_what_is_given() -> None:
    preset = load_preset("pocket")
    run = resolve(BuildRun, {"root": "r", "generate": {"batch": 7}})
    assert run.generate.batch == 7
    assert run.generate.candidates == preset["generate"]["candidates"]
    assert run.compose.triple_rate == preset["compose"]["triple_rate"]


def test_the_resolved_run_read_again_is_the_same_run() -> None:
    run = resolve(DemoRun, {"out": "o", **parse_overrides(["train.steps=3", "pair.min_drop=0.2"])})
    again = resolve(DemoRun, yaml.safe_load(as_yaml(run)))
    assert again == run
    assert again.train.steps == 3


class _Part(BaseModel):
    steps: int = 1
    lr: float = 1.0


class _Whole(BaseModel):
    part: _Part = _Part(steps=7, lr=0.5)


class _Recipe(BaseModel):
    small: _Part = _Part(steps=5, lr=0.25)
    whole: _Whole = _Whole(part=_Part(steps=9))
    shape: dict[str, int] = {"depth": 4, "width": 64}


def test_a_section_that_is_given_in_part_keeps_the_rest_of_the_owners_default() -> None:
    """Not of the section's class: a recipe's trainings are such defaults."""
    found = resolve(_Recipe, parse_overrides(["small.lr=0.1", "whole.part.lr=2", "shape.depth=2"]))
    assert found.small == _Part(steps=5, lr=0.1)
    assert found.whole.part == _Part(steps=9, lr=2.0)
    assert found.shape == {"depth": 2, "width": 64}


def test_a_pocket_recipe_keeps_its_training_when_one_value_is_set() -> None:
    from focusdpo.pocket.recipes.generator_recipe import GeneratorRecipe

    whole = GeneratorRecipe()
    found = resolve(GeneratorRecipe, parse_overrides(["small_training.compile=true"]))
    assert found.small_training == whole.small_training.model_copy(update={"compile": True})
    assert found.small == whole.small


@pytest.mark.parametrize("preset", [{}, {"detector": "theirs/detector"}])
def test_a_run_lays_its_preset_between_defaults_and_what_is_given(preset: dict) -> None:
    given = {"judge_segmenter": {"kind": "grounding-sam-hf", **preset, "mask_batch": 5}}
    backbone = {"kind": "flux2-klein", "base": "b"}
    run = resolve(GenerateRun, {"models": {"backbone": backbone, **given}})
    assert run.models is not None
    wanted = preset.get("detector", "IDEA-Research/grounding-dino-base")
    assert run.models.judge_segmenter.detector == wanted
    assert run.models.judge_segmenter.mask_batch == 5


def test_the_demo_hands_its_sections_on() -> None:
    demo = resolve(DemoRun, {"out": "o", **parse_overrides(["train.steps=3", "world.subjects=4"])})
    assert demo.build_run().world.subjects == 4
    assert demo.build_run().root == "o/dataset"
    assert demo.train_run().train.steps == 3
    assert demo.evaluate_run().adapter == demo.train_run().out + "/adapter"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("pair.min_dropp=1", ["pair.min_dropp", "did you mean 'min_drop'?"]),
        ("pear.min_drop=1", ["pear", "did you mean 'pair'?"]),
        ("pair.min_drop=much", ["pair.min_drop", "'much'", "number"]),
        ("pair.min_drop=-1", ["pair.min_drop", "-1", "greater than or equal to 0"]),
        ("suite=huge", ["suite", "'huge'", "pocket"]),
        ("compose.variants=1.5", ["compose.variants", "1.5", "integer"]),
        ("disrupt={dilate: 1, feather: 3}", ["disrupt", "feather", "dilate"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(item: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve(BuildRun, {"root": "r", **parse_overrides([item])})
    for word in words:
        assert word in str(caught.value)


def test_all_wrong_fields_are_named_at_once() -> None:
    tree = {"root": "r", **parse_overrides(["pair.x=1", "generate.y=1"])}
    with pytest.raises(UserError) as caught:
        resolve(BuildRun, tree)
    assert "pair.x" in str(caught.value) and "generate.y" in str(caught.value)


def test_a_nested_wrong_field_of_training_is_named() -> None:
    tree = {"root": "r", "out": "o", **parse_overrides(["train.objective.betta=1"])}
    with pytest.raises(UserError, match=r"train\.objective\.betta.*did you mean 'beta'"):
        resolve(TrainRun, tree)


def test_what_is_required_must_be_given() -> None:
    with pytest.raises(UserError, match="root: required"):
        resolve(BuildRun, {})


@pytest.mark.parametrize("item", ["pair", "=1", "pair.=1", ".x=1", "pair.x=[1"])
def test_an_override_that_is_none_is_refused(item: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_overrides([item])


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("generate: {candidates: 9}\n")
    assert resolve(BuildRun, {"preset": str(mine), "root": "r"}).generate.candidates == 9


@pytest.mark.parametrize(
    ("text", "word"),
    [("nonsense: 1\n", "nonsense"), ("- a\n", "section"), ("a: [\n", "not YAML")],
)
def test_a_bad_preset_is_named(tmp_path: Path, text: str, word: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(UserError, match=word):
        resolve(BuildRun, {"preset": str(mine), "root": "r"})


def test_an_absent_preset_names_those_there_are() -> None:
    with pytest.raises(UserError, match="there are .*pocket"):
        resolve(BuildRun, {"preset": "socket", "root": "r"})


def test_a_preset_may_hold_every_section_of_every_run() -> None:
    own = {"preset", "root", "out", "adapter", "version", "subjects", "strict", "protocol", "data"}
    own |= {"split", "pair_id", "pairs", "licence", "pictures", "references", "within", "lite"}
    own |= {"layout", "first", "check", "base_from"}
    fields = {name for model in (*RUNS, GenerateRun) for name in model.model_fields} - own
    assert fields == set(SECTIONS)


def test_every_field_tells_what_it_is() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in (*vars(config).values(), MeasureRun)
        if isinstance(model, type) and hasattr(model, "model_fields")
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not silent


TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merge_is_associative_and_the_last_word_wins(a: dict, b: dict, c: dict) -> None:
    assert merge(merge(a, b), b) == merge(a, b)
    assert merge({}, a) == a == merge(a, {})
    for key, value in c.items():
        if not isinstance(value, dict):
            assert merge(a, c)[key] == value


def test_changes_are_what_merging_brings_back() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    after = {"a": {"b": 1, "c": [2]}, "d": 3}
    found = changes(before, after)
    assert found == {"a.c": [2], "d": 3}
    assert merge(before, nested(found)) == after
    assert changes(after, after) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  steps: 010\n", "line 2: 010 is read as 8; write the number that is meant"),
        ("train:\n  steps: 1:30\n", "line 2: 1:30 is read as 90"),
        ("suite: pocket\nsuite: pocket\n", "line 2: 'suite' is given a second time, after line 1"),
        ("suite: pocket\n".encode("utf-16"), "the file is in UTF-16; save it with the encoding"),
        ("suite: pocket # für\n".encode("latin-1"), "line 1 is not UTF-8 \\(perhaps Latin-1"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_is_written_is_refused(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"mine.yaml.*{words}"):
        load_preset(str(file))


def test_what_is_clear_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 10\nb: True\nc: 'on'\nd: 0.10\ne: 0\nf: \"010\"\n")
    assert load_preset(str(file)) == {"a": 10, "b": True, "c": "on", "d": 0.1, "e": 0, "f": "010"}
    with pytest.raises(UserError, match="--set train.steps=010, line 1: 010 is read as 8"):
        parse_overrides(["train.steps=010"])


@pytest.mark.parametrize("model", RUNS)
def test_a_tilde_is_the_home_folder_on_the_command_line_and_in_prefects_parameters(
    model: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    names = {*config.PLACES} & set(model.model_fields)
    run = resolve(model, {**given_for(model), **dict.fromkeys(names, "~/here")})
    assert names and {getattr(run, name) for name in names} == {"/home/ann/here"}
    with pytest.raises(UserError, match="~nobody-of-this-name/x: there is no such user"):
        resolve(model, {**given_for(model), **dict.fromkeys(names, "~nobody-of-this-name/x")})


def test_an_address_of_pictures_is_called_an_address() -> None:
    with pytest.raises(UserError, match="subjects=s3://bucket/x: an address, and pictures are"):
        resolve(BuildRun, {"root": "r", "subjects": "s3://bucket/x"})


def test_no_is_a_word_and_no_number() -> None:
    """YAML 1.1 reads a bare `no` as false and `on` as true, which as a number is 1."""
    given = ["root=data", "out=run", "train.mixed_precision=no", "train.tensorboard=off"]
    run = resolve(TrainRun, parse_overrides(given))
    assert run.train.mixed_precision == "no" and run.train.tensorboard is False
    with pytest.raises(UserError, match=r"train\.steps: .*'on'"):
        resolve(TrainRun, parse_overrides([*given, "train.steps=on"]))


def test_settings_are_aligned_wrapped_and_show_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (60, 80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        _, out, _ = run(["settings", "train"], capsys)
        assert max(map(len, out.splitlines())) <= width
    assert "[constant, linear, cosine]" in out and "[whole number, ≥ 1]" in out
    starts = {
        found.start(1)
        for line in out.splitlines()
        if (found := re.search(r"^(?:\S+ = \S+)?  +(\S)", line))
    }
    assert len(starts) == 1
