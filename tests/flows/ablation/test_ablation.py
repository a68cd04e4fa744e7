"""An ablation on a toy suite that trains: what it leaves, what it does not do twice, and that
neither kills nor the number of workers show in the result."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import toy_root
import toy_suite
import yaml
from evaluated import scene_record
from killed_cell import KilledCell
from plain_build import execute, prepare

from focusdpo.data_schemas.ablations import BASE, Ablation, read_ablation, to_json
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.evaluation import held_out, pocket_protocol, validation
from focusdpo.evaluation.held_out import HeldOut, HeldOutConfig
from focusdpo.evaluation.metrics import METRICS
from focusdpo.flows import wiring
from focusdpo.flows.ablation.cells import Cell, Cells, run_cell
from focusdpo.flows.ablation.config import FOCUS, AblationConfig
from focusdpo.flows.ablation.result import best_pictures
from focusdpo.flows.ablation.run import Ablate, AblateOutcome, Workers
from focusdpo.flows.config import AblateRun, BuildRun
from focusdpo.flows.runner import PlainSteps
from focusdpo.flows.settings import merge, resolve
from focusdpo.model.training.config import ObjectiveConfig

SETTINGS: dict[str, Any] = {
    "train": {
        "batch_pairs": 2,
        "warmup": 1,
        "mixed_precision": "no",
        "lora": {"rank": 2, "targets": ["to_q", "to_k", "to_v"]},
        "objective": {"eta": 1.0, "beta": 10.0},
    },
    "held_out": {"singles": 2, "pairs": 2, "same_class_pairs": 2, "triples": 2},
    "ablation": {
        "objectives": ["sft", "focus_d", "focus_dpo"],
        "sources": ["both", "disrupt"],
        "seeds": 2,
        "steps": 2,
        "search_lr": [1e-3],
        "search_beta": [1.0, 300.0],
        "search_lr_alone": [1e-3],
        "validation_scenes": 6,
        "choices": [],
        "workers": 2,
        "resamples": 200,
    },
}
SHOWN = ("identity", "all")
NAMES = ("ablation.json", "ablation.html", "ablation.md", "curves.svg", "pictures.png")
SMALL = {"sources": ["both"], "seeds": 1, "search_beta": [1.0]}
TIMES = ("seconds", "wall_seconds", "workers", "command")
"""What may differ between two runs of the same settings."""


@pytest.fixture(scope="module", autouse=True)
def suite() -> Iterator[None]:
    """The toy suite that trains, in place of the pocket one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wiring.SUITES, "pocket", "toy_trainer")
        patch.setattr(validation, "_BASES", {})
        wiring.resident_parts.cache_clear()
        yield
    wiring.resident_parts.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a dataset in `root`, and the settings in `preset.yaml`."""
    folder = tmp_path_factory.mktemp("ablation")
    toy = toy_root.Toy(folder / "subjects", folder / "root")
    toy_suite.write_subjects(toy.subjects, toy_root.HUES)
    execute(prepare(resolve(BuildRun, toy.tree())))
    (folder / "preset.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def settings(folder: Path, out: Path, **changes: Any) -> AblateRun:
    """The settings with other `ablation` fields; sections by name."""
    sections = {name: changes.pop(name) for name in ("held_out", "train") if name in changes}
    own = {"preset": str(folder / "preset.yaml"), "root": str(folder / "root"), "out": str(out)}
    return resolve(AblateRun, merge({"ablation": changes, **sections}, own))


Compute = Callable[[Cell], dict[str, Any]]


class Here(Workers):
    """Computes cells in this process."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, cell: Cell) -> dict[str, Any]:
        return self.compute(cell)


@dataclasses.dataclass
class Later:
    """A step that is run when its result is asked for."""

    result: Callable[[], Any]


class InTurn(PlainSteps):
    def start(self, kind: str, title: str, work: Callable[[], Any]) -> Any:
        return Later(functools.cache(work))


def ablate(run: AblateRun, compute: Compute = run_cell) -> AblateOutcome:
    """Cell by cell in this process."""
    return Ablate(run, lambda _: Here(compute)).perform(InTurn())


def never(cell: Cell) -> dict[str, Any]:
    raise AssertionError(f"{cell.name} is made again")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> AblateOutcome:
    """An ablation that nothing disturbed, cell by cell in this process."""
    return ablate(settings(folder, folder / "out"))


@pytest.fixture(scope="module")
def record(outcome: AblateOutcome) -> Ablation:
    return read_ablation(Path(outcome.out) / "ablation.json")


def timeless(record: Ablation) -> str:
    """The record without what two runs of the same settings may differ in."""
    fields = json.loads(to_json(record))
    return json.dumps({name: fields[name] for name in fields if name not in TIMES})


def files(below: Path) -> dict[str, bytes]:
    """What cells leave, but for times."""
    return {
        str(path.relative_to(below)): path.read_bytes()
        for path in sorted(below.rglob("*"))
        if path.name in ("scenes.parquet", "scorer.parquet", "focus.safetensors")
        or path.suffix == ".png"
        or path.parent.name == "adapter"
    }


def stamps(below: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in below.rglob("*") if path.is_file()}


def test_it_leaves_a_record_and_a_report(outcome: AblateOutcome, record: Ablation) -> None:
    out = Path(outcome.out)
    assert [name for name in NAMES if not (out / name).stat().st_size] == []
    assert outcome.report == str(out / "ablation.html") and outcome.verdict
    assert outcome.made == outcome.cells
    trained = [f"{o}/{s}" for s in ("both", "disrupt") for o in ("sft", "focus_d", "focus_dpo")]
    assert [arm.name for arm in record.arms] == [BASE, *trained]
    rows = {(row.arm, row.metric) for row in record.rows if row.group == "all"}
    assert rows == {(arm, metric) for arm in [BASE, *trained] for metric in METRICS}
    assert {row.seeds for row in record.rows if row.arm != BASE} == {2}
    assert record.scenes == 8 and record.protocol == "pocket"
    assert record.pairs["disrupt"] < record.pairs["both"]
    families = {one.family for one in record.contrasts}
    assert {"main", "base", "guards", "disrupt", "group 2 subjects"} <= families
    main = {(one.a, one.b) for one in record.contrasts if one.family == "main"}
    others = {name for name in trained if name.endswith("/both")} - {record.best}
    assert main == {(record.best, other) for other in others}
    shown = record.pictures
    assert set(shown) == {BASE, *trained}
    assert all(len(list((out / below).glob("*.png"))) == 8 for below in shown.values())
    assert {point.step for point in record.curves} == {0, 1, 2}
    # The toy's painter turns with its weights, so arms differ from the base and one another.
    means = {row.arm: row.mean for row in record.rows if (row.metric, row.group) == SHOWN}
    assert len(set(means.values())) > len(trained) / 2


def test_the_best_is_the_focus_arm_that_validation_liked_most(record: Ablation) -> None:
    focus = [point for point in record.search if point.objective in FOCUS]
    most = max(focus, key=lambda point: point.score)
    assert record.best == f"{most.objective}/both" and most.chosen
    for objective in ("sft", "focus_d", "focus_dpo"):
        mine = [point for point in record.search if point.objective == objective]
        chosen = [point for point in mine if point.chosen]
        assert chosen == [max(mine, key=lambda point: point.score)]
        arms = [arm for arm in record.arms if arm.objective == objective]
        assert {tuple(arm.settings.items()) for arm in arms} == {tuple(chosen[0].settings.items())}


def test_once_more_makes_nothing(folder: Path, outcome: AblateOutcome, record: Ablation) -> None:
    before = stamps(Path(outcome.out) / "cells")
    again = ablate(settings(folder, folder / "out"), never)
    assert (again.made, again.cells) == (0, outcome.cells)
    assert again.verdict == outcome.verdict
    now = read_ablation(folder / "out" / "ablation.json")
    assert timeless(now) == timeless(record) and now.seconds == record.seconds
    assert stamps(Path(outcome.out) / "cells") == before


@pytest.mark.parametrize("lost", ["cell.json", "train/run.json", "the folder"])
def test_an_unfinished_cell_is_made_again_and_is_the_same(
    folder: Path, outcome: AblateOutcome, record: Ablation, tmp_path: Path, lost: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(outcome.out, out)
    cell = sorted((out / "cells").glob("focus_dpo-disrupt-s1-*"))[0]
    if lost == "the folder":
        shutil.rmtree(cell)
    else:
        (cell / lost).unlink()
        (cell / "cell.json").unlink(missing_ok=True)
        (cell / "scenes.parquet").unlink()
    assert ablate(settings(folder, out)).made == 1
    assert files(out) == files(Path(outcome.out))
    assert timeless(read_ablation(out / "ablation.json")) == timeless(record)


@pytest.mark.slow
def test_other_steps_are_other_cells(folder: Path, outcome: AblateOutcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(outcome.out, out)
    before = {place: stamps(out / place) for place in ("search", "cells", "base")}
    shorter = ablate(settings(folder, out, **SMALL, objectives=["focus_dpo"], steps=1))
    assert shorter.made == shorter.cells - 1, "all but the base"
    for place, was in before.items():
        now = stamps(out / place)
        assert was.items() <= now.items()
    assert read_ablation(out / "ablation.json").steps == 1
    assert ablate(settings(folder, out), never).made == 0, "the old ones serve as before"


@pytest.mark.parametrize("objectives", [["focus_dpo"], ["sft", "focus_dpo", "focus_read"]])
@pytest.mark.slow
def test_nothing_of_the_held_out_split_decides(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objectives: list[str]
) -> None:
    """Until all is chosen, only individuals of `val` are drawn."""
    kinds: list[str] = []
    drawn: list[tuple[str, str]] = []

    def spy(config: HeldOutConfig, backgrounds: tuple[str, ...]) -> HeldOut:
        drawn.append((kinds[-1], config.split))
        return real(config, backgrounds)

    def noted(cell: Cell) -> dict[str, Any]:
        kinds.append(cell.kind)
        return run_cell(cell)

    real = held_out.held_out_scenes
    for module in (held_out, validation, pocket_protocol):
        monkeypatch.setattr(module, "held_out_scenes", spy)
    changes = {"objectives": objectives, "choices": ["no anchor"], **SMALL}
    ablate(settings(folder, tmp_path, **changes, steps=1), noted)
    told = kinds.index("base")
    assert set(kinds[:told]) == {"search", "choice"} and set(kinds[told:]) == {"base", "final"}
    assert set(drawn) == {
        ("search", "val"),
        ("choice", "val"),
        ("base", "held_out"),
        ("final", "held_out"),
    }
    for cell in (tmp_path / "search").iterdir():
        assert not (cell / "scenes.parquet").exists() and not (cell / "images").exists()
    for path in (tmp_path / "choices").glob("*/scenes.parquet"):
        records = from_parquet(path.read_bytes(), EvalScene, str(path))
        assert {one.protocol for one in records} == {"pocket/val"}
    arms = {arm.name for arm in read_ablation(tmp_path / "ablation.json").arms}
    assert arms == {BASE, *(f"{name}/both" for name in objectives)}


def test_equal_cells_are_one(folder: Path, tmp_path: Path) -> None:
    """Two workers would train into one folder."""
    given: list[str] = []

    def compute(cell: Cell) -> dict[str, Any]:
        given.append(cell.name)
        return run_cell(cell)

    run = settings(
        folder, tmp_path, **(SMALL | {"search_beta": [1.0, 1.0]}), objectives=["dpo"], steps=1
    )
    made = ablate(run, compute).made
    assert made == len(given) == len(set(given)) == 3


def test_search_cells_do_not_depend_on_the_held_out_scenes(folder: Path, tmp_path: Path) -> None:
    plan, other = (
        Cells(settings(folder, tmp_path, held_out={"pairs": count}), "v") for count in (2, 3)
    )
    assert [cell.key for cell in plan.search()] == [cell.key for cell in other.search()]
    chosen = {cell.objective: cell.settings for cell in plan.search() if cell.objective != BASE}
    first, second = ({cell.key for cell in one.final(chosen)} for one in (plan, other))
    assert first.isdisjoint(second) and plan.base().key != other.base().key
    folders = [cell.folder for cell in [plan.base(), *plan.search(), *plan.final(chosen)]]
    assert len(set(folders)) == len(folders)


def test_trials_keep_the_anchors_ratio_to_beta() -> None:
    config = AblationConfig(
        search_lr=(1e-4, 2e-4), search_beta=(3.0, 30.0), search_lr_alone=(1e-5, 2e-5)
    )
    shared = ObjectiveConfig(beta=30.0, eta=1.0)
    trials = config.trials("dpo", shared)
    assert [(one["lr"], one["objective.beta"]) for one in trials] == [
        (1e-4, 3.0),
        (1e-4, 30.0),
        (2e-4, 3.0),
        (2e-4, 30.0),
    ]
    for one in trials:
        assert one["objective.eta"] / one["objective.beta"] == pytest.approx(1 / 30)
    for objective in ("sft", "patch_released"):
        assert config.trials(objective, shared) == [{"lr": 1e-5}, {"lr": 2e-5}]


def test_each_cell_trains_what_its_name_says(folder: Path, tmp_path: Path) -> None:
    names = ["sft", "dpo", "dpo_prior", "focus_s", "focus_d", "patch_dpo", "patch_released"]
    run = settings(folder, tmp_path, objectives=names)
    configs = {cell.objective: cell.train.train for cell in Cells(run, "v").search() if cell.train}
    assert {name: one.objective.name for name, one in configs.items()} == {
        **{name: name for name in ("sft", "dpo", "dpo_prior", "patch_dpo")},
        **{name: "focus_dpo" for name in ("focus_s", "focus_d")},
        "patch_released": "patch_dpo",
    }
    focus = {name: (one.focus.use_structure, one.focus.use_detail) for name, one in configs.items()}
    assert focus["focus_s"] == (True, False) and focus["focus_d"] == (False, True)
    assert configs["patch_released"].objective.patch.form == "released"
    assert {one.validation.scenes for one in configs.values()} == {6}
    assert {(one.source, one.seed, one.steps) for one in configs.values()} == {("both", 0, 2)}


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    once = cast(Cell, KilledCell(tmp_path / "once"))
    with Workers(1) as workers:
        with pytest.raises(RuntimeError, match="killed: a worker process was killed"):
            workers.run(once)
        found = workers.run(once)
        assert found["process"] != os.getpid()
        assert workers.run(once) == found, "it stays from cell to cell"


def test_a_killed_worker_ends_plain_calls_with_advice(folder: Path, tmp_path: Path) -> None:
    def killed(cell: Cell) -> dict[str, Any]:
        with Workers(1) as workers:
            return workers.run(cast(Cell, KilledCell(tmp_path / cell.name)))

    with pytest.raises(UserError, match="process was killed.*the same command goes on"):
        ablate(settings(folder, tmp_path / "out"), killed)


def command(folder: Path, out: Path) -> list[str]:
    """Of few cells."""
    own = ["ablate", "--preset", str(folder / "preset.yaml"), "--root", str(folder / "root")]
    few = [word for k, v in SMALL.items() for word in ("--set", f"ablation.{k}={json.dumps(v)}")]
    return [*toy_root.TOY_CLI, *own, *few, "--out", str(out), "--no-prefect"]


@pytest.mark.slow
def test_kill_minus_9_and_the_same_command_again(folder: Path, tmp_path: Path) -> None:
    """Two workers, killed with their parent, then one; the undisturbed run had none at all."""
    outcome = ablate(settings(folder, folder / "undisturbed", **SMALL))
    record = read_ablation(Path(outcome.out) / "ablation.json")
    environment = os.environ | {"TOY_SUITE": "toy_trainer", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command(folder, tmp_path), env=environment, start_new_session=True)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("cells/*/cell.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "ablation.json").exists()
    done = [path.parent for path in tmp_path.rglob("cell.json")]
    assert 0 < len(done) < outcome.cells
    before = {path: stamp for cell in done for path, stamp in stamps(cell).items()}
    again = [*command(folder, tmp_path), "--set", "ablation.workers=1", "--json"]
    ended = subprocess.run(
        again, env=environment, check=True, timeout=500, capture_output=True, text=True
    )
    told = json.loads(ended.stdout.rstrip().rpartition("\n")[2])
    assert (told["cells"], told["made"]) == (outcome.cells, outcome.cells - len(done))
    now = stamps(tmp_path)
    assert {path: now[path] for path in before} == before
    assert files(tmp_path) == files(Path(outcome.out))
    assert timeless(read_ablation(tmp_path / "ablation.json")) == timeless(record)


@pytest.mark.slow
def test_conditions_and_best_of_are_arms_and_held_against_the_best(
    folder: Path, tmp_path: Path
) -> None:
    own = {"objectives": ["sft", "focus_dpo"], "pairs": [0, 3], "noise_means": [1.25], "steps": 1}
    run = settings(folder, tmp_path, **SMALL, **own, best_of=[2])
    outcome = ablate(run)
    record = read_ablation(tmp_path / "ablation.json")
    main, few = "both-noise1.25", "both-n3-noise1.25"
    trained = [f"{name}/{source}" for source in (main, few) for name in ("sft", "focus_dpo")]
    assert [arm.name for arm in record.arms] == [BASE, "best of 2", *trained]
    assert record.pairs[few] == 3 < record.pairs[main] and record.best == f"focus_dpo/{main}"
    for name in ("best of 2", *trained):
        assert {one.b for one in record.contrasts if one.a == name and one.family == "base"} == {
            BASE
        }
    rivals = {one.b for one in record.contrasts if one.family == "main"}
    assert rivals == {f"sft/{main}", "best of 2"}
    rows = {(row.arm, row.metric): row for row in record.rows if row.group == "all"}
    assert rows["best of 2", "failed"].scenes == rows[BASE, "failed"].scenes == 8
    # Two pictures a scene were painted; the first is the base's own.
    for picture in (tmp_path / "base/images/base").glob("*.png"):
        again = tmp_path / "best-of-2/images/base" / picture.name
        assert again.read_bytes() == picture.read_bytes()
    assert len(list((tmp_path / "best-of-2/images/base").glob("*.png"))) == 16
    assert "both sources, 3 of them, noise about 1.25" in Path(outcome.report).read_text()
    assert ablate(run, never).made == 0
    with pytest.raises(UserError, match="900 pairs of source 'both' were asked for"):
        ablate(settings(folder, tmp_path / "b", **SMALL, **(own | {"pairs": [900]})), never)


def test_the_scorers_choose_the_best_picture_and_the_judge_has_no_say() -> None:
    def seen(index: int, **scores: Any) -> ScorerView:
        values = {"complete": True, "identity": 0.5, "leakage_margin": 0.1} | scores
        return ScorerView(model="base", scene_id="s", index=index, **values)

    views = [
        seen(0), seen(1, complete=False, identity=0.9), seen(2, leakage_margin=0.3),
        seen(3, leakage_margin=float("nan"), identity=0.6),
    ]  # fmt: skip
    like = scene_record("base", 1, 0.5)
    records = [dataclasses.replace(like, index=at, scene_id="s") for at in range(4)]
    chosen, views_of_them = best_pictures(records, views)
    assert [one.index for one in chosen] == [2] == [one.index for one in views_of_them]


def test_conditions_differ_from_the_main_one_in_one_thing() -> None:
    config = AblationConfig(
        sources=("failure", "disrupt"), pairs=(0, 50, 100), noise_means=(2.0, 1.25)
    )
    assert [condition.name for condition in config.conditions] == [
        "failure-noise2",
        "disrupt-noise2",
        "failure-n50-noise2",
        "failure-n100-noise2",
        "failure-noise1.25",
    ]
    assert [condition.name for condition in AblationConfig().conditions] == [
        "both", "disrupt", "rank",
    ]  # fmt: skip
