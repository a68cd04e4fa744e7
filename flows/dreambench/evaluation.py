"""evaluate by a DreamBench protocol, without an engine: photographs, base against adapter.

Files in the folder of an evaluation: as `flows.evaluation` writes them for the protocol pocket
(config.yaml, rows.json, scenes.parquet, grid.png, images/, references/, subjects.json, run.json
last), and photographs.parquet: the whole-picture scores, one record per picture and model. Instead
of scorer.parquet the measures on instances are the judge's parts', which no pair was made with
where the `models` section names others for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.photographs import WholeScores
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.dreambench.files import MODELS, small, write_results, write_subjects
from focusdpo.flows.dreambench.painting import paint_missing, read_pictures
from focusdpo.flows.dreambench.run import Bench, look, roles
from focusdpo.flows.evaluation_files import EvaluateResult, result_with
from focusdpo.flows.outputs import local, opened
from focusdpo.flows.progress import Watch, quiet
from focusdpo.flows.settings import save_config
from focusdpo.flows.wiring import build_part
from focusdpo.pipeline.dreambench_metrics import (
    BenchParts,
    KnownSubject,
    know_subject,
    measure_pictures,
)
from focusdpo.pipeline.evaluate import EvaluateConfig
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.pipeline.score import crop_on_white

CUT_MARGIN = 0.1
"""White border of a cut-out that the generator is shown, as a share of its longer side."""

log = logging.getLogger(__name__)


def evaluate(run: EvaluateRun, watch: Watch = quiet) -> EvaluateResult:
    """Paint, measure, compare; returns at once when this very evaluation is finished already.

    UserError before anything is painted: for the folder of photographs, missing subjects, an
    absent adapter, and an identity encoder that takes no whole pictures.
    """
    bench = look(run)
    done = result_with(run.out, bench.key)
    if done is not None:
        log.info("%s: finished before, nothing to paint", run.out)
        return done
    with opened(run.out, "an evaluation") as out:
        return _evaluate(bench, out.folder, out.sending(watch))


def _evaluate(bench: Bench, out: Path, watch: Watch) -> EvaluateResult:
    started, run = time.perf_counter(), bench.run
    parts = _parts(run)
    known, shown, files = _know(bench, parts, watch)
    (out / "run.json").unlink(missing_ok=True)
    save_config(run, out / "config.yaml")
    write_subjects(out, bench, shown, files)
    measured: dict[str, tuple[list[EvalScene], list[WholeScores]]] = {}
    for model in MODELS:
        names = paint_missing(
            out,
            model,
            bench.painting_key(model),
            bench.plan.scenes,
            bench.plan.images_per_prompt,
            shown,
            lambda model=model: build_part(  # type: ignore[misc]
                run.family,
                "generator",
                adapter=str(local(run.adapter)) if model == "adapter" else None,
            ),
            batch=run.evaluate.batch,
            watch=watch,
        )
        measured[model] = _measure(bench, out, model, names, known, parts, watch)
    return write_results(bench, out, measured, known, shown, started)


def finished(run: EvaluateRun) -> EvaluateResult | None:
    """The result of this very evaluation, when it is in its folder already. Loads no model."""
    return result_with(run.out, look(run).key)


def _parts(run: EvaluateRun) -> BenchParts:
    role = roles(run)
    whole = build_part(run.family, role["dino"]) if "dino" in role else None
    if whole is not None and not hasattr(whole, "embed_whole"):
        raise UserError(
            f"protocol {run.protocol}: the identity encoder of suite '{run.suite}' takes no whole "
            "pictures; take a preset of suite checkpoints, as in --preset flux-uno"
        )
    return BenchParts(
        whole=whole,
        identity=build_part(run.family, role["identity"]),
        clip=build_part(run.family, role["clip"]),
        segmenter=build_part(run.family, role["segmenter"]),
    )


def _know(
    bench: Bench, parts: BenchParts, watch: Watch
) -> tuple[dict[str, KnownSubject], dict[str, ReferenceImage], dict[str, list[Image]]]:
    """What is known of each subject, what the generator is shown of it, small target pictures."""
    known, shown, sheets = {}, {}, {}
    for done, (name, member) in enumerate(bench.members.items(), 1):
        pictures = member.load()
        images = [one.image for one in pictures]
        masks = [one.mask for one in pictures] if member.masked else None
        known[name] = know_subject(images, member.class_name, parts, bench.run.evaluate, masks)
        shown[name] = pictures[0]
        if bench.cuts_out and not member.masked:
            shown[name] = _cut_out(images[0], known[name].masks[0])
        sheets[name] = [small(one) for one in images]
        watch("look at photographs", done, len(bench.members), {})
    return known, shown, sheets


def _cut_out(image: Image, mask: Mask) -> ReferenceImage:
    """The subject on white in a square."""
    black = crop_on_white(np.zeros_like(image), mask, CUT_MARGIN)
    return ReferenceImage(image=crop_on_white(image, mask, CUT_MARGIN), mask=black[..., 0] == 0)


def _measure(
    bench: Bench,
    out: Path,
    model: str,
    names: Sequence[str],
    known: Mapping[str, KnownSubject],
    parts: BenchParts,
    watch: Watch,
) -> tuple[list[EvalScene], list[WholeScores]]:
    """All pictures of a model, a batch at a time: they need not fit the memory together."""
    config: EvaluateConfig = bench.run.evaluate
    per_scene = bench.plan.images_per_prompt
    judged: list[EvalScene] = []
    whole: list[WholeScores] = []
    for start in range(0, len(names), config.batch):
        numbers = range(start, min(start + config.batch, len(names)))
        part = names[start : start + config.batch]
        records, scores = measure_pictures(
            model,
            bench.plan.shown_id,
            [bench.plan.scenes[at // per_scene] for at in numbers],
            [at % per_scene for at in numbers],
            part,
            read_pictures(out, part),
            known,
            parts,
            config,
        )
        judged += records
        whole += scores
        watch(f"measure {model}", len(judged), len(names), {})
    return judged, whole
