"""Evaluations: a leaderboard with intervals, and scenes side by side, worst first."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.images import read_picture
from focusdpo.reports.charts import forest_scale
from focusdpo.reports.evaluation_section import verdict_words
from focusdpo.reports.metric_texts import metric_info
from focusdpo.reports.view import MetricRow
from focusdpo.studio import pictures
from focusdpo.studio.pages.file_routes import kept_picture
from focusdpo.studio.pictures import Encoded
from focusdpo.studio.run_reading import FIELDS, Evaluation, read_evaluation
from focusdpo.studio.views import NavItem, absent, page_of, render, studio_of, text_of

NAV = (NavItem("Evaluation", "/evaluations"),)
PAGE = 12
MOST_OTHERS = 4
SIDE = 512


@dataclass(frozen=True)
class Shown:
    """One model's picture of a scene."""

    title: str
    address: str
    record: EvalScene
    words: str
    value: float


@dataclass(frozen=True)
class SceneRow:
    """A scene with all models beside each other."""

    id: str
    prompt: str
    references: tuple[tuple[str, str], ...]
    """(address, class)."""
    shown: tuple[Shown, ...]
    change: float


def leaderboard(request: Request) -> Response:
    """All evaluations by a metric, protocol by protocol."""
    metric = _metric(request)
    evaluations = [read_evaluation(folder) for folder in studio_of(request).runs().evaluations]
    boards = {
        protocol: _board([each for each in evaluations if each.protocol == protocol], metric)
        for protocol in sorted({each.protocol for each in evaluations})
    }
    return render(
        request,
        "evaluations.html.j2",
        boards=boards,
        metric=metric,
        info=metric_info(metric),
        metrics={name: metric_info(name).title for name in FIELDS},
    )


def _board(
    evaluations: list[Evaluation], metric: str
) -> tuple[list[tuple[Evaluation, MetricRow]], float]:
    rows = [(each, row) for each in evaluations if (row := each.overall(metric)) is not None]
    sign = 1 if metric_info(metric).better == "lower" else -1
    rows.sort(
        key=lambda two: (
            two[1].adapter is None,
            sign * two[1].adapter.mean if two[1].adapter else 0.0,
            two[0].folder.name,
        )
    )
    return rows, forest_scale([row for _, row in rows])


def evaluation(request: Request) -> Response:
    """One evaluation: its table, and its scenes beside those of others."""
    main = _evaluation(request, request.path_params["evaluation"])
    metric, best_first = _metric(request), text_of(request, "order") == "best"
    others = [
        other
        for other in map(read_evaluation, studio_of(request).runs().evaluations)
        if other.folder.id != main.folder.id and other.protocol == main.protocol
    ]
    chosen = request.query_params.getlist("with")[:MOST_OTHERS]
    beside = [other for other in others if other.folder.id in chosen]
    scenes = main.ordered(metric, best_first=best_first)
    page = page_of(request, len(scenes), PAGE)
    overall = [row for row in main.rows if row.group == "all"]
    return render(
        request,
        "evaluation.html.j2",
        one=main,
        others=others,
        chosen=chosen,
        metric=metric,
        info=metric_info(metric),
        best_first=best_first,
        metrics={name: metric_info(name).title for name in FIELDS},
        overall=[(row, forest_scale([row])) for row in overall],
        page=page,
        scenes=[_scene(main, beside, scene, metric) for scene in scenes[page.start : page.stop]],
    )


def _scene(main: Evaluation, beside: list[Evaluation], scene: str, metric: str) -> SceneRow:
    shown = [
        _shown(main, scene, model, name, metric)
        for model, name in main.names.items()
        if model in main.scenes[scene]
    ]
    shown += [
        _shown(other, scene, "adapter", other.folder.name, metric)
        for other in beside
        if "adapter" in other.scenes.get(scene, {})
    ]
    record = next(iter(main.scenes[scene].values()))
    words = ", ".join(record.class_names)
    return SceneRow(
        id=scene,
        prompt=main.prompts.get(scene, words),
        references=tuple(
            (
                f"/evaluations/{main.folder.id}/references/{name}",
                word if record.class_names.count(word) == 1 else f"{word} {name}",
            )
            for name, word in zip(record.subject_ids, record.class_names, strict=True)
            if main.references(name)
        ),
        shown=tuple(shown),
        change=main.change(scene, metric),
    )


def _shown(evaluation: Evaluation, scene: str, model: str, title: str, metric: str) -> Shown:
    record = evaluation.scenes[scene][model]
    return Shown(
        title=title,
        address=f"/evaluations/{evaluation.folder.id}/pictures/{scene}/{model}",
        record=record,
        words=verdict_words(record),
        value=float(getattr(record, metric)),
    )


def picture(request: Request) -> Response:
    """What a model painted of a scene."""
    source = _evaluation(request, request.path_params["evaluation"])
    models = source.scenes.get(request.path_params["scene"], {})
    record = models.get(request.path_params["model"])
    if record is None:
        raise absent("this evaluation has no such picture")
    return _file(request, source, record.image)


def reference(request: Request) -> Response:
    """A subject of the scenes."""
    source = _evaluation(request, request.path_params["evaluation"])
    files = source.references(request.path_params["subject"])
    if not files:
        raise absent("this evaluation has no such subject")
    return _file(request, source, files[0])


def _file(request: Request, source: Evaluation, name: str) -> Response:
    path = source.path(name)
    if path is None:
        raise absent("the picture is gone from the evaluation's folder")
    stamp = path.stat().st_mtime_ns
    tag = f"{source.folder.id}-{stamp}-{path.stat().st_size}"

    def make() -> Encoded:
        try:
            return pictures.encode(read_picture(path, min_side=1).image, SIDE)
        except (UserError, Image.DecompressionBombError) as error:
            raise absent(str(error)) from error

    response = kept_picture(request, tag, (str(path), stamp), make)
    # its address does not name its content: the browser asks whether it is still right
    response.headers["cache-control"] = "private, no-cache"
    return response


def _metric(request: Request) -> str:
    metric = text_of(request, "metric") or "identity"
    if metric not in FIELDS:
        raise UserError(f"metric '{metric}': expected one of {', '.join(FIELDS)}")
    return metric


def _evaluation(request: Request, id: str) -> Evaluation:
    folder = studio_of(request).runs().evaluation(id)
    if folder is None:
        raise absent(f"no evaluation '{id}' in the folders of --runs")
    return read_evaluation(folder)


def routes() -> list[BaseRoute]:
    base = "/evaluations/{evaluation}"
    return [
        Route("/evaluations", leaderboard),
        Route(base, evaluation),
        Route(f"{base}/pictures/{{scene}}/{{model}}", picture),
        Route(f"{base}/references/{{subject}}", reference),
    ]
