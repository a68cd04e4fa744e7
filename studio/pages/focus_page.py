"""The focus explorer: where the loss looks, over noise levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.shards import IndexRow
from focusdpo.studio.focus_maps import BRANCHES, MAPS, PHASES
from focusdpo.studio.pages.file_routes import answer
from focusdpo.studio.run_reading import RunFolder
from focusdpo.studio.version_reading import Dataset
from focusdpo.studio.views import NavItem, absent, render, studio_of, text_of

NAV = (NavItem("Focus", "/focus"),)
OFFERED = 12


def choose(request: Request) -> Response:
    """Some pairs to begin with: of most subjects, evenly over margins."""
    dataset = studio_of(request).needed_dataset()
    pairs = dataset.pairs
    order = np.lexsort((pairs.margin, -pairs.num_subjects))
    most = order[
        : max(OFFERED, int((pairs.num_subjects == pairs.num_subjects.max(initial=0)).sum()))
    ]
    spread = np.linspace(0, len(most) - 1, min(OFFERED, len(most))).round().astype(int)
    return render(request, "focus_choose.html.j2", dataset=dataset, rows=pairs.rows(most[spread]))


def explorer(request: Request) -> Response:
    """The slider; its maps are asked for by the page's script."""
    dataset, row, adapter = _asked(request)
    return render(
        request,
        "focus.html.j2",
        dataset=dataset,
        row=row,
        adapters=studio_of(request).runs().adapters(),
        adapter=adapter,
        maps=MAPS,
    )


def begin(request: Request) -> Response:
    """Have the maps computed."""
    dataset, row, adapter = _asked(request)
    folder = None if adapter is None else adapter.path / "adapter"
    studio_of(request).focus.begin(_key(row, adapter), dataset.sample(row.pair_id), folder)
    return JSONResponse({"state": "working"}, 202)


def state(request: Request) -> Response:
    """Whether they are there, with their numbers."""
    _, row, adapter = _asked(request)
    try:
        maps = studio_of(request).focus.maps(_key(row, adapter))
    except KeyError as error:
        raise absent("nobody asked for these maps; load the page again") from error
    return JSONResponse({"state": "working"} if maps is None else maps.as_json())


def strip(request: Request) -> Response:
    """One map over all noise levels, frames side by side."""
    _, row, adapter = _asked(request)
    key = _key(row, adapter)
    phase, branch, name = (request.path_params[field] for field in ("phase", "branch", "map"))
    if phase not in PHASES or branch not in BRANCHES or name not in MAPS:
        raise absent(f"no map '{phase}/{branch}/{name}'")
    try:
        maps = studio_of(request).focus.maps(key)
    except KeyError:
        maps = None
    if maps is None or (phase, branch, name) not in maps.strips:
        raise absent("this map is not computed")
    tag = "-".join([*key, phase, branch, name])
    response = answer(tag, maps.strips[phase, branch, name])
    response.headers["cache-control"] = "private, no-cache"
    return response


def _asked(request: Request) -> tuple[Dataset, IndexRow, RunFolder | None]:
    """The pair, and the training run whose adapter is looked at; 404 for what is not there."""
    dataset, row = studio_of(request).pair_row(request.path_params["pair"])
    id = text_of(request, "adapter")
    runs = {run.id: run for run in studio_of(request).runs().adapters()}
    if id and id not in runs:
        raise absent(f"no training run '{id}' with an adapter")
    return dataset, row, runs.get(id)


def _key(row: IndexRow, adapter: RunFolder | None) -> tuple[str, ...]:
    """All that the maps depend on; an adapter that is trained anew is another."""
    if adapter is None:
        return row.pair_id, row.digest
    return row.pair_id, row.digest, adapter.id, str(_changed(adapter.path / "adapter"))


def _changed(folder: Path) -> int:
    return max((file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()), default=0)


def routes() -> list[BaseRoute]:
    return [
        Route("/focus", choose),
        Route("/focus/{pair}", explorer),
        Route("/focus/{pair}/maps", begin, methods=["POST"]),
        Route("/focus/{pair}/maps", state),
        Route("/focus/{pair}/maps/{phase}/{branch}/{map}", strip),
    ]
