"""A measurement: pictures of any models, judged, as an evaluation's folder.

What is judged is kept in `parts/` as it comes: a run that was stopped goes on, and a row that is
added later costs itself alone. Pictures are read beside the judge's work, and lie in the folder as
pages show them, those that are scaled down for it as JPEG; the judge sees them as they are.
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.runs import EvalRow, Watch, quiet
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.evaluation.folder import (
    CONFIG,
    FOREIGN,
    ROWS,
    RUN,
    SCENES,
    SUBJECTS,
    EvaluationFolder,
    write_json,
)
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.fitness import FaultFound, check_sight
from focusdpo.evaluation.measure.foreign_plan import ForeignPlan, PlannedPicture
from focusdpo.evaluation.measure.foreign_rows import foreign_rows
from focusdpo.evaluation.measure.judging import (
    FOREIGN_METRICS,
    Known,
    ToJudge,
    judge_pictures,
    know,
)
from focusdpo.evaluation.measure.picture_rows import Problem
from focusdpo.evaluation.measure.public_layouts import LAYOUTS, quarter_of
from focusdpo.evaluation.measure.published import known_as_published, not_told, wanted
from focusdpo.evaluation.measure.reference_pictures import (
    CutOut,
    cut_outs,
    show_references,
)
from focusdpo.evaluation.measure.shown_pictures import scaled_boxes, show, suffix_of
from focusdpo.evaluation.measure.sight import Sight, require_size
from focusdpo.evaluation.photographs import read_photograph
from focusdpo.evaluation.protocols import ADAPTER, EvaluateConfig
from focusdpo.pipeline.parts import Image
from focusdpo.pipeline.stage import chunks
from focusdpo.store.keys import config_digest
from focusdpo.store.local import write_whole
from focusdpo.store.outputs import holds, local, opened
from focusdpo.store.provenance import EVALUATION, machine, packages, require_own

VERSION = 2
"""Raised whenever the same pictures and settings would give other numbers."""
PARTS = "parts"
KEEP_EVERY = 10.0
"""Seconds of work that a kill may cost."""
AHEAD = 2
"""Batches that are read beside the one that is judged."""
READERS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A measurement as it was asked for."""

    plan: ForeignPlan
    out: str
    """Folder or address."""
    judge: str
    """The judge's fingerprint, known without loading it."""
    load: Callable[[], Sight]
    evaluate: EvaluateConfig
    measure: MeasureConfig
    check: bool
    """Whether faults are planted first."""
    strict: bool
    """Whether the first row that cannot be measured ends it."""
    settings: str
    """The resolved configuration (YAML), which lies beside the results."""

    @property
    def how(self) -> dict[str, Any]:
        """What decides the numbers of a picture."""
        judging = self.evaluate.model_dump(
            mode="json", exclude={"resamples", "level", "seed", "batch"}
        )
        measuring = self.measure.model_dump(mode="json", exclude={"composites", "seed"})
        return {
            "version": VERSION, "judge": self.judge, "evaluate": judging, "measure": measuring,
            "published": wanted(self.plan.layout),
        }  # fmt: skip

    @functools.cached_property
    def key(self) -> str:
        """Digest of all that decides the results."""
        return config_digest(
            {
                **self.how,
                "plan": self.plan.key,
                "check": self.check,
                "counted": self.evaluate.model_dump(mode="json"),
                "planted": self.measure.model_dump(mode="json"),
                "metrics": list(FOREIGN_METRICS),
            }
        )


@dataclass(frozen=True, kw_only=True)
class MeasureResult:
    """What a measurement found."""

    out: str
    names: Mapping[str, str]
    """base, adapter, model 3, ... as in the table -> the name that people gave the model."""
    rows: list[EvalRow]
    scenes: int
    pictures: int
    seconds: float
    resumed: bool
    """True when it was finished before and nothing was judged."""
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    """Rows, pictures and references that could not be used, and why."""
    check: tuple[FaultFound, ...]
    """What the judge found of planted faults; () where it was not asked."""

    def called(self, model: str) -> str:
        """A model, or a difference of two, by the names that people gave."""
        return " - ".join(self.names.get(part, part) for part in model.split(" - "))

    def of(self, metric: str, group: str = "all") -> dict[str, EvalRow]:
        """A model's name -> its row of a metric."""
        return {
            self.names[row.model]: row
            for row in self.rows
            if row.metric == metric and row.group == group and row.model in self.names
        }

    @property
    def failed(self) -> dict[str, float]:
        """A model's name -> its share of failed subjects."""
        return {name: row.mean for name, row in self.of("failed").items()}

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        whole = [asdict(row) for row in self.rows if row.group == "all"]
        check = [{**asdict(row), "ok": row.ok} for row in self.check]
        return {"command": "measure", **asdict(self), "rows": whole, "check": check}


def finished(request: Request) -> MeasureResult | None:
    """The result of this very measurement, when it is in its folder already. Loads no model."""
    if not holds(request.out, RUN):
        return None
    path = local(request.out, RUN, ROWS)
    require_own(path, request.out, EVALUATION)
    folder = EvaluationFolder(path)
    if folder.about.get("key") != request.key:
        return None
    return _result(request.out, folder.about, folder.rows, resumed=True)


def measure(request: Request, watch: Watch = quiet) -> MeasureResult:
    """Judge what is not judged yet, compare, write; returns at once when this very measurement is
    finished. UserError where nothing can be measured and, `strict`, for the first thing that cannot
    be."""
    _refuse(request, request.plan.problems)
    done = finished(request)
    if done is not None:
        log.info("%s: finished before, nothing to judge", request.out)
        return done
    with opened(request.out, "a measurement") as out:
        require_own(out.folder, request.out, EVALUATION)
        return _measure(request, out.folder, out.sending(watch))


@dataclass
class _Work:
    """A measurement under way."""

    request: Request
    out: Path
    sight: Sight
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)

    @property
    def published(self) -> tuple[str, ...]:
        """The public protocols that its judge can tell."""
        asked = wanted(self.request.plan.layout)
        return tuple(protocol for protocol in asked if protocol in self.sight.published)

    def known(self, todo: Sequence[PlannedPicture], watch: Watch) -> dict[str, Known]:
        """Every subject's references shown; those embedded whom some picture still needs."""
        plan, known = self.request.plan, {}
        needed = {subject.name for picture in todo for subject in picture.row.subjects}
        about: dict[str, Any] = {}
        for number, (name, subject) in enumerate(plan.subjects.items(), 1):
            found_in = self.references(name)
            pictures = [reference.subject for reference in found_in]
            if pictures and name in needed:
                photographs = [reference.photograph for reference in found_in]
                vectors = known_as_published(
                    self.published, photographs, subject.class_name, self.sight
                )
                known[name] = know(pictures, self.sight, vectors)
            files = show_references(self.out, name, pictures)
            about[name] = {"class_name": subject.class_name, "pictures": files}
            watch("look at references", number, len(plan.subjects), {})
        prompts = {scene.id: scene.prompt for scene in plan.scenes.values()}
        write_json(self.out / SUBJECTS, {"subjects": about, "prompts": prompts})
        _refuse(self.request, self.problems)
        return known

    def references(self, name: str) -> list[CutOut]:
        """A subject's cut-outs."""
        subject = self.request.plan.subjects[name]
        return cut_outs(subject, self.sight, self.request.measure, self.problems, self.notes)


def _measure(request: Request, out: Path, watch: Watch) -> MeasureResult:
    started, plan = time.perf_counter(), request.plan
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be a folder ({error.strerror})") from error
    sight = request.load()
    (out / RUN).unlink(missing_ok=True)
    write_whole(out / CONFIG, request.settings.encode())
    work = _Work(request, out, sight, list(plan.problems))
    check = _check(work, watch) if request.check else ()
    parts = _Parts(out / PARTS, config_digest(request.how))
    todo = [picture for picture in plan.pictures if not (out / parts.image(picture)).is_file()]
    known = work.known(todo, watch)
    _judge_all(work, todo, known, parts, watch)
    judged, scores = _in_order(work, parts)
    rows, notes = foreign_rows(
        judged, scores, plan.names, request.evaluate, published=work.published
    )
    records = list(chain.from_iterable(judged.values()))
    write_whole(out / SCENES, to_parquet(records, EvalScene))
    foreign = list(chain.from_iterable(scores.values()))
    write_whole(out / FOREIGN, to_parquet(foreign, ForeignScores))
    write_json(out / ROWS, [asdict(row) for row in rows])
    about: dict[str, Any] = {
        "key": request.key,
        "protocol": plan.protocol,
        "seconds": round(time.perf_counter() - started, 3),
        "adapter": plan.names[ADAPTER],
        "names": plan.names,
        "source": plan.source,
        "scenes": len({record.scene_id for record in records}),
        "pictures": len(records),
        "fingerprints": {"judge": request.judge},
        "notes": [*notes, *dict.fromkeys(work.notes), *_about_judge(work)],
        "left_out": [str(problem) for problem in work.problems],
        "check": [asdict(row) for row in check],
        "machine": machine(),
        "packages": packages(),
    }
    write_json(out / RUN, about)
    return _result(request.out, about, rows, resumed=False)


def _result(
    where: str, about: Mapping[str, Any], rows: list[EvalRow], *, resumed: bool
) -> MeasureResult:
    fields = {name: about[name] for name in ("names", "scenes", "pictures", "seconds")}
    return MeasureResult(
        out=where,
        rows=rows,
        resumed=resumed,
        notes=tuple(about["notes"]),
        left_out=tuple(about["left_out"]),
        check=tuple(FaultFound(**row) for row in about["check"]),
        **fields,
    )


def _check(work: _Work, watch: Watch) -> tuple[FaultFound, ...]:
    """Planted faults, of the subjects that stand in the pictures."""
    request, unused = work.request, list[Problem]()
    quiet_work = replace(work, problems=unused, notes=[])
    references = {
        name: [reference.subject for reference in quiet_work.references(name)]
        for name in request.plan.subjects
    }
    usable = {name: pictures for name, pictures in references.items() if pictures}
    casts = dict.fromkeys(scene.subject_ids for scene in request.plan.scenes.values())
    return check_sight(
        work.sight,
        [cast for cast in casts if usable.keys() >= set(cast)],
        usable,
        {name: subject.class_name for name, subject in request.plan.subjects.items()},
        request.evaluate,
        request.measure,
        watch,
    )


def _judge_all(
    work: _Work,
    todo: Sequence[PlannedPicture],
    known: Mapping[str, Known],
    parts: _Parts,
    watch: Watch,
) -> None:
    request = work.request
    done = 0
    for batch in _read_ahead(work, todo, request.evaluate.batch):
        items = []
        for planned, picture in batch:
            lacking = [
                subject.name for subject in planned.row.subjects if subject.name not in known
            ]
            if isinstance(picture, UserError) or lacking:
                message = f"no reference of '{lacking[0]}' can be used" if lacking else str(picture)
                where = f"{request.plan.source}, line {planned.row.line}"
                work.problems.append(Problem(where, message))
                _refuse(request, work.problems)
                continue
            items.append((planned, _to_judge(request.plan, planned, picture, known)))
        records = judge_pictures(
            [item for _, item in items],
            work.sight,
            request.evaluate,
            request.measure,
            work.published,
        )
        for (planned, item), (judged, scores) in zip(items, records, strict=True):
            side = request.measure.shown_side
            shown = replace(
                judged,
                boxes=scaled_boxes(judged.boxes, item.picture, side),
                image=planned.place + suffix_of(item.picture, side),
            )
            parts.add(JudgedPicture(key=planned.key, judged=shown, scores=scores))
        done += len(batch)
        watch("judge", done, len(todo), {})
    parts.write()


def _to_judge(
    plan: ForeignPlan, planned: PlannedPicture, picture: Image, known: Mapping[str, Known]
) -> ToJudge:
    row = planned.row
    return ToJudge(
        scene=plan.scenes[planned.scene_id],
        picture=picture,
        known=[known[subject.name] for subject in row.subjects],
        boxes=row.boxes,
        source=str(row.image),
        line=row.line,
        seed=row.seed,
    )


def _read_ahead(
    work: _Work, todo: Sequence[PlannedPicture], batch: int
) -> Iterator[list[tuple[PlannedPicture, Image | UserError]]]:
    """Batches of pictures, read and laid into the folder by threads; an error in place of one that
    cannot be read."""
    for folder in {(work.out / picture.place).parent for picture in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    waiting: deque[tuple[Sequence[PlannedPicture], list[Future[Image | UserError]]]] = deque()
    with ThreadPoolExecutor(READERS, "read") as pool:
        read = functools.partial(_read, work)
        for part in chunks(todo, batch):
            waiting.append((part, [pool.submit(read, picture) for picture in part]))
            if len(waiting) > AHEAD:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def _ready(
    part: Sequence[PlannedPicture], jobs: Sequence[Future[Image | UserError]]
) -> list[tuple[PlannedPicture, Image | UserError]]:
    return [(picture, job.result()) for picture, job in zip(part, jobs, strict=True)]


def _read(work: _Work, planned: PlannedPicture) -> Image | UserError:
    try:
        picture = quarter_of(read_photograph(planned.row.image), planned.row.quarter)
        require_size(work.sight, picture)
    except UserError as error:
        return error
    show(picture, work.request.measure.shown_side, work.out / planned.place)
    return picture


def _in_order(
    work: _Work, parts: _Parts
) -> tuple[dict[str, list[EvalScene]], dict[str, list[ForeignScores]]]:
    """Model -> records, in the plan's order."""
    plan = work.request.plan
    judged: dict[str, list[EvalScene]] = {model: [] for model in plan.names}
    scores: dict[str, list[ForeignScores]] = {model: [] for model in plan.names}
    counts: dict[tuple[str, str], int] = {}
    for picture in plan.pictures:
        kept = parts.kept.get(picture.key)
        if kept is None:
            continue
        at = counts.get((picture.model, picture.scene_id), 0)
        counts[picture.model, picture.scene_id] = at + 1
        named: dict[str, Any] = {"model": picture.model, "scene_id": picture.scene_id, "index": at}
        about: dict[str, Any] = {"image": parts.image(picture), "protocol": plan.protocol}
        judged[picture.model].append(replace(kept.judged, **about, **named))
        row = picture.row
        where: dict[str, Any] = {"source": str(row.image), "line": row.line, "seed": row.seed}
        scores[picture.model].append(replace(kept.scores, **where, **named))
    empty = [plan.names[model] for model, records in judged.items() if not records]
    if empty:
        shown = "; ".join(str(problem) for problem in work.problems[:3])
        raise UserError(f"{plan.source}: no picture of {', '.join(empty)} can be measured. {shown}")
    return judged, scores


def _about_judge(work: _Work) -> list[str]:
    config = work.request.evaluate
    judges = [f"judge: {name}" for name in work.sight.names]
    layout = work.request.plan.layout
    return [
        *judges,
        *not_told(layout, work.published),
        *([LAYOUTS[layout].absent] if layout else []),
        "failed: missing, doubled, in another's looks, or identity below "
        f"{config.least_identity:g}",
    ]


def _refuse(request: Request, problems: Sequence[Problem]) -> None:
    if request.strict and problems:
        raise UserError(f"{problems[0]}. Without --strict it is left out and the rest goes on")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPicture:
    """What is kept of a judged picture."""

    key: str
    judged: EvalScene
    scores: ForeignScores


class _Parts:
    """What was judged so far by the same judge and settings."""

    def __init__(self, folder: Path, how: str) -> None:
        self._folder = folder / how
        for other in folder.iterdir() if folder.is_dir() else ():
            if other != self._folder:
                shutil.rmtree(other)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._new: list[JudgedPicture] = []
        self._written = time.monotonic()
        files = sorted(self._folder.glob("*.parquet"))
        self._next = int(files[-1].stem) + 1 if files else 0
        self.kept = {
            picture.key: picture
            for file in files
            for picture in from_parquet(file.read_bytes(), JudgedPicture, str(file))
        }

    def image(self, picture: PlannedPicture) -> str:
        """Where a picture lies below the results; no file's name while it is not judged."""
        kept = self.kept.get(picture.key)
        return picture.place + (Path(kept.judged.image).suffix if kept else "")

    def add(self, picture: JudgedPicture) -> None:
        """Kept at the latest after `KEEP_EVERY` seconds."""
        self.kept[picture.key] = picture
        self._new.append(picture)
        if time.monotonic() - self._written > KEEP_EVERY:
            self.write()

    def write(self) -> None:
        """Keep what is new."""
        if self._new:
            file = self._folder / f"{self._next:06d}.parquet"
            write_whole(file, to_parquet(self._new, JudgedPicture))
            self._next, self._new = self._next + 1, []
        self._written = time.monotonic()
