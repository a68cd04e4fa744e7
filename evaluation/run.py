"""One evaluation by any protocol: scenes, pictures of base and adapter, measures, a folder.

A run that was stopped goes on where it was: painted pictures are kept as long as what decides them
is the same. What the folder holds: `evaluation.folder`.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from focusdpo.data_schemas.errors import TakenAway, UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.images import contact_sheet, encode_png, mark_png
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.scenes import Scene, candidate_seed
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.evaluation.folder import (
    CONFIG,
    GRID,
    ROWS,
    RUN,
    SCENES,
    SUBJECTS,
    WEIGHTS,
    EvaluateResult,
    EvaluationFolder,
    read_object,
    read_pictures,
    result_of,
    result_with,
    write_json,
)
from focusdpo.evaluation.protocols import (
    ADAPTER,
    BASE,
    MODELS,
    Measured,
    Panel,
    Plan,
    Request,
    plan_of,
)
from focusdpo.pipeline.generate import paint
from focusdpo.pipeline.parts import Generator, Image, ReferenceImage
from focusdpo.store.keys import BESIDE, changed, digests_in, require_whole
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.outputs import local, opened
from focusdpo.store.provenance import EVALUATION, machine, packages, require_own

PAINTING = "painting.json"
"""Model -> key of the pictures that lie in images/<model>."""
SHEET_SIDE = 192
"""Most pixels a side of a picture on the sheet, and of a saved reference."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Pictures that are painted in one call."""

    files: tuple[Path, ...]
    """Where they go."""
    prompts: tuple[str, ...]
    references: tuple[tuple[ReferenceImage, ...], ...]
    seeds: tuple[int, ...]

    def paint(self, generator: Generator) -> None:
        """Make the files."""
        pictures = paint(
            self.prompts, self.references, self.seeds, generator, batch=len(self.files)
        )
        for file, picture in zip(self.files, pictures, strict=True):
            # A picture is whole or absent: a run may be killed at any time.
            write_whole(file, mark_png(encode_png(picture)))


Painting = Callable[[Sequence[Batch]], Iterable[Batch]]
"""Paints batches; gives each when it is done, in any order."""


def painting_by(generator: Callable[[], Generator]) -> Painting:
    """In this process and in their order; `generator` is called when the first is to be painted."""

    def painting(batches: Sequence[Batch]) -> Iterator[Batch]:
        painter = generator()
        for batch in batches:
            batch.paint(painter)
            yield batch

    return painting


def evaluate(
    request: Request,
    watch: Watch = quiet,
    painting: Callable[[str | None], Painting] | None = None,
) -> EvaluateResult:
    """Paint, measure, compare; returns at once when this very evaluation is finished already.
    `painting`: who paints with the adapter in a folder, or with the base alone; without it, this
    process does.

    UserError before anything is painted: for bad data, an adapter that is absent, damaged or made
    for another base, and models that cannot measure what the protocol asks for.
    """
    plan = plan_of(request)
    done = result_with(request.out, plan.key)
    if done is not None:
        log.info("%s: finished before, nothing to paint", request.out)
        return done
    given = _base_given(plan)
    for problem in plan.left_out:
        log.warning("left out: %s", problem)
    with opened(request.out, "an evaluation") as out:
        require_own(out.folder, request.out, EVALUATION)
        return _evaluate(plan, out.folder, out.sending(watch), painting or _here(request), given)


def _base_given(plan: Plan) -> EvaluationFolder | None:
    """The evaluation whose pictures of the base are to be taken over. UserError where they are not
    the very pictures that this plan's base would paint, or where it is unfinished or damaged."""
    source = plan.request.base_from
    if source is None:
        return None
    given = EvaluationFolder(local(source))
    again = "leave out --base-from, and the base is painted"
    require_whole(given.path, given.about, again)
    if read_object(given.path / PAINTING, again).get(BASE) != plan.painting_key(BASE):
        raise UserError(
            f"{source}: its base painted other scenes, or with another generator, seeds, settings "
            f"or number of pictures; expected an evaluation like this one; {again}"
        )
    return given


def _here(request: Request) -> Callable[[str | None], Painting]:
    return lambda adapter: painting_by(lambda: request.models.build("generator", adapter=adapter))


def finished(request: Request) -> EvaluateResult | None:
    """The result of this very evaluation, when it is in its folder already. Loads no model."""
    return result_with(request.out, plan_of(request).key)


def _evaluate(
    plan: Plan,
    out: Path,
    watch: Watch,
    painting: Callable[[str | None], Painting],
    base: EvaluationFolder | None,
) -> EvaluateResult:
    started, request = time.perf_counter(), plan.request
    panel = plan.load(watch)
    make_folder(out)
    _begin(out)
    write_subjects(out, panel)
    write_whole(out / CONFIG, request.settings.encode())
    measured: dict[str, Measured[Any]] = {}
    for model in MODELS:
        names = paint_missing(
            out,
            model,
            plan.painting_key(model),
            panel,
            plan.per_scene,
            painting(str(local(request.adapter)) if model == ADAPTER else None),
            batch=request.evaluate.batch,
            watch=watch,
            given=base if model == BASE else None,
        )
        measured[model] = panel.measure(model, out, names, watch)
    write_tables(out, panel, measured)
    write_whole(out / GRID, _grid(out, panel, measured))
    rows = panel.rows(measured)
    write_json(out / ROWS, [asdict(row) for row in rows])
    left = list(_left(panel, measured))
    for name in left:
        if name.endswith(".png") and not (out / name).is_file():
            raise TakenAway(
                f"{out / name}: was taken away; run the same command again: what was finished is "
                "kept"
            )
    about: dict[str, Any] = {
        "key": plan.key,
        "protocol": plan.id,
        "seconds": round(time.perf_counter() - started, 3),
        "adapter": request.adapter,
        "adapter_weights": digests_in(local(request.adapter), [WEIGHTS]).get(WEIGHTS),
        "seed": plan.seed,
        "scenes": len(panel.scenes),
        "pictures": sum(len(records.judged) for records in measured.values()),
        **panel.about(measured),
        "left_out": list(plan.left_out),
        "machine": machine(),
        "packages": packages(),
        BESIDE: digests_in(out, left),
    }
    write_json(out / RUN, about)
    return result_of(request.out, about, rows, resumed=False)


def _begin(out: Path) -> None:
    """What is there is finished no longer; pictures that were damaged are not kept."""
    if (out / RUN).exists():
        for name in changed(out, read_object(out / RUN, f"remove {out / RUN} and run again")):
            EvaluationFolder(out).file(name).unlink(missing_ok=True)
        (out / RUN).unlink()


def _left(panel: Panel[Any], measured: Mapping[str, Measured[Any]]) -> Iterator[str]:
    """What an evaluation leaves and tells digests of."""
    yield from (CONFIG, SCENES, panel.table[0], ROWS, SUBJECTS, GRID)
    yield from (record.image for records in measured.values() for record in records.judged)
    yield from (
        f"references/{name}/{number}.png"
        for name, individual in panel.individuals.items()
        for number in range(len(individual.pictures))
    )


def paint_missing(
    out: Path,
    model: str,
    key: str,
    panel: Panel[Any],
    per_scene: int,
    painting: Painting,
    *,
    batch: int,
    watch: Watch,
    given: EvaluationFolder | None = None,
) -> list[str]:
    """`per_scene` pictures of each of the panel's scenes as `out`/images/`model`/*.png, scene by
    scene, from the scenes' own seeds: base and adapter get the same noise. Their names below `out`.

    Pictures that an earlier run with the same `key` left are kept, those of another key removed,
    and those of `given`, which were painted under this key, taken over; `painting` is called only
    when some are missing. Batches are those of an uninterrupted run, so that neither a stop nor who
    paints which changes a pixel.
    """
    folder = out / "images" / model
    keys = read_object(out / PAINTING, f"remove {out} and run again", default={})
    if keys.get(model) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(out / PAINTING, {**keys, model: key})
    wanted = [(scene, index) for scene in panel.scenes for index in range(per_scene)]
    names = [f"images/{model}/{scene.id}-{index}.png" for scene, index in wanted]
    if given is not None:
        for name in names:
            if not (out / name).exists():
                write_whole(out / name, given.encoded(name))
    missing = []
    for start in range(0, len(names), batch):
        part = range(start, min(start + batch, len(names)))
        if not all((out / names[at]).exists() for at in part):
            owners = [wanted[at] for at in part]
            missing.append(
                Batch(
                    files=tuple(out / names[at] for at in part),
                    prompts=tuple(scene.prompt for scene, _ in owners),
                    references=tuple(
                        tuple(panel.individuals[name].shown for name in scene.subject_ids)
                        for scene, _ in owners
                    ),
                    seeds=tuple(candidate_seed(scene.seed, index) for scene, index in owners),
                )
            )
    if missing:
        done = len(names) - sum(len(job.files) for job in missing)
        watch(f"paint {model}", done, len(names), {})
        for painted in painting(missing):
            done += len(painted.files)
            watch(f"paint {model}", done, len(names), {})
    return names


def write_subjects(out: Path, panel: Panel[Any]) -> None:
    """Who stands in the scenes, with pictures, and what is asked for."""
    about: dict[str, Any] = {}
    for name, individual in panel.individuals.items():
        folder = out / "references" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, picture in enumerate(individual.pictures):
            write_whole(folder / f"{number}.png", encode_png(tile(picture)))
            files.append(f"references/{name}/{number}.png")
        about[name] = {**individual.about, "pictures": files}
    prompts = {scene.id: scene.prompt for scene in panel.scenes}
    write_json(out / SUBJECTS, {"subjects": about, "prompts": prompts})


def write_tables(out: Path, panel: Panel[Any], measured: Mapping[str, Measured[Any]]) -> None:
    """The records of all models, the judge's and those beside them."""
    judged = [record for records in measured.values() for record in records.judged]
    write_whole(out / SCENES, to_parquet(judged, EvalScene))
    file, record_type = panel.table
    beside: list[Any] = [record for records in measured.values() for record in records.beside]
    write_whole(out / file, to_parquet(beside, record_type))


def tile(image: Image) -> Image:
    """A small square picture as it is; another one (H, W, 3) fitted into a white square."""
    height, width = image.shape[:2]
    side = min(SHEET_SIDE, max(height, width))
    if height == width == side:
        return image
    return np.asarray(ImageOps.pad(PillowImage.fromarray(image), (side, side), color="white"))


def _grid(out: Path, panel: Panel[Any], measured: Mapping[str, Measured[Any]]) -> bytes:
    first = {
        model: read_pictures(out, [record.image for record in records.judged if record.index == 0])
        for model, records in measured.items()
    }
    shown = {name: individual.shown.image for name, individual in panel.individuals.items()}
    failed = {
        record.scene_id
        for records in measured.values()
        for record in records.judged
        if record.index == 0 and record.failed > 0
    }
    sheet = comparison_sheet(panel.scenes, shown, first, failed=failed)
    return encode_png(np.asarray(sheet))


def comparison_sheet(
    scenes: Sequence[Scene],
    shown: Mapping[str, Image],
    pictures: Mapping[str, Sequence[Image]],
    limit: int = 12,
    failed: Collection[str] = (),
) -> PillowImage.Image:
    """A column per scene: what was shown of its subjects (a picture of each), then what each model
    painted (`pictures`: model -> a picture (H, W, 3) per scene). Scenes of two subjects in which a
    model failed one (`failed`: ids), else all of two, else all; evenly spaced and in their order:
    none is chosen for its looks."""
    twos = [at for at, scene in enumerate(scenes) if len(scene.subject_ids) == 2]
    lost = [at for at in twos if scenes[at].id in failed]
    pool = lost or twos or list(range(len(scenes)))
    count = min(limit, len(pool))
    chosen = [pool[at * len(pool) // count] for at in range(count)]
    painted = {
        model: [tile(model_pictures[at]) for at in chosen]
        for model, model_pictures in pictures.items()
    }
    height, width = next(iter(painted.values()))[0].shape[:2]
    blank = np.full((height, width, 3), 255, dtype=np.uint8)
    rows: list[Image] = []
    for place in range(max(len(scenes[at].subject_ids) for at in chosen)):
        for at in chosen:
            names = scenes[at].subject_ids
            picture = tile(shown[names[place]]) if place < len(names) else blank
            fitted = PillowImage.fromarray(picture).resize((width, height))
            rows.append(np.asarray(fitted, dtype=np.uint8))
    for tiles in painted.values():
        rows += tiles
    return contact_sheet(rows, columns=len(chosen), scale=1)
