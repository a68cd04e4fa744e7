"""Paint with an adapter: one's own subjects or an evaluation's scene, base beside it, with what the
judge says. One result is kept."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import read_picture
from focusdpo.data_schemas.prompts import MOST_SUBJECTS
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.protocols import MODELS
from focusdpo.flows.commands.options import arguments_of
from focusdpo.flows.commands.painting import PaintRun
from focusdpo.flows.generate.compared import Compared, read_compared
from focusdpo.flows.settings import preset_names, resolve
from focusdpo.pipeline.subjects.registered_folders import cut_outs
from focusdpo.reports.metric_texts import metric_info
from focusdpo.studio import pictures
from focusdpo.studio.config import paintings_folder
from focusdpo.studio.guard import CSRF_FIELD
from focusdpo.studio.job_files import Job
from focusdpo.studio.job_forms import preset_of
from focusdpo.studio.pages.file_routes import kept_picture
from focusdpo.studio.pages.subjects_page import usable
from focusdpo.studio.run_reading import Evaluation, is_of, read_evaluation
from focusdpo.studio.shared import Studio
from focusdpo.studio.views import NavItem, absent, render, studio_of, text_of

NAV = (NavItem("Paint", "/paint"),)
KIND = "paint"
SLOTS = tuple(f"subject{at}" for at in range(1, MOST_SUBJECTS + 1))
MOST_PICTURES = 8
SHOWN = ("identity", "leakage_margin")
SIDE = 512


@dataclass(frozen=True)
class Reference:
    """A subject's picture to paint from."""

    name: str
    class_name: str
    picture: Image.Image


def page(request: Request) -> Response:
    """The form, and the painting that is kept."""
    return _page(request, _asked(request))


async def start(request: Request) -> Response:
    """Paint what the form asks for, as a job; with errors it comes back as it was filled."""
    sent = await request.form(max_files=0, max_fields=20, max_part_size=64 * 1024)
    form = {key: value for key, value in sent.items() if isinstance(value, str)}

    def begin() -> Response:
        try:
            job = _start(studio_of(request), form)
        except UserError as error:
            return _page(request, form, said=str(error), status=400)
        return RedirectResponse(f"/jobs/{job.id}", 303)

    return await run_in_threadpool(begin)


def picture(request: Request) -> Response:
    """A picture of the painting that is kept."""
    _, folder, made = _kept(studio_of(request))
    name = request.path_params["name"]
    if made is None or name not in made.files:
        raise absent("the painting that is kept has no such picture")
    path = folder / name
    stamp = path.stat().st_mtime_ns

    def make() -> pictures.Encoded:
        return pictures.encode(read_picture(path, min_side=1).image, SIDE)

    response = kept_picture(request, f"{name}-{stamp}", (str(path), stamp), make)
    response.headers["cache-control"] = "private, no-cache"
    return response


def _page(
    request: Request, form: Mapping[str, str], *, said: str = "", status: int = 200
) -> Response:
    studio = studio_of(request)
    job, _, made = _kept(studio)
    scene = _scene(studio, form)
    return render(
        request,
        "paint.html.j2",
        status,
        said=said,
        form=form,
        scene=scene,
        prompt_of_scene=scene and scene[0].prompts.get(scene[1], ""),
        slots=SLOTS,
        runs=studio.runs().adapters(),
        subjects=usable(studio),
        presets=preset_names(),
        preset=form.get("preset") or studio.config.preset,
        most=MOST_PICTURES,
        job=job,
        active=next(
            (studio_job for studio_job in studio.jobs.list(logs=False) if studio_job.active), None
        ),
        made=made,
        stamp=job.id if job else "",
        numbers=[] if made is None else numbers(made),
    )


def numbers(made: Compared) -> list[dict[str, Any]]:
    """The judge's table: a row per metric, with the difference in its own direction."""
    rows = []
    for name in SHOWN:
        info = metric_info(name)
        base, adapter = (made.mean(model, name) for model in MODELS)
        change = None if base is None or adapter is None else adapter - base
        rows.append(
            {"title": info.title, "about": METRICS[name].meaning, "better": info.better,
             "base": base, "adapter": adapter, "change": change}
        )  # fmt: skip
    return rows


def _asked(request: Request) -> dict[str, str]:
    """What stands in the form at first: what the address names, else the last painting's order."""
    named = ("run", "evaluation", "scene", *SLOTS)
    form = {name: text for name in named if (text := text_of(request, name))}
    studio = studio_of(request)
    scene = _scene(studio, form)
    if scene is not None and "run" not in form:
        for run in studio.runs().adapters():
            if is_of(scene[0].folder, run.path / "adapter"):
                form["run"] = run.id
    if form.keys() & {"evaluation", *SLOTS}:
        return form
    job, _, _ = _kept(studio)
    before = {} if job is None else dict(job.form)
    return {**{k: v for k, v in before.items() if k not in ("evaluation", "scene")}, **form}


def _scene(studio: Studio, form: Mapping[str, str]) -> tuple[Evaluation, str] | None:
    """An evaluation and its scene that the form is about. 404 for one that is not there."""
    if not form.get("evaluation"):
        return None
    folder = studio.runs().evaluation(form["evaluation"])
    evaluation = None if folder is None else read_evaluation(folder)
    scene = form.get("scene", "")
    if evaluation is None or scene not in evaluation.scenes:
        raise absent("this evaluation, or this scene of it, is no longer there")
    return evaluation, scene


def _start(studio: Studio, form: Mapping[str, str]) -> Job:
    """UserError names the field that is wrong, or says that another job is at work."""
    run = studio.runs().run(form.get("run", ""))
    if run is None or not (run.path / "adapter").is_dir():
        raise UserError("Adapter: choose a training run that has ended")
    scene = _scene(studio, form)
    shown = _own(studio, form) if scene is None else _of_scene(*scene)
    count = form.get("count", "").strip() or "2"
    if not count.isdecimal() or not 1 <= int(count) <= MOST_PICTURES:
        raise UserError(f"Pictures of each: got '{count[:20]}'; expected 1 to {MOST_PICTURES}")
    seed = form.get("seed", "").strip() or "0"
    if not seed.isdecimal() or len(seed) > 9:
        raise UserError(f"Seed: got '{seed[:20]}'; expected a whole number below 1000000000")
    folder = paintings_folder(studio.config) / secrets.token_hex(8)
    files = tuple(folder / "shown" / f"{reference.name}.png" for reference in shown)
    given: dict[str, Any] = {
        "preset": preset_of(form),
        "adapter": str(run.path / "adapter"),
        "reference": tuple(map(str, files)),
        "class_name": tuple(reference.class_name for reference in shown),
        "prompt": " ".join(form.get("prompt", "").split()) or None,
        "seed": int(seed),
        "count": int(count),
        "compare": True,
        "out": str(folder / "result"),
    }
    resolve(PaintRun, {name: value for name, value in given.items() if value is not None})
    (folder / "shown").mkdir(parents=True)
    try:
        for file, reference in zip(files, shown, strict=True):
            reference.picture.save(file)
        job = studio.jobs.start(
            KIND,
            f"paint {', '.join(reference.class_name for reference in shown)} with {run.name}",
            studio.config.root,
            ["-v", "generate", *arguments_of(PaintRun, given), "--json"],
            {"painting": str(folder / "result")},
            {key: value for key, value in form.items() if key != CSRF_FIELD},
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # the last result stays until there is another one
    _, last, _ = _kept(studio)
    for other in folder.parent.iterdir():
        if other not in (folder, last.parent):
            shutil.rmtree(other, ignore_errors=True)
    return job


def _own(studio: Studio, form: Mapping[str, str]) -> list[Reference]:
    everyone = usable(studio)
    names = [form[slot] for slot in SLOTS if form.get(slot)]
    unknown = [name for name in names if name not in everyone]
    if not names or unknown:
        raise UserError(
            f"Subjects: choose 1 to {len(SLOTS)}" + (f"; '{unknown[0][:64]}' is none of them"
            if unknown else "")
        )  # fmt: skip
    if len(set(names)) < len(names):
        raise UserError("Subjects: one is chosen twice; choose each once")
    store = studio.needed_store()
    chosen = [everyone[name] for name in names]
    return [
        Reference(member.id, member.class_name, cut_outs(store, member.pictures[:1])[0])
        for member in chosen
    ]


def _of_scene(evaluation: Evaluation, scene: str) -> list[Reference]:
    record = next(iter(evaluation.scenes[scene].values()))
    references = []
    for at, (name, word) in enumerate(zip(record.subject_ids, record.class_names, strict=True), 1):
        files = evaluation.references(name)
        path = evaluation.path(files[0]) if files else None
        if path is None:
            raise UserError(f"the evaluation's folder holds no picture of '{name[:64]}'")
        image = Image.fromarray(read_picture(path, min_side=1).image)
        # names in tables may be a stranger's: the file is called by its place
        references.append(Reference(f"subject-{at}", word, image))
    return references


def _kept(studio: Studio) -> tuple[Job | None, Path, Compared | None]:
    """The job that painted last, where, and what; None while there is nothing to see."""
    for job in studio.jobs.list(logs=False):
        folder = Path(job.outputs.get("painting", ""))
        if job.kind == KIND and (made := read_compared(folder)) is not None:
            return job, folder, made
    return None, Path(), None


def routes() -> list[BaseRoute]:
    return [
        Route("/paint", page),
        Route("/paint/start", start, methods=["POST"]),
        Route("/paint/pictures/{name}", picture),
    ]
