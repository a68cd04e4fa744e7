"""Build, train, evaluate and export from the browser: forms checked by the commands' own models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.settings import merge, parse_overrides, preset_names, resolve
from focusdpo.studio.config import StudioConfig, runs_folder
from focusdpo.studio.guard import CSRF_FIELD
from focusdpo.studio.job_files import ID, Job
from focusdpo.studio.run_reading import find_runs
from focusdpo.studio.views import NavItem, absent, render, studio_of

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


NAV = (NavItem("Jobs", "/jobs"),)
TITLES = {
    "build": ("Build", "Subjects become pairs. Only what is missing is computed."),
    "train": ("Train", "Pairs become an adapter. The same name again goes on."),
    "evaluate": ("Evaluate", "Base and adapter on individuals that neither has seen."),
    "export": ("Export the adapter", "The adapter with its card, ready to be given away."),
    "share": (
        "Export the dataset",
        "The newest version as others load it, with a card.",
    ),
}
ENDED_WELL = ("done", "incomplete")
MOST_FIELDS, LARGEST_FIELD = 40, 64 * 1024


def page(request: Request) -> Response:
    """Forms, and all jobs."""
    return _page(request)


async def start(request: Request) -> Response:
    """Start what a form asks for; with errors the form comes back as it was filled."""
    sent = await request.form(max_files=0, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD)
    form = {key: value for key, value in sent.items() if isinstance(value, str)}
    kind = request.path_params["kind"]

    def begin() -> Response:
        acting = studio_of(request)
        try:
            runs = runs_folder(acting.config)
            wanted = order(
                kind,
                form,
                root=acting.config.root,
                runs=runs,
                version=studio_of(request).latest(),
            )
            runs.mkdir(parents=True, exist_ok=True)
            job = acting.jobs.start(
                wanted.kind,
                wanted.title,
                acting.config.root,
                wanted.arguments,
                wanted.outputs,
                {key: value for key, value in form.items() if key != CSRF_FIELD},
            )
        except UserError as error:
            return _page(request, kind=kind, said=str(error), form=form, status=400)
        return RedirectResponse(f"/jobs/{job.id}", 303)

    return await run_in_threadpool(begin)


def show(request: Request) -> Response:
    """One job; its script asks for what is new."""
    job = _job(request)
    if not job.active:
        studio_of(request).forget()
    return render(
        request,
        "job.html.j2",
        job=job,
        told=_told(job, studio_of(request).config),
        files=_files(job),
        card=_card(job),
    )


def state(request: Request) -> Response:
    """The same for the script."""
    job = _job(request)
    if not job.active:
        studio_of(request).forget()
    return JSONResponse(_told(job, studio_of(request).config))


def download(request: Request) -> Response:
    """A file of an export."""
    there = {one.name: one for one in _files(_job(request))}
    name = request.path_params["name"]
    if name not in there:
        raise absent("no such file")
    return FileResponse(there[name], filename=name, media_type="application/octet-stream")


def stop(request: Request) -> Response:
    """Stop, as Ctrl-C does; again: at once."""
    studio_of(request).jobs.stop(_job(request).id)
    return RedirectResponse(f"/jobs/{request.path_params['job']}", 303)


def _page(
    request: Request,
    *,
    kind: str = "",
    said: str = "",
    form: Mapping[str, str] | None = None,
    status: int = 200,
) -> Response:
    acting = studio_of(request)
    runs = runs_folder(acting.config)
    names = trained(runs)
    jobs = acting.jobs.list(logs=False)
    return render(
        request,
        "jobs.html.j2",
        status,
        forms=FORMS,
        titles=TITLES,
        runs=names,
        evaluated=[one for one in names if (evaluation_of(runs, one) / "run.json").exists()],
        presets=preset_names(),
        preset=acting.config.preset,
        jobs=jobs,
        active=next((one for one in jobs if one.active), None),
        kind=kind,
        said=said,
        filled=_filled(jobs, kind, form),
        folder=str(runs),
    )


def _filled(
    jobs: list[Job], kind: str, form: Mapping[str, str] | None
) -> dict[str, Mapping[str, str]]:
    """What stands in each form: what was just sent, else what the last job of its kind had, so that
    a second build does not fall back to the preset without a word."""
    found: dict[str, Mapping[str, str]] = {name: {} for name in FORMS}
    for job in reversed(jobs):
        found[job.kind] = job.form
    if form is not None and kind in found:
        found[kind] = form
    return found


def _job(request: Request) -> Job:
    id = request.path_params["job"]
    if not ID.fullmatch(id):
        raise absent("no such job")
    return studio_of(request).jobs.get(id)


def _told(job: Job, config: StudioConfig) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "active": job.active,
        "code": job.code,
        "log": job.log,
        "progress": [{**asdict(one), "share": one.share} for one in job.progress],
        "summary": summary(job),
        "page": _page_of(job, config),
        "files": len(_files(job)),
    }


def summary(job: Job) -> str:
    """What a job that ended well has made, in a sentence."""
    made = job.result
    if job.kind == "build" and "pairs" in made:
        return f"Version {made['version']} with {made['pairs']} pairs" + (
            "" if made.get("new") else " (nothing was new)"
        )
    if job.kind == "train" and "steps" in made:
        return f"{made['objective']}, {made['steps']} steps on {made['pairs']} pairs"
    if job.kind == "evaluate" and "scenes" in made:
        return f"{made['scenes']} scenes painted by base and adapter"
    if job.kind in ("export", "share") and "out" in made:
        return f"Written to {made['out']}"
    return ""


def _page_of(job: Job, config: StudioConfig) -> str:
    """Where its result is looked at; "" while there is nothing to see. A training run is to be seen
    as soon as it has begun."""
    if job.kind == "build":
        return "/pairs" if job.state in ENDED_WELL else ""
    found = find_runs(config)
    for output, page, folders in (
        ("run", "/runs", found.training),
        ("evaluation", "/evaluations", found.evaluations),
    ):
        for one in folders:
            if str(one.path) == job.outputs.get(output):
                return f"{page}/{one.id}"
    return ""


def _files(job: Job) -> list[Path]:
    """What an export has written: plain files, no links."""
    folder = job.outputs.get("export")
    if folder is None or job.state not in ENDED_WELL or not Path(folder).is_dir():
        return []
    return sorted(one for one in Path(folder).iterdir() if one.is_file() and not one.is_symlink())


def _card(job: Job) -> str:
    """The text of an export's card."""
    for one in _files(job):
        if one.name == "README.md":
            return one.read_text(encoding="utf-8", errors="replace")
    return ""


def routes() -> list[BaseRoute]:
    return [
        Route("/jobs", page),
        Route("/jobs/start/{kind}", start, methods=["POST"]),
        Route("/jobs/{job}", show),
        Route("/jobs/{job}/state", state),
        Route("/jobs/{job}/stop", stop, methods=["POST"]),
        Route("/jobs/{job}/files/{name}", download),
    ]
