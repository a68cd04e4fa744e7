"""Forms of the jobs: what a page may ask of a command, checked by the command's own model before
anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.evaluation.measure.run import PARTS
from focusdpo.flows.commands.export import ExportAdapterRun, ExportDatasetRun
from focusdpo.flows.commands.options import arguments_of
from focusdpo.flows.config import BuildRun, EvaluateRun, Run, TrainRun
from focusdpo.flows.measure.config import EXAMPLE, MeasureRun
from focusdpo.flows.settings import (
    choices_of,
    field_at,
    merge,
    option_of,
    parse_overrides,
    preset_names,
    resolve,
    with_blanks,
)
from focusdpo.studio.config import OWN as STATE

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_SETTINGS, LONGEST_SETTING = 100, 500
LONGEST_PATH = 400


@dataclass(frozen=True)
class Input:
    """An input of a form."""

    name: str
    label: str
    path: str = ""
    """The setting that it stands for, dotted; "" for the form's own."""
    options: tuple[str, ...] = ()
    """Choices; "" lets the preset decide."""
    number: bool = False
    check: bool = False
    hint: str = "first-try"
    """What stands in an empty text."""
    most: int = 64
    """Characters of a text."""


@dataclass(frozen=True)
class Form:
    """A command's form."""

    command: str
    model: type[BaseModel]
    title: str
    about: str
    settings: Mapping[str, str]
    """Input -> the dotted setting that has a place of its own. Its label and its choices are the
    setting's."""
    own: tuple[Input, ...] = ()
    at_first: Mapping[str, str] = field(default_factory=dict)
    """What is filled in before there was a job of its kind."""

    @property
    def has_preset(self) -> bool:
        """Whether a preset lies under what is given, and further settings may be."""
        return issubclass(self.model, Run)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """In the order in which they stand."""
        return (*self.own, *(self._input(name, path) for name, path in self.settings.items()))

    def preset_values(self, preset: str) -> dict[str, str]:
        """Input -> what an empty one means: the setting's value under a preset."""
        if not self.has_preset:
            return {}
        run = with_blanks(self.model, {"preset": preset})
        paths = {
            form_input.name: form_input.path
            for form_input in self.inputs
            if form_input.path and not form_input.check
        }
        values = {name: attrgetter(path)(run) for name, path in paths.items()}
        return {name: "none" if value is None else str(value) for name, value in values.items()}

    def _input(self, name: str, path: str) -> Input:
        setting = field_at(self.model, path)
        about = setting.description or name
        choices = choices_of(setting)
        check = setting.annotation is bool
        label = setting.title or (about if check else re.split("[;:,.]", about)[0])
        return Input(
            name,
            label[:1].upper() + label[1:],
            path,
            options=("", *choices) if choices and self.has_preset else choices,
            number=setting.annotation in (int, int | None),
            check=check,
        )


NAMED, CHOSEN = Input("name", "Name of the run"), Input("run", "Training run")
HELD_OUT, OWN = "individuals that nothing has seen", "my own subjects"
SCENES = Input("scenes", "Who stands in the scenes", options=(HELD_OUT, OWN))
PICTURES = Input("pictures", "Table or folder of pictures", hint=EXAMPLE, most=LONGEST_PATH)
REFERENCES = Input("references", "Folder of the subjects", hint="", most=LONGEST_PATH)
"""Where the table names them alone."""
AWARE = Input("aware", "Train without the decisions that no build has taken in", check=True)
FORMS = {
    "build": Form(
        "build-dataset",
        BuildRun,
        "Build",
        "Subjects become pairs. Only what is missing is computed.",
        {"variants": "compose.variants", "candidates": "generate.candidates"},
    ),
    "train": Form(
        "train",
        TrainRun,
        "Train",
        "Pairs become an adapter. The same name again goes on.",
        {
            "objective": "train.objective.name",
            "steps": "train.steps",
            "previews": "train.previews.every",
        },
        own=(NAMED, AWARE),
    ),
    "evaluate": Form(
        "evaluate",
        EvaluateRun,
        "Evaluate",
        "Base and adapter beside each other, through a judge that no pair was made with.",
        {
            "pairs": "held_out.pairs",
            "singles": "held_out.singles",
            "triples": "held_out.triples",
            "same_class": "held_out.same_class_pairs",
        },
        own=(CHOSEN, SCENES),
    ),
    "measure": Form(
        "measure",
        MeasureRun,
        "Measure",
        "Pictures from any model: which subjects are missing, doubled or in another's looks. The "
        f"preset decides who judges; “{EXAMPLE}” is a table that ships.",
        {"check": "check", "layout": "layout"},
        own=(NAMED, PICTURES, REFERENCES),
        at_first={"check": "yes"},
    ),
    "export": Form(
        "export adapter",
        ExportAdapterRun,
        "Export the adapter",
        "The adapter with its card, ready to be given away.",
        {"layout": "layout"},
        own=(CHOSEN,),
    ),
    "share": Form(
        "export dataset",
        ExportDatasetRun,
        "Export the dataset",
        "The newest version as others load it, with a card.",
        {"allow_unlicensed": "allow_unlicensed"},
    ),
}
"""Kind of job -> its form."""
SAID = (
    (
        r"write `licence:` into their subject\.yaml \(.*?\)",
        "tell it on the page of each subject",
    ),
    (r"or export with (--allow-unlicensed)", r"or tick \1"),
    (
        r"run the same command again (\(.*?\)), or look first: focusdpo report .*",
        r"start the same job again \1, or look at the pairs first",
    ),
    (
        r"look at the pairs \(focusdpo report .*?\) or train: focusdpo train .*",
        "look at the pairs, or train",
    ),
)
"""What commands say of files, and where the pages have it."""


def asks_own(kind: str, form: Mapping[str, str]) -> bool:
    """Whether the registered subjects' pictures are needed as a folder."""
    return kind == "evaluate" and form.get(SCENES.name) == OWN


@dataclass(frozen=True)
class Order:
    """A checked request: what will run."""

    kind: str
    title: str
    arguments: list[str]
    outputs: dict[str, str]


def order(
    kind: str,
    form: Mapping[str, str],
    *,
    root: str,
    runs: Path,
    others: Sequence[Path] = (),
    version: str | None = None,
    waiting: int = 0,
) -> Order:
    """What a filled form asks for; `others`: folders that may be read beside `runs`; `version`: the
    newest; `waiting`: decisions that it has not taken in. UserError names the field or setting that
    is wrong."""
    if kind not in FORMS:
        raise UserError(f"no job is called '{kind[:20]}'; there are {', '.join(FORMS)}")
    about = FORMS[kind]
    if kind == "train" and waiting and not form.get(AWARE.name):
        raise UserError(
            f"{counted(waiting, 'decision')} of reviewers {'is' if waiting == 1 else 'are'} not in "
            f"the dataset yet: build first, or tick “{AWARE.label}”"
        )
    reach = Reach(runs, others)
    title, given, outputs = _place(kind, form, root, reach, version)
    values = {
        form_input.path: (
            "true" if form_input.check else _value(form_input, form[form_input.name].strip())
        )
        for form_input in about.inputs
        if form_input.path and form.get(form_input.name, "").strip()
    }
    words = ["-v", *about.command.split()]
    if not about.has_preset:
        checked = resolve(about.model, {**given, **values})
        filled = {name: getattr(checked, name) for name in (*given, *values)}
        return Order(kind, title, [*words, *arguments_of(about.model, filled), "--json"], outputs)
    settings = [*(f"{path}={value}" for path, value in values.items()), *_lines(form)]
    preset = preset_of(form)
    run = resolve(about.model, merge({"preset": preset, **parse_overrides(settings)}, given))
    if isinstance(run, MeasureRun):
        for name in ("references", "within", "lite"):
            reach.check(name, getattr(run, name))
    prefect = "--prefect" if form.get("prefect") else "--no-prefect"
    arguments = [*arguments_of(about.model, {**given, "preset": preset})]
    arguments += [part for line in settings for part in ("--set", line)]
    return Order(kind, title, [*words, *arguments, prefect, "--json"], outputs)


def _place(
    kind: str, form: Mapping[str, str], root: str, reach: Reach, version: str | None
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """What a job is called, what it works on and where it writes (options of its command), and what
    it makes."""
    given: dict[str, Any]
    runs = reach.runs
    if kind == "build":
        return "build-dataset", {"root": root}, {"root": root}
    if kind == "share":
        if version is None:
            raise UserError("there is no dataset version yet; build one first")
        out = str(runs / f"dataset-{version}")
        return (
            f"export dataset {version}",
            {"root": root, "version": version, "out": out},
            {"export": out},
        )
    if kind == "train":
        name = _run_name(form.get("name", ""))
        folder = runs / name
        if folder.exists() and not (folder / "run.yaml").exists():
            raise UserError(
                f"Name of the run: {name} is there and is no training run; choose another"
            )
        return f"train {name}", {"root": root, "out": str(folder)}, {"run": str(folder)}
    if kind == "measure":
        name = _run_name(form.get("name", ""))
        folder = runs / name
        if folder.exists() and not (folder / PARTS).is_dir():
            raise UserError(
                f"Name of the run: {name} is there and is no measurement; choose another"
            )
        given = {"out": str(folder), **_asked_pictures(form, reach)}
        return f"measure {name}", given, {"evaluation": str(folder)}
    name = _chosen_run(form, runs)
    adapter, evaluation = str(runs / name / "adapter"), evaluation_of(runs, name)
    _value(SCENES, form.get(SCENES.name, "") or HELD_OUT)
    if asks_own(kind, form):
        out, data = str(own_evaluation_of(runs, name)), str(own_folder(runs))
        given = {"adapter": adapter, "out": out, "protocol": "subjects", "data": data}
        return f"evaluate {name} on my own subjects", given, {"evaluation": out}
    if kind == "evaluate":
        out = str(evaluation)
        return f"evaluate {name}", {"adapter": adapter, "out": out}, {"evaluation": out}
    out = str(runs / f"{name}-export")
    there = (evaluation, own_evaluation_of(runs, name))
    given = {
        "adapter": adapter,
        "out": out,
        "evaluate": tuple(str(measured) for measured in there if (measured / "run.json").exists()),
    }
    return f"export {name}", given, {"export": out}


@dataclass(frozen=True)
class Reach:
    """What a form may have read: the folders that the studio knows."""

    runs: Path
    """Names are relative to this one."""
    others: Sequence[Path] = ()

    def path(self, label: str, text: str) -> Path:
        """What a text names. UserError for what is absent, or elsewhere."""
        path = (self.runs / text).resolve()
        if not text.isprintable() or len(text) > LONGEST_PATH or not self._holds(path):
            there = ", ".join(str(folder) for folder in (self.runs, *self.others))
            raise UserError(
                f"{label}: '{text[:80]}' lies in no folder of this studio ({there}); put it there, "
                "or start the studio with --runs DIR"
            )
        if not path.exists():
            raise UserError(f"{label}: there is no {path}")
        return path

    def check(self, label: str, value: str | None) -> None:
        """The same of a setting, which is relative to where the studio was started."""
        if value is not None:
            self.path(label, str(Path(value).expanduser().absolute()))

    def _holds(self, path: Path) -> bool:
        tops = [folder.resolve() for folder in (self.runs, *self.others)]
        inner = [path.relative_to(top) for top in tops if path.is_relative_to(top)]
        return any(not any(part.startswith(".") for part in relative.parts) for relative in inner)


def _asked_pictures(form: Mapping[str, str], reach: Reach) -> dict[str, str]:
    """Table or folder, and the subjects' folder where one is told."""
    text = form.get(PICTURES.name, "").strip() or EXAMPLE
    if text == EXAMPLE and not (reach.runs / EXAMPLE).exists():
        return {"pictures": EXAMPLE}
    asked = {"pictures": str(reach.path(PICTURES.label, text))}
    if subjects := form.get(REFERENCES.name, "").strip():
        asked["references"] = str(reach.path(REFERENCES.label, subjects))
    return asked


def in_fields(kind: str, message: str) -> str:
    """What a command says, with the form's fields in place of options and files."""
    for pattern, words in SAID:
        message = re.sub(pattern, words, message)
    about = FORMS.get(kind)
    for form_input in about.inputs if about is not None else ():
        option = (
            option_of(field_at(about.model, form_input.path)) if about and form_input.path else None
        )
        if option is not None:
            message = re.sub(
                rf"{re.escape(option.flag)}(?![\w-])", f"“{form_input.label}”", message
            )
        elif form_input.path:
            message = re.sub(
                rf"\b{re.escape(form_input.path)}\b(?!=)", f"“{form_input.label}”", message
            )
    return message


def trained(runs: Path) -> list[str]:
    """Names of the training runs that have an adapter."""
    if not runs.is_dir():
        return []
    return sorted(path.name for path in runs.iterdir() if is_run(path))


def is_run(folder: Path) -> bool:
    return bool(NAME.fullmatch(folder.name)) and (folder / "adapter").is_dir()


def evaluation_of(runs: Path, run: str) -> Path:
    """Where the studio puts a run's evaluation."""
    return runs / f"{run}-evaluated"


def own_evaluation_of(runs: Path, run: str) -> Path:
    """The same on one's own subjects."""
    return runs / f"{run}-evaluated-own"


def own_folder(runs: Path) -> Path:
    """Where the registered subjects lie as pictures while they are evaluated."""
    return runs / STATE / "subjects"


def _lines(form: Mapping[str, str]) -> list[str]:
    """`section.field=value` of the form's lines of further settings."""
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
    return lines


def _value(form_input: Input, text: str) -> str:
    if form_input.options and text not in form_input.options:
        raise UserError(
            f"{form_input.label}: got '{text[:40]}'; expected one of "
            f"{', '.join(form_input.options)}"
        )
    if form_input.number and not re.fullmatch(r"\d{1,7}", text):
        raise UserError(f"{form_input.label}: got '{text[:40]}'; expected a whole number")
    return text


def preset_of(form: Mapping[str, str]) -> str:
    """The preset that a form names; UserError for one that is not shipped."""
    preset = form.get("preset") or "pocket"
    if preset not in preset_names():
        raise UserError(
            f"Preset: there is no '{preset[:40]}'; there are {', '.join(preset_names())}"
        )
    return preset


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
