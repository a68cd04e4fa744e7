"""docs/add_an_objective.md and docs/add_a_backbone.md: a package outside the tree, written from the
pages' own code, does what their own commands say."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from in_process import run
from small_root import small_version

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import AblateRun, GenerateRun, TrainRun
from focusdpo.flows.settings import parse_overrides, resolve
from focusdpo.model.objective_registry import OBJECTIVES, VARIANTS

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write(page: str, folder: Path) -> list[list[str]]:
    """The files of a page's code blocks, in `folder`; its commands."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    for name, code in BLOCK.findall(text):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return [
        shlex.split(line) for block in SHELL.findall(text) for line in block.strip().splitlines()
    ]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, which the pages' packages and a dataset lie in."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def follow(
    page: str, outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """Do what a page says; the output of each command by its first words."""
    small_version(outside / "data", scenes=40)
    said = {}
    for program, *arguments in write(page, outside):
        if program == "python":
            monkeypatch.setattr(sys, "argv", arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__")
            continue
        assert program == "focusdpo"
        code, out, err = run(arguments, capsys)
        assert code == 0, out + err
        said[arguments[0]] = out
    return said


def summary(run: Path) -> dict[str, Any]:
    told = json.loads((run / "run.json").read_text("utf-8"))
    assert isinstance(told, dict)
    return told


def test_an_objective_from_outside(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = follow("add_an_objective", outside, monkeypatch, capsys)
    told = summary(outside / "runs/margin")
    assert (told["steps"], told["objective"]) == (3, "mypackage.mine:margin")
    assert "train.objective.name = 'mypackage.mine:margin'" in said["settings"]
    card = json.loads((outside / "runs/margin/adapter/adapter.json").read_text("utf-8"))
    assert card["objective"] == "mypackage.mine:margin"


def test_a_backbone_from_outside(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = follow("add_a_backbone", outside, monkeypatch, capsys)
    assert summary(outside / "runs/tiny")["steps"] == 3
    assert "models.backbone.reference_size = 32" in said["settings"]
    card = json.loads((outside / "runs/tiny/adapter/adapter.json").read_text("utf-8"))
    assert "base: CC0" in card["licences"]


@pytest.fixture
def both(outside: Path) -> None:
    for page in ("add_an_objective", "add_a_backbone"):
        write(page, outside)


def test_an_ablation_takes_it_as_an_arm(both: None) -> None:
    names = "ablation.objectives=[sft, mypackage.mine:margin]"
    run = resolve(AblateRun, {"out": "o", **parse_overrides([names])})
    assert VARIANTS[run.ablation.objectives[1]].settings == {
        "objective.name": "mypackage.mine:margin"
    }
    with pytest.raises(UserError, match="no arm 'sfd'; did you mean 'sft'"):
        resolve(AblateRun, {"out": "o", **parse_overrides(["ablation.objectives=[sfd]"])})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("focus_dop", "no objective 'focus_dop'; did you mean 'focus_dpo'? there are dpo, "),
        ("mypackage.yours:margin", "there is no module mypackage.yours"),
        ("mypackage.mine:gap", "module mypackage.mine has no 'gap'"),
        ("mypackage.mine:margin_loss", "a function; expected focusdpo.model.objective_registry"),
        ("mypackage.mine:", "expected module:name"),
    ],
)
def test_a_wrong_objective_is_named(both: None, name: str, words: str) -> None:
    given = {"root": "r", "out": "o", "train": {"objective": {"name": name}}}
    with pytest.raises(UserError, match=r"train\.objective\.name: ") as caught:
        resolve(TrainRun, given)
    assert words in str(caught.value)


def test_a_loss_of_its_own_has_no_form(both: None) -> None:
    objective = {"name": "mypackage.mine:margin", "form": "tokens"}
    with pytest.raises(UserError, match="has a loss of its own"):
        resolve(TrainRun, {"root": "r", "out": "o", "train": {"objective": objective}})


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"bse": "w"}, r"models\.backbone\.bse: no such field; did you mean 'base'"),
        ({"base": "w", "reference_size": 9}, r"models\.backbone\.reference_size: got 9"),
        ({"kind": "flux-umo"}, "no backbone 'flux-umo'; did you mean 'flux-uno'"),
        ({"kind": "mypackage.tiny:Tiny"}, "module mypackage.tiny has no 'Tiny'"),
    ],
)
def test_a_wrong_backbone_is_named(both: None, backbone: dict[str, Any], words: str) -> None:
    given = {"kind": "mypackage.tiny:TinyConfig", **backbone}
    with pytest.raises(UserError, match=words):
        resolve(GenerateRun, {"preset": "flux-uno", "models": {"backbone": given}})


def test_the_page_of_objectives_has_every_one() -> None:
    text = (DOCS / "objectives.md").read_text("utf-8")
    assert [name for name in OBJECTIVES if f"| `{name}` |" not in text] == []
