"""Subjects come, change and go: just what they touch is computed, and a plan says so before."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import toy_suite
from plain_build import execute, prepare
from toy_root import HUES, Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import cli, wiring
from focusdpo.flows.build import sources
from focusdpo.flows.build.explain import Explanation, explain
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun, GenerateRun
from focusdpo.flows.settings import merge, resolve
from focusdpo.pipeline import describe
from focusdpo.pipeline.subjects.registry import read_registry
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import latest_id
from focusdpo.store.versions import open_version

READ = resolve(GenerateRun, {})


def run(toy: Toy, **given: object) -> BuildRun:
    """A build from the root's registry."""
    tree = merge(toy.tree(), given)
    if "subjects" not in given:
        del tree["subjects"]
    return resolve(BuildRun, tree)


def build(toy: Toy, **given: object) -> BuildResult:
    toy_suite.GENERATOR.calls.clear()
    return execute(prepare(run(toy, **given)))


def plan(toy: Toy, **given: object) -> Explanation:
    return explain(prepare(run(toy, **given)).builder)


def register(toy: Toy, *names: str) -> None:
    sources.add(READ, str(toy.root), [toy.subjects / name for name in names])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root and its folder of subjects: red, blue and green registered and built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wiring.SUITES, "pocket", "toy_suite")
        wiring.resident_parts.cache_clear()
        folder = tmp_path_factory.mktemp("made")
        toy = Toy(folder / "subjects", folder / "root")
        toy.add(**HUES)
        sources.add(READ, str(toy.root), [toy.subjects])
        build(toy)
    return folder


@pytest.fixture
def built(toy: Toy, made: Path) -> Toy:
    """A copy of its own of `made`."""
    shutil.copytree(made / "root", toy.root)
    return toy


def causes(told: Explanation) -> dict[str, dict[str, int]]:
    return {one.text: one.partitions for one in told.causes}


def every_stage(count: int) -> dict[str, int]:
    return dict.fromkeys(STAGES, count)


def test_a_build_from_the_registry_is_that_from_the_folder(toy: Toy, tmp_path: Path) -> None:
    build(toy, subjects=str(toy.subjects))
    from_folder = toy.files("stages") | toy.files("shards")
    version = latest_id(Store.open(toy.root))
    toy.root = tmp_path / "registered"
    sources.add(READ, str(toy.root), [toy.subjects])
    assert build(toy).version == version
    assert (toy.files("stages") | toy.files("shards")) == from_folder


def test_an_added_subject_computes_its_partitions_and_keeps_every_byte(
    built: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = built.files("stages") | built.files("shards")
    built.add(yellow=("square", 60.0))
    register(built, "yellow")
    told = plan(built)
    assert causes(told) == {"new subject: yellow": every_stage(4)}
    assert told.counts == dict.fromkeys(STAGES, (10, 4))
    assert told.seconds is not None and told.seconds > 0
    painted = []
    paint = toy_suite.GENERATOR.generate
    monkeypatch.setattr(
        toy_suite.GENERATOR,
        "generate",
        lambda *given, **more: painted.append(len(given[0])) or paint(*given, **more),
    )
    result = build(built)
    assert result.made == every_stage(4)  # alone, and with each of the three others
    assert painted == [3, 3, 3, 3], "three candidates of the one scene of four partitions"
    after = built.files("stages") | built.files("shards")
    assert before.items() <= after.items()
    shards = {name.removeprefix("shards/") for name in after.keys() - before.keys()}
    assert set(result.new_shards) == {name for name in shards if not name.startswith("stages")}
    assert result.new_shards


def test_a_removed_subject_leaves_the_index_and_no_shard_changes(built: Toy) -> None:
    old = open_version(built.root)
    before = built.files("stages") | built.files("shards")
    sources.remove(str(built.root), ["blue"])
    told = plan(built)
    assert told.causes == [] and told.seconds == 0
    (line,) = told.leaving
    pairs = [row for row in old.rows if "blue" in row.subject_ids]
    assert line.startswith("removed subject: blue: 3 partitions with")
    assert f"with {len(pairs)} pairs" in line
    result = build(built)
    assert result.made == {} and not toy_suite.GENERATOR.calls
    assert result.new and result.new_shards == []
    new = open_version(built.root)
    assert new.ids() == old.ids() - {row.pair_id for row in pairs}
    assert (built.files("stages") | built.files("shards")) == before
    again = open_version(built.root, old.id)
    assert again.rows == old.rows, "the old version is as it was"
    again.verify()
    for row in again.rows:
        assert again.read(row).pair.id == row.pair_id


def test_a_changed_subject_computes_its_partitions_anew(built: Toy) -> None:
    old = open_version(built.root)
    built.add(blue=("disc", 300.0))
    sources.update(READ, str(built.root), [built.subjects / "blue"])
    assert causes(plan(built)) == {"changed subject: blue": every_stage(3)}
    assert build(built).made == every_stage(3)
    new = open_version(built.root)
    others = {row.pair_id for row in old.rows if "blue" not in row.subject_ids}
    assert {row.pair_id for row in new.rows if "blue" not in row.subject_ids} == others


def test_another_licence_computes_nothing(built: Toy) -> None:
    card = built.subjects / "blue" / "subject.yaml"
    card.write_text("class_name: disc\nlicence: MIT\n")
    sources.update(READ, str(built.root), [built.subjects])
    result = build(built)
    assert result.made == {} and result.new
    told = {one["id"]: one["licence"] for one in open_version(built.root).manifest["subjects"]}
    assert told == {"red": "", "blue": "MIT", "green": ""}


def test_a_plan_names_the_setting_and_what_depends_on_it(built: Toy) -> None:
    told = plan(built, score={"crop_margin": 0.2})
    ((text, partitions),) = causes(told).items()
    assert text.startswith("changed setting score.crop_margin ") and text.endswith("-> 0.2")
    assert partitions == {"score": 6, "pair": 6}
    told = plan(built, compose={"variants": 2})
    ((text, partitions),) = causes(told).items()
    assert text == "changed setting compose.variants 1 -> 2"
    assert partitions == every_stage(6)
    built.add(yellow=("square", 60.0))
    register(built, "yellow")
    told = plan(built, pair={"min_drop": 0.2})
    assert {text.partition(" pair.")[0]: what for text, what in causes(told).items()} == {
        "new subject: yellow": every_stage(4),
        "changed setting": {"pair": 6},
    }


def test_the_estimate_is_what_their_like_took(built: Toy) -> None:
    stages = open_version(built.root).manifest["stages"]
    per_partition = {stage: one["seconds"] / one["artefacts"] for stage, one in stages.items()}
    built.add(yellow=("square", 60.0))
    register(built, "yellow")
    assert plan(built).seconds == pytest.approx(4 * sum(per_partition.values()), abs=0.06)
    twice = plan(built, generate={"candidates": 6})
    assert twice.seconds == pytest.approx(
        2 * (10 * sum(per_partition.values()) - 6 * per_partition["compose"]), abs=0.06
    )


def test_a_plan_names_models_code_and_what_is_gone(
    built: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(built.root)
    store.drop("score", store.keys("score")[0])
    told = plan(built)
    assert causes(told) == {
        "gone since the last version (removed, or damaged and dropped)": {"score": 1}
    }
    assert build(built).made == {"score": 1}
    monkeypatch.setitem(toy_suite.FINGERPRINTS, "clip", "toy-2")
    monkeypatch.setattr(toy_suite.PARTS["clip"], "fingerprint", "toy-2")
    wiring.resident_parts.cache_clear()
    assert causes(plan(built)) == {
        "changed model of score (identity, clip)": {"score": 6, "pair": 6}
    }
    monkeypatch.undo()
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    wiring.resident_parts.cache_clear()
    monkeypatch.setattr(describe, "VERSION", 99)
    ((text, partitions),) = causes(plan(built)).items()
    assert text.startswith("changed code of describe: version ") and text.endswith("-> 99")
    assert partitions == {"describe": 6, "disrupt": 6, "score": 6, "pair": 6}


def test_a_first_plan_knows_no_times(toy: Toy) -> None:
    sources.add(READ, str(toy.root), [toy.subjects])
    told = plan(toy)
    assert causes(told) == {"no version yet: everything that is not there": every_stage(6)}
    assert told.seconds is None


def test_with_nothing_to_do_nothing_is_composed_or_read(
    built: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = built.files()
    prepared = prepare(run(built))
    assert prepared.settled is not None
    assert prepared.counts == dict.fromkeys(STAGES, (6, 0))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("composed although nothing had changed")

    monkeypatch.setattr("focusdpo.flows.build.builder.compose", refuse)
    result = execute(prepare(run(built)))
    assert (result.new, result.made, result.partitions) == (False, {}, 6)
    assert result.pairs == len(open_version(built.root).rows)
    assert built.files() == before


@pytest.mark.parametrize("what", ["stages/pair", "stages/generate", "shards"])
def test_what_is_lost_is_noticed_though_nothing_was_asked_anew(built: Toy, what: str) -> None:
    before = built.files("stages") | built.files("shards")
    victim = next((built.root / what).rglob("*.tar"))
    victim.unlink()
    assert prepare(run(built)).settled is None
    assert build(built).whole
    assert (built.files("stages") | built.files("shards")) == before


def test_what_failed_is_tried_again(built: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        fingerprint = "toy"

        def generate(self, *_: object, **more: object) -> object:
            raise UserError("no memory")

    built.add(yellow=("square", 60.0))
    register(built, "yellow")
    monkeypatch.setitem(toy_suite.PARTS, "generator", Broken())
    wiring.resident_parts.cache_clear()
    assert len(build(built).failed) == 4
    monkeypatch.setitem(toy_suite.PARTS, "generator", toy_suite.GENERATOR)
    wiring.resident_parts.cache_clear()
    assert prepare(run(built)).settled is None
    told = causes(plan(built))
    left_out = dict.fromkeys(list(STAGES)[1:], 4)
    assert told == {"left out of the last version (a failure or a stop)": left_out}
    assert build(built).made == left_out


def test_pictures_read_with_another_setting_are_not_mixed(built: Toy) -> None:
    with pytest.raises(UserError, match=r"ingest: size 96 -> 32.*subjects update --root"):
        prepare(run(built, ingest={"size": 32}))
    small = resolve(GenerateRun, {"ingest": {"size": 32}})
    done = sources.update(small, str(built.root), [built.subjects])
    assert set(done.changed.changed) == {"red", "blue", "green"}
    assert prepare(run(built, ingest={"size": 32})).builder.plan.counts()["generate"] == (6, 6)


def test_registering_is_all_or_nothing(toy: Toy) -> None:
    (toy.subjects / "broken").mkdir()
    (toy.subjects / "broken" / "a.png").write_bytes(b"no picture")
    (toy.subjects / "broken" / "subject.yaml").write_text("class_name: disc")
    (toy.subjects / "empty").mkdir()
    with pytest.raises(UserError, match="2 of 5 .* none was registered: broken: .* empty: "):
        sources.add(READ, str(toy.root), [toy.subjects])
    assert read_registry(Store.open(toy.root)) is None
    with pytest.raises(UserError, match="nowhere: no such folder"):
        sources.add(READ, str(toy.root), [toy.subjects / "nowhere"])
    with pytest.raises(UserError, match="^red: given twice"):
        other = toy_suite.write_subjects(toy.subjects.parent / "more", {"red": ("disc", 10.0)})
        sources.add(READ, str(toy.root), [toy.subjects / "red", other / "red"])


def test_folders_and_a_stray_picture_are_not_registered_as_one_subject(toy: Toy) -> None:
    (picture, *_) = sorted((toy.subjects / "blue").glob("*.png"))
    shutil.copy(picture, toy.subjects / "stray.png")
    with pytest.raises(UserError, match=r"pictures \(stray.png\) and folders of pictures \(blue"):
        sources.add(READ, str(toy.root), [toy.subjects])
    assert not toy.root.exists()
    # A folder without pictures beside a subject's pictures is no subject.
    (toy.subjects / "blue" / "notes").mkdir()
    done = sources.add(READ, str(toy.root), [toy.subjects / "blue"])
    assert done.changed.changed == ("blue",)


def test_a_vanished_picture_leaves_one_subject_out(built: Toy) -> None:
    store = Store.open(built.root)
    state = read_registry(store)
    assert state is not None
    store.drop("subjects", state.entries["blue"].artefact)
    prepared = prepare(run(built))
    (problem,) = prepared.problems
    assert problem.startswith("blue: its pictures are gone") and "subjects update" in problem
    with pytest.raises(UserError, match="its pictures are gone"):
        prepare(run(built, strict=True))
    sources.update(READ, str(built.root), [built.subjects / "blue"])
    assert prepare(run(built)).problems == []


Capture = pytest.CaptureFixture[str]


def command(capsys: Capture, *arguments: str) -> tuple[int, dict, str]:
    """Exit code, the JSON line and what was said by a command."""
    try:
        cli.main([*arguments, "--json"])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    heard = capsys.readouterr()
    lines = heard.out.splitlines()
    return code, json.loads(lines[-1]), "\n".join(lines[:-1]) + heard.err


def test_the_commands(toy: Toy, capsys: Capture) -> None:
    root = str(toy.root)
    options = toy.arguments[:3] + toy.arguments[5:]
    code, told, said = command(capsys, "subjects", "add", str(toy.subjects), "--root", root)
    assert (code, told["changed"]) == (0, ["blue", "green", "red"])
    assert "added green: square, 2 pictures, licence not told" in said
    code, told, said = command(capsys, *options)
    assert code == 0 and told["pairs"] > 0 and told["new_shards"]
    toy.add(yellow=("square", 60.0))
    command(capsys, "subjects", "add", str(toy.subjects / "yellow"), "--root", root)
    code, told, said = command(capsys, *options, "--plan")
    assert told["why"][0]["cause"] == "new subject: yellow" and told["plan"]["pair"] == 4
    assert "new subject: yellow: compose 4, generate 4" in said and "s of model computation" in said
    code, told, said = command(capsys, "subjects", "list", "--root", root)
    by_name = {one["id"]: one for one in told["subjects"]}
    assert by_name["red"]["state"] == "built" and by_name["red"]["partitions"] == 3
    assert by_name["yellow"]["state"] == "new" and by_name["yellow"]["pairs"] == 0
    assert by_name["red"]["pairs"] == sum(
        "red" in row.subject_ids for row in open_version(toy.root).rows
    )
    code, told, said = command(capsys, "subjects", "remove", "blue", "--root", root)
    assert code == 0 and "removed blue" in said
    code, told, said = command(capsys, *options)
    assert code == 0 and told["made"]["pair"] == 3, "yellow with itself, red and green"
    versions = command(capsys, "dataset", "versions", "--root", root)[1]["versions"]
    a, b = (one["id"] for one in versions)
    assert versions[1]["latest"] and versions[1]["parent"] == a
    code, told, said = command(capsys, "dataset", "diff", a, b, "--root", root)
    assert told["subjects"]["added"] == ["yellow"] and told["subjects"]["removed"] == ["blue"]
    assert set(told["removed"]) == {"subject removed: blue"}
    code, told, said = command(capsys, "inspect", root)
    assert all(stage["bytes"] > 0 for stage in told["stages"].values())
    assert told["root_bytes"]["artefacts"] > sum(one["bytes"] for one in told["stages"].values())
    code, told, said = command(capsys, "subjects", "remove", "red", "--purge", "--root", root)
    assert code == 0 and "none of their 2 pictures is left" in said
    sweep = ("gc", "--root", root, "--keep-versions", "1", "--min-age-hours", "0")
    code, told, said = command(capsys, *sweep, "--dry-run")
    assert code == 0 and not told["removed"] and told["bytes"] > 0 and "would remove" in said
    freed = told["bytes"]
    code, told, said = command(capsys, *sweep)
    assert code == 0 and told["removed"] and list(told["versions"]) == [a]
    assert told["bytes"] == freed
    code, told, said = command(capsys, "subjects", "remove", "red", "--root", root)
    assert code == 2 and "'red' is not registered" in told["error"]


def test_a_no_op_run_takes_seconds(built: Toy) -> None:
    start = time.process_time()
    execute(prepare(run(built)))
    assert time.process_time() - start < 2


def test_candidates_are_painted_with_an_adapter_and_keys_go_by_its_weights(
    built: Toy, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"one")
    generated = {"generate": {"adapter": str(folder)}}
    before = latest_id(Store.open(str(built.root)))
    told = plan(built, **generated)
    assert {stage for one in told.causes for stage in one.partitions} == set(STAGES) - {"compose"}
    made = build(built, **generated)
    assert made.version != before and made.new
    store = Store.open(str(built.root))
    version = open_version(store, made.version)
    assert version.manifest["config"]["generate"]["adapter"] == str(folder)
    models = {stage: one["versions"]["model"] for stage, one in version.manifest["stages"].items()}
    assert models["generate"] == toy_suite.fingerprint("generator", adapter=str(folder))
    assert models["disrupt"] == toy_suite.fingerprint("inpainter")  # repaints with the base
    # Another place, the same weights: nothing is made anew. Other weights: everything.
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert not build(built, generate={"adapter": str(moved)}).made
    (moved / "w.safetensors").write_bytes(b"two")
    wiring.resident_parts.cache_clear()
    assert plan(built, generate={"adapter": str(moved)}).causes
    # Without one the dataset is as it was.
    assert build(built).version == before


def test_failures_come_beside_what_is_there_from_the_same_candidates(built: Toy) -> None:
    before = open_version(Store.open(str(built.root)), "latest")
    made = build(built, pair={"max_failure_per_scene": 2})
    assert made.made and "generate" not in made.made
    rows = open_version(Store.open(str(built.root)), made.version).rows
    assert {row.source for row in rows} > {"failure"}
    old = {row.pair_id for row in rows if row.source == "disrupt"}
    assert old == {row.pair_id for row in before.rows if row.source == "disrupt"}
