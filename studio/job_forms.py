"""Forms of the jobs page: a few settings each, the others as lines of `--set`; checked by the same
models as on the command line, so a wrong one gets the same words before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.settings import merge, parse_overrides, preset_names, resolve

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_SETTINGS, LONGEST_SETTING = 100, 500
Kind = Literal["build", "train", "evaluate", "export", "share"]


@dataclass(frozen=True)
class Field:
    """A setting with a place of its own in a form."""

    name: str
    label: str
    path: str = ""
    """The setting that it stands for, as `--set` names it; "" for a form's own."""
    help: str = ""
    options: tuple[str, ...] = ()
    """Choices; "" lets the preset decide."""
    number: bool = False
    check: bool = False


@dataclass(frozen=True)
class Order:
    """A checked request: what will run."""

    kind: Kind
    title: str
    arguments: list[str]
    outputs: dict[str, str] = field(default_factory=dict)


OBJECTIVES = ("", "focus_dpo", "dpo", "dpo_prior", "patch_dpo", "sft")
FORMS: Mapping[Kind, tuple[Field, ...]] = {
    "build": (
        Field("variants", "Scenes per set of subjects", "compose.variants", number=True),
        Field("candidates", "Candidates per scene", "generate.candidates", number=True),
    ),
    "train": (
        Field("name", "Name of the run"),
        Field("objective", "Objective", "train.objective.name", options=OBJECTIVES),
        Field("steps", "Steps", "train.steps", number=True),
    ),
    "evaluate": (
        Field("run", "Training run"),
        Field("pairs", "Scenes of two subjects", "held_out.pairs", number=True),
        Field("singles", "Scenes of one subject", "held_out.singles", number=True),
        Field("triples", "Scenes of three subjects", "held_out.triples", number=True),
        Field(
            "same_class", "Scenes of two subjects of one class", "held_out.same_class_pairs",
            number=True,
        ),
    ),
    "export": (
        Field("run", "Training run"),
        Field("layout", "Layout", options=("diffusers", "uno")),
    ),
    "share": (
        Field("allow_unlicensed", "Also subjects that state no licence; the card says so",
              check=True),
    ),
}  # fmt: skip


def order(
    kind: str, form: Mapping[str, str], *, root: str, runs: Path, version: str | None = None
) -> Order:
    """What a filled form asks for; `version`: the newest. UserError names the field or setting that
    is wrong."""
    if kind == "share":
        return _share(form, root, runs, version)
    makers = {"build": _build, "train": _train, "evaluate": _evaluate, "export": _export}
    if kind not in makers:
        raise UserError(f"no job is called '{kind[:20]}'; there are {', '.join(FORMS)}")
    return makers[kind](form, root, runs)


def trained(runs: Path) -> list[str]:
    """Names of the training runs that have an adapter."""
    if not runs.is_dir():
        return []
    return sorted(one.name for one in runs.iterdir() if is_run(one))


def is_run(folder: Path) -> bool:
    return bool(NAME.fullmatch(folder.name)) and (folder / "adapter").is_dir()


def evaluation_of(runs: Path, run: str) -> Path:
    """Where the studio puts a run's evaluation."""
    return runs / f"{run}-evaluated"


def _build(form: Mapping[str, str], root: str, runs: Path) -> Order:
    from focusdpo.flows.config import BuildRun

    settings = _settings("build", form)
    _checked(BuildRun, form, settings, root=root)
    arguments = ["-v", "build-dataset", "--root", root, *_common(form, settings)]
    return Order("build", "build-dataset", arguments, {"root": root})


def _train(form: Mapping[str, str], root: str, runs: Path) -> Order:
    from focusdpo.flows.config import TrainRun

    name = _run_name(form.get("name", ""))
    out = runs / name
    if out.exists() and not (out / "run.yaml").exists():
        raise UserError(f"Name of the run: {name} is there and is no training run; choose another")
    settings = _settings("train", form)
    _checked(TrainRun, form, settings, root=root, out=str(out))
    arguments = ["-v", "train", "--root", root, "--out", str(out), *_common(form, settings)]
    return Order("train", f"train {name}", arguments, {"run": str(out)})


def _evaluate(form: Mapping[str, str], root: str, runs: Path) -> Order:
    from focusdpo.flows.config import EvaluateRun

    name = _chosen_run(form, runs)
    adapter, out = runs / name / "adapter", evaluation_of(runs, name)
    settings = _settings("evaluate", form)
    _checked(EvaluateRun, form, settings, adapter=str(adapter), out=str(out))
    arguments = ["-v", "evaluate", "--adapter", str(adapter), "--out", str(out)]
    arguments += _common(form, settings)
    return Order("evaluate", f"evaluate {name}", arguments, {"evaluation": str(out)})


def _export(form: Mapping[str, str], root: str, runs: Path) -> Order:
    name = _chosen_run(form, runs)
    layout = form.get("layout") or "diffusers"
    if layout not in ("diffusers", "uno"):
        raise UserError(f"Layout: got '{layout[:20]}'; expected diffusers or uno")
    out = runs / f"{name}-export"
    arguments = ["-v", "export", "adapter", "--adapter", str(runs / name / "adapter")]
    arguments += ["--out", str(out), "--layout", layout]
    evaluation = evaluation_of(runs, name)
    if (evaluation / "run.json").exists():
        arguments += ["--evaluate", str(evaluation)]
    return Order("export", f"export {name}", [*arguments, "--json"], {"export": str(out)})


def _share(form: Mapping[str, str], root: str, runs: Path, version: str | None) -> Order:
    if version is None:
        raise UserError("there is no dataset version yet; build one first")
    out = runs / f"dataset-{version}"
    arguments = ["-v", "export", "dataset", "--root", root, "--version", version]
    arguments += ["--out", str(out)]
    if form.get("allow_unlicensed"):
        arguments.append("--allow-unlicensed")
    title = f"export dataset {version}"
    return Order("share", title, [*arguments, "--json"], {"export": str(out)})


def _settings(kind: Kind, form: Mapping[str, str]) -> list[str]:
    """`section.field=value` of the form's own fields, then of its lines, which win."""
    own = [
        f"{one.path}={_value(one, form[one.name].strip())}"
        for one in FORMS[kind]
        if one.path and form.get(one.name, "").strip()
    ]
    lines = [line.strip() for line in form.get("settings", "").splitlines()]
    lines = [line.removeprefix("--set").strip() for line in lines if line]
    if len(lines) > MOST_SETTINGS:
        raise UserError(f"Other settings: {len(lines)} lines; expected at most {MOST_SETTINGS}")
    for line in lines:
        if len(line) > LONGEST_SETTING or not line.isprintable():
            raise UserError(
                f"Other settings: '{line[:40]}...' is too long or holds control characters; "
                "expected section.field=value, as in train.steps=200"
            )
    return [*own, *lines]


def _value(one: Field, text: str) -> str:
    if one.options and text not in one.options:
        raise UserError(f"{one.label}: got '{text[:40]}'; expected one of {', '.join(one.options)}")
    if one.number and not re.fullmatch(r"\d{1,7}", text):
        raise UserError(f"{one.label}: got '{text[:40]}'; expected a whole number")
    return text


def _checked(
    model: type[BaseModel], form: Mapping[str, str], settings: Sequence[str], **given: Any
) -> None:
    resolve(model, merge({"preset": _preset(form), **parse_overrides(settings)}, given))


def _preset(form: Mapping[str, str]) -> str:
    preset = form.get("preset") or "pocket"
    if preset not in preset_names():
        raise UserError(
            f"Preset: there is no '{preset[:40]}'; there are {', '.join(preset_names())}"
        )
    return preset


def _common(form: Mapping[str, str], settings: Sequence[str]) -> list[str]:
    prefect = "--prefect" if form.get("prefect") else "--no-prefect"
    sets = [part for line in settings for part in ("--set", line)]
    return ["--preset", _preset(form), *sets, prefect, "--json"]


def _run_name(text: str) -> str:
    name = text.strip()
    if not NAME.fullmatch(name):
        raise UserError(
            f"Name of the run: got '{name[:40]}'; expected letters, digits, '.', '-' and '_', "
            "as in first-try"
        )
    return name


def _chosen_run(form: Mapping[str, str], runs: Path) -> str:
    name = form.get("run", "").strip()
    if not NAME.fullmatch(name) or not is_run(runs / name):
        there = trained(runs)
        raise UserError(
            "Training run: choose one that has ended"
            + (f": {', '.join(there[:5])}" if there else "; there is none yet, train first")
        )
    return name
