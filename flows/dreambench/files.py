"""What a DreamBench evaluation writes: table, records, pictures, and the notes that go with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.photographs import WholeScores
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.flows.dreambench.painting import read_pictures
from focusdpo.flows.dreambench.run import Bench, roles
from focusdpo.flows.evaluation_files import EvaluateResult, write_json
from focusdpo.flows.machine import machine, packages
from focusdpo.flows.preview import comparison_sheet
from focusdpo.pipeline.dreambench_metrics import KnownSubject
from focusdpo.pipeline.dreambench_table import bench_rows, undetected
from focusdpo.pipeline.parts import Image, ReferenceImage

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
