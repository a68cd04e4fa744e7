"""evaluate by a DreamBench protocol: photographs, base against adapter, and what it writes.

Files in the folder of an evaluation: as `evaluation.run` writes them for the protocol pocket
(config.yaml, rows.json, scenes.parquet, grid.png, images/, references/, subjects.json, run.json
last), and photographs.parquet: the whole-picture scores, one record per picture and model. Instead
of scorer.parquet the measures on instances are the judge's parts', which no pair was made with
where the `models` section names others for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, WholeScores
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.evaluation.dreambench_metrics import (
    BenchParts,
    KnownSubject,
    bench_rows,
    know_subject,
    measure_pictures,
    undetected,
)
from focusdpo.evaluation.dreambench_run import Bench, look, paint_missing, read_pictures, roles
from focusdpo.evaluation.folder import EvaluateResult, result_with, write_json
from focusdpo.evaluation.pocket_protocol import EvaluateConfig
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.provenance import machine, packages
from focusdpo.flows.settings import save_config
from focusdpo.flows.wiring import build_part
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.pipeline.score import crop_on_white
from focusdpo.reports.sheets import comparison_sheet
from focusdpo.store.outputs import local, opened

MODELS = ("base", "adapter")
PARTS = {
    "generator": "generator",
    "dino": "DINO",
    "clip": "CLIP-I, CLIP-T",
    "identity": "instances' identity",
    "segmenter": "instances' masks",
}
"""Part -> what a table calls it."""
SHEET_SIDE = 192
"""Side in pixels of a picture on the sheet, and of a saved reference."""


def write_results(
    bench: Bench,
    out: Path,
    measured: Mapping[str, tuple[list[EvalScene], list[WholeScores]]],
    known: Mapping[str, KnownSubject],
    shown: Mapping[str, ReferenceImage],
    started: float,
) -> EvaluateResult:
    run = bench.run
    judged = [one for model in MODELS for one in measured[model][0]]
    whole = [one for model in MODELS for one in measured[model][1]]
    (out / "scenes.parquet").write_bytes(to_parquet(judged, EvalScene))
    (out / "photographs.parquet").write_bytes(to_parquet(whole, WholeScores))
    first = {
        model: [
            small(one)
            for one in read_pictures(out, [r.image for r in measured[model][0] if r.index == 0])
        ]
        for model in MODELS
    }
    sheets = {
        name: [ReferenceImage(image=small(one.image), mask=np.ones((1, 1), np.bool_))]
        for name, one in shown.items()
    }
    sheet = comparison_sheet(bench.plan.scenes, sheets, first)
    (out / "grid.png").write_bytes(encode_png(np.asarray(sheet)))
    rows = bench_rows(measured, run.evaluate)
    write_json(out / "rows.json", [asdict(row) for row in rows])
    failures = {model: undetected(measured[model][0]) for model in MODELS}
    failures["photographs"] = (
        sum(one.undetected for one in known.values()),
        sum(len(one.pictures) for one in bench.members.values()),
    )
    notes = _notes(bench, failures)
    seconds = round(time.perf_counter() - started, 3)
    about = {
        "key": bench.key,
        "protocol": bench.plan.shown_id,
        "seconds": seconds,
        "adapter": run.adapter,
        "seed": bench.plan.seed,
        "scenes": len(bench.plan.scenes),
        "pictures": len(judged),
        "images_per_prompt": bench.plan.images_per_prompt,
        "targets": bench.plan.protocol.targets,
        "shown": {name: one.pictures[0] for name, one in bench.members.items()},
        "failed_detections": failures,
        "fingerprints": dict(bench.fingerprints) | {"adapter": bench.adapter},
        "notes": list(notes),
        "machine": machine(),
        "packages": packages(),
    }
    write_json(out / "run.json", about)
    return EvaluateResult(
        out=run.out,
        adapter=run.adapter,
        rows=rows,
        scenes=len(bench.plan.scenes),
        seconds=seconds,
        resumed=False,
        notes=notes,
    )


def _notes(bench: Bench, failures: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """What must stand beside the numbers: protocol, checkpoints, crops, references, seeds,
    failures."""
    plan, config = bench.plan, bench.run.evaluate
    whole = "dino" in bench.fingerprints
    targets = (
        "the shown photograph" if plan.protocol.targets == "shown" else "all of its photographs"
    )
    return (
        f"protocol {plan.shown_id}: {plan.sets} {plan.protocol.what}, {len(plan.scenes)} prompts, "
        f"{plan.images_per_prompt} pictures each, seed {plan.seed}",
        (f"DINO, CLIP-I: whole picture and {targets} per subject; " if whole else "")
        + "CLIP-T: whole picture and prompt",
        "instances: segmenter by class words, assigned by word, then identity; confidence at least "
        f"{config.min_confidence:g}, area at least {config.min_area:g}",
        *(
            f"{label}: {_checkpoint(bench, part)}"
            for part, label in PARTS.items()
            if part in bench.fingerprints
        ),
        "not found: "
        + ", ".join(f"{lost} of {total} ({what})" for what, (lost, total) in failures.items()),
        f"intervals: {config.level:.0%}, bootstrap over {plan.protocol.what}, not over pictures",
    )


def _checkpoint(bench: Bench, part: str) -> str:
    """A part's kind, weights and crops as the run names them, and the start of its fingerprint."""
    run = bench.run
    role = {**roles(run), "generator": "backbone"}[part]
    named: list[str] = [run.suite]
    if run.suite == "checkpoints":
        values = getattr(run.models, role).model_dump()
        named = [values.pop("kind")]
        named += [f"{name} {value}" for name, value in values.items() if isinstance(value, str)]
    return f"{', '.join(named)} ({bench.fingerprints[part][:12]})"


def write_subjects(
    out: Path,
    bench: Bench,
    shown: Mapping[str, ReferenceImage],
    targets: Mapping[str, Sequence[Image]],
) -> None:
    """Who stands in the scenes, with pictures (`targets`, already small), and what is asked for."""
    about: dict[str, Any] = {}
    for name in shown:
        folder = out / "references" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, picture in enumerate(targets[name]):
            (folder / f"{number}.png").write_bytes(encode_png(picture))
            files.append(f"references/{name}/{number}.png")
        about[name] = {
            "class_name": bench.members[name].class_name,
            "held_out_class": False,
            "photographs": list(bench.members[name].pictures),
            "pictures": files,
        }
    prompts = {scene.id: scene.prompt for scene in bench.plan.scenes}
    write_json(out / "subjects.json", {"subjects": about, "prompts": prompts})


def small(image: Image) -> Image:
    """(S, S, 3): fitted into a white square."""
    side = (SHEET_SIDE, SHEET_SIDE)
    return np.asarray(ImageOps.pad(PillowImage.fromarray(image), side, color="white"))


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
