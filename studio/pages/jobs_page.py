"""Build, train, evaluate and export from the browser: forms, and what becomes of the jobs."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import read_picture
from focusdpo.flows.build.preview import FIRST
from focusdpo.flows.settings import preset_names
from focusdpo.pipeline.subjects.registered_folders import write_folder
from focusdpo.reports.training_section import sheet_files
from focusdpo.store.addresses import is_remote
from focusdpo.studio.config import StudioConfig, runs_folder
from focusdpo.studio.guard import CSRF_FIELD
from focusdpo.studio.job_files import ID, Job
from focusdpo.studio.job_forms import AWARE, FORMS, asks_own, in_fields, order, own_folder, trained
from focusdpo.studio.pages.file_routes import kept_picture
from focusdpo.studio.pages.subjects_page import usable
from focusdpo.studio.pictures import Encoded, encode
from focusdpo.studio.run_reading import find_runs, find_tables
from focusdpo.studio.shared import Studio
from focusdpo.studio.views import NavItem, absent, render, studio_of

NAV = (NavItem("Jobs", "/jobs"),)
ENDED_WELL = ("done", "incomplete")
NOT_KEPT = (CSRF_FIELD, AWARE.name)
"""Of a form; what was agreed to once is asked again."""
MOST_FIELDS, LARGEST_FIELD = 40, 64 * 1024
MOST_PICTURES, MOST_SHEETS, LARGEST_SHOWN = 6, 2, 1200


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
                others=[run.absolute() for run in acting.config.runs],
                version=acting.latest(),
                waiting=acting.waiting() if kind == "train" else 0,
            )
            if asks_own(kind, form):
                _write_own(acting, own_folder(runs))
            runs.mkdir(parents=True, exist_ok=True)
            job = acting.jobs.start(
                wanted.kind,
                wanted.title,
                acting.config.root,
                wanted.arguments,
                wanted.outputs,
                {key: value for key, value in form.items() if key not in NOT_KEPT},
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
    there = {file.name: file for file in _files(_job(request))}
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
    filled = _filled(jobs, kind, form)
    presets = preset_names()
    asked = {name: filled[name].get("preset") for name in FORMS}
    values = {
        name: job_form.preset_values(
            str(asked[name]) if asked[name] in presets else acting.config.preset
        )
        for name, job_form in FORMS.items()
    }
    return render(
        request,
        "jobs.html.j2",
        status,
        forms=FORMS,
        preset_values=values,
        runs=names,
        presets=presets,
        preset=acting.config.preset,
        jobs=jobs,
        active=next((job for job in jobs if job.active), None),
        kind=kind,
        said=said,
        filled=filled,
        folder=str(runs),
        waiting=acting.waiting(),
        aware=AWARE.name,
        tables=find_tables(acting.config),
    )


def _write_own(acting: Studio, folder: Path) -> None:
    """The subjects of the next version as a folder of pictures. UserError where there is none."""
    if any(job.active for job in acting.jobs.list(logs=False)):
        return  # which may read them; the order is refused
    there = list(usable(acting).values())
    if not there:
        raise UserError("Who stands in the scenes: there is no subject of your own yet; add one")
    shutil.rmtree(folder, ignore_errors=True)
    store = acting.needed_store()
    for member in there:
        write_folder(
            *(store, member.pictures, folder / member.id),
            class_name=member.class_name,
            licence=member.licence,
        )


def _filled(
    jobs: list[Job], kind: str, form: Mapping[str, str] | None
) -> dict[str, Mapping[str, str]]:
    """What stands in each form: what was just sent, else what the last job of its kind had, so that
    a second build does not fall back to the preset without a word."""
    filled: dict[str, Mapping[str, str]] = {
        name: job_form.at_first for name, job_form in FORMS.items()
    }
    for job in reversed(jobs):
        filled[job.kind] = job.form
    if form is not None and kind in filled:
        filled[kind] = form
    return filled


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
        "progress": [{**asdict(progress), "share": progress.share} for progress in job.progress],
        "words": in_fields(job.kind, job.words),
        "warnings": job.warnings,
        "printed": [in_fields(job.kind, line.rstrip()) for line in job.printed],
        "pictures": [
            f"/jobs/{job.id}/pictures/{name}?{path.stat().st_mtime_ns}"
            for name, path in list(_pictures(job).items())[-_most(job) :]
        ],
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
    if job.kind == "measure" and "pictures" in made:
        shares = {row["model"]: row["mean"] for row in made["rows"] if row["metric"] == "failed"}
        names = made["names"]
        failures = [f"{names[id]} {share:.1%}" for id, share in shares.items() if id in names]
        unfit = made["check"] and not all(fault["ok"] for fault in made["check"])
        return (
            f"{made['pictures']} pictures of {made['scenes']} scenes; failed subjects: "
            f"{', '.join(failures)}"
            + ("; the judge is not fit for these subjects: see what it says" if unfit else "")
        )
    if job.kind == "paint" and "prompt" in made:
        return f"Painted by base and adapter: {made['prompt']}"
    if job.kind in ("export", "share") and "out" in made:
        return f"Written to {made['out']}"
    return ""


def _page_of(job: Job, config: StudioConfig) -> str:
    """Where its result is looked at; "" while there is nothing to see. A training run is to be seen
    as soon as it has begun."""
    if job.kind == "build":
        return "/pairs" if job.state in ENDED_WELL else ""
    if job.kind == "paint":
        return "/paint" if job.state in ENDED_WELL else ""
    runs = find_runs(config)
    for output, page, folders in (
        ("run", "/runs", runs.training),
        ("evaluation", "/evaluations", runs.evaluations),
    ):
        for folder in folders:
            if str(folder.path) == job.outputs.get(output):
                return f"{page}/{folder.id}"
    return ""


def _pictures(job: Job) -> dict[str, Path]:
    """The pictures that a job has made so far, by a name for their address: the first ones of a
    build, what an evaluation paints, and a training's sheets, those from before it went on too; the
    newest last. Plain files, no links."""
    folder = job.outputs.get("evaluation")
    files: dict[str, Path] = {}
    if folder is not None:
        files = {
            f"{path.parent.name}-{path.name}": path
            for path in Path(folder).glob("images/*/*")
            if path.suffix in (".png", ".jpg")
        }
    elif job.kind == "build" and not is_remote(job.root):
        files = {FIRST: Path(job.root) / FIRST}
    elif "run" in job.outputs:
        return {path.name: path for path in sheet_files(Path(job.outputs["run"]))}
    began = datetime.datetime.fromisoformat(job.started).timestamp()
    there = {
        name: path
        for name, path in files.items()
        if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= began
    }
    return dict(sorted(there.items(), key=lambda item: item[1].stat().st_mtime))


def picture(request: Request) -> Response:
    """A picture that a job has made so far."""
    path = _pictures(_job(request)).get(request.path_params["name"])
    if path is None:
        raise absent("no such picture")
    stamp = path.stat().st_mtime_ns

    def make() -> Encoded:
        return encode(read_picture(path, min_side=1).image, LARGEST_SHOWN)

    response = kept_picture(request, f"{path.name}-{stamp}", (str(path), stamp), make)
    response.headers["cache-control"] = "private, no-cache"
    return response


def _most(job: Job) -> int:
    """Pictures that its page shows; a sheet is many in one."""
    return MOST_SHEETS if "run" in job.outputs else MOST_PICTURES


def _files(job: Job) -> list[Path]:
    """What an export has written: plain files, no links."""
    folder = job.outputs.get("export")
    if folder is None or job.state not in ENDED_WELL or not Path(folder).is_dir():
        return []
    return sorted(
        path for path in Path(folder).iterdir() if path.is_file() and not path.is_symlink()
    )


def _card(job: Job) -> str:
    """The text of an export's card."""
    for file in _files(job):
        if file.name == "README.md":
            return file.read_text(encoding="utf-8", errors="replace")
    return ""


def routes() -> list[BaseRoute]:
    return [
        Route("/jobs", page),
        Route("/jobs/start/{kind}", start, methods=["POST"]),
        Route("/jobs/{job}", show),
        Route("/jobs/{job}/state", state),
        Route("/jobs/{job}/stop", stop, methods=["POST"]),
        Route("/jobs/{job}/files/{name}", download),
        Route("/jobs/{job}/pictures/{name}", picture),
    ]
