"""evaluate without an engine: held-out scenes painted by base and adapter, judged, written down.

Files in the folder of an evaluation: config.yaml, rows.json (the table), scenes.parquet (one record
per picture and model by the judge), scorer.parquet (by the preference scorer), grid.png, images/,
references/, subjects.json, and run.json, last: an evaluation without it is unfinished and is made
again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.images import decode_png, encode_png
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.evaluation.agreement import agreement, scorer_values
from focusdpo.evaluation.comparison import rows as table_of
from focusdpo.evaluation.folder import EvaluateResult, result_with, write_json
from focusdpo.evaluation.held_out import HeldOut, HeldOutConfig, held_out_scenes
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.pocket_protocol import (
    PROTOCOL,
    EvaluateConfig,
    measure,
    paint_scenes,
)
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.provenance import machine, packages
from focusdpo.flows.settings import save_config
from focusdpo.flows.wiring import build_part, fingerprint_of, vocabulary
from focusdpo.pipeline.parts import (
    Generator,
    IdentityEncoder,
    Image,
    Judge,
    Segmenter,
    TextImageEncoder,
)
from focusdpo.reports.sheets import comparison_sheet
from focusdpo.store.keys import config_digest, digest
from focusdpo.store.outputs import local, opened

log = logging.getLogger(__name__)

MODELS = ("base", "adapter")
SCORERS = ("segmenter", "identity", "clip")
"""The parts that chose the training's pairs."""
_OTHERS = ("protocol", "data", "dreambench", "ingest", "own_scenes", "models")
"""Settings of other protocols: fingerprints tell the models."""
GRID = "grid.png"
"""References of some scenes, and below them what each model painted."""


def evaluate(run: EvaluateRun, watch: Watch = quiet) -> EvaluateResult:
    """Paint, judge and compare; returns at once when this very evaluation is finished already.

    UserError when the adapter is absent, damaged or made for another base.
    """
    if run.protocol != PROTOCOL:
        from focusdpo.evaluation import dreambench_folder as dreambench

        return dreambench.evaluate(run, watch)
    done = finished(run)
    if done is not None:
        log.info("%s: finished before, nothing to paint", run.out)
        return done
    with opened(run.out, "an evaluation") as out:
        return _evaluate(run, out.folder, watch)


def _evaluate(run: EvaluateRun, out: Path, watch: Watch) -> EvaluateResult:
    started = time.perf_counter()
    key = _key(run)
    backgrounds, _ = vocabulary(run.family)
    held_out = held_out_scenes(run.held_out, backgrounds)
    save_config(run, out / "config.yaml")
    write_subjects(out, held_out)
    judge = build_part(run.family, "judge")
    records: dict[str, list[EvalScene]] = {}
    scored: dict[str, list[ScorerView]] = {}
    segmenter, identity, clip = (build_part(run.family, role) for role in SCORERS)
    fingerprints = {part: fingerprint_of(run.family, part) for part in ("judge", *SCORERS)}
    for model in MODELS:
        adapter = str(local(run.adapter)) if model == "adapter" else None
        generator = build_part(run.family, "generator", adapter=adapter)
        fingerprints[model] = generator.fingerprint
        protocol = protocol_of(run.held_out)
        records[model] = evaluate_model(
            model, held_out, generator, judge, run.evaluate, out, watch, protocol, clip
        )
        scored[model] = scorer_view(records[model], held_out, segmenter, identity, out)
    first = {
        model: pictures_of(out, [one for one in records[model] if one.index == 0])
        for model in MODELS
    }
    sheet = comparison_sheet(held_out.scenes, held_out.references, first)
    (out / GRID).write_bytes(encode_png(np.asarray(sheet)))
    rows = table_of(records["base"], records["adapter"], run.evaluate)
    both = [record for model in MODELS for record in records[model]]
    (out / "scenes.parquet").write_bytes(to_parquet(both, EvalScene))
    views = [view for model in MODELS for view in scored[model]]
    (out / "scorer.parquet").write_bytes(to_parquet(views, ScorerView))
    write_json(out / "rows.json", [asdict(row) for row in rows])
    seconds = round(time.perf_counter() - started, 3)
    about = {
        "key": key,
        "protocol": rows[0].protocol if rows else "",
        "seconds": seconds,
        "adapter": run.adapter,
        "seed": run.held_out.seed,
        "scenes": len(held_out.scenes),
        "pictures": len(both),
        "fingerprints": fingerprints,
        "agreement": [asdict(row) for row in agreement(records, scored, run.evaluate)],
        "machine": machine(),
        "packages": packages(),
    }
    write_json(out / "run.json", about)
    return EvaluateResult(
        out=run.out,
        adapter=run.adapter,
        rows=rows,
        scenes=len(held_out.scenes),
        seconds=seconds,
        resumed=False,
    )


def evaluate_model(
    model: str,
    held_out: HeldOut,
    generator: Generator,
    judge: Judge,
    config: EvaluateConfig,
    out: Path,
    watch: Watch = quiet,
    protocol: str = PROTOCOL,
    clip: TextImageEncoder | None = None,
) -> list[EvalScene]:
    """Paint all scenes with one model and measure them; one record per picture, scene by scene.

    `model` names it in the records and is the folder of its pictures: `out`/images/`model`.
    """
    names, pictures = _paint(out, model, held_out, generator, config, watch)
    return measure(
        model,
        held_out.scenes,
        pictures,
        held_out.references,
        judge,
        config,
        held_out_classes=held_out.held_out_classes,
        clip=clip,
        names=names,
        protocol=protocol,
    )


def pictures_of(out: Path, records: Sequence[EvalScene]) -> list[Image]:
    """The pictures (H, W, 3) that the records speak of, from the folder of their evaluation."""
    return [decode_png((out / one.image).read_bytes(), one.image) for one in records]


def scorer_view(
    records: Sequence[EvalScene],
    held_out: HeldOut,
    segmenter: Segmenter,
    identity: IdentityEncoder,
    out: Path,
) -> list[ScorerView]:
    """What the parts that make pairs see in the pictures that the judge measured: one record for
    each of `records`, which are all those of one model, as `evaluate_model` returned them."""
    return scorer_values(
        held_out.scenes,
        pictures_of(out, records),
        held_out.references,
        segmenter,
        identity,
        model=records[0].model,
        per_scene=len(records) // len(held_out.scenes),
    )


def protocol_of(held_out: HeldOutConfig) -> str:
    """The id that every table prints, so that validation is never taken for results."""
    return PROTOCOL if held_out.split == "held_out" else f"{PROTOCOL}/{held_out.split}"


def _key(run: EvaluateRun) -> str:
    """Digest of what decides the result: settings, metrics, models, the adapter's weights."""
    if run.suite != "pocket":
        raise UserError(
            "protocol pocket paints the embedded world's individuals; for checkpoints give "
            "--protocol dreambench-single/kosmosg, dreambench-single/all-refs, dreambench-multi/uno"
            " or subjects, and --data (docs/dreambench.md)"
        )
    adapter = local(run.adapter)
    card, weights = adapter / "adapter.json", adapter / "pytorch_lora_weights.safetensors"
    for file in (card, weights):
        if not file.is_file():
            raise UserError(f"{file}: absent; --adapter takes the folder that `train` wrote")
    settings = run.model_dump(mode="json", exclude={"adapter", "out", "preset", *_OTHERS})
    parts = {role: fingerprint_of(run.family, role) for role in ("generator", "judge", *SCORERS)}
    made = digest(weights.read_bytes())
    return config_digest(
        {"settings": settings, "parts": parts, "metrics": list(METRICS), "a": made}
    )


def finished(run: EvaluateRun) -> EvaluateResult | None:
    """The result of this very evaluation, when it is in its folder already. Loads no model."""
    if run.protocol != PROTOCOL:
        from focusdpo.evaluation import dreambench_folder as dreambench

        return dreambench.finished(run)
    return result_with(run.out, _key(run))


def _paint(
    out: Path,
    model: str,
    held_out: HeldOut,
    generator: Generator,
    config: EvaluateConfig,
    watch: Watch,
) -> tuple[list[str], list[Image]]:
    """Pictures of all scenes and where they lie below `out`."""
    names: list[str] = []
    pictures: list[Image] = []
    (out / "images" / model).mkdir(parents=True, exist_ok=True)
    step = max(1, config.batch // config.images_per_scene)
    for start in range(0, len(held_out.scenes), step):
        part = held_out.scenes[start : start + step]
        painted = paint_scenes(part, held_out.references, generator, config)
        for at, picture in enumerate(painted):
            scene = part[at // config.images_per_scene]
            name = f"images/{model}/{scene.id}-{at % config.images_per_scene}.png"
            (out / name).write_bytes(encode_png(picture))
            names.append(name)
        pictures += painted
        watch(f"paint {model}", start + len(part), len(held_out.scenes), {})
    return names, pictures


def write_subjects(out: Path, held_out: HeldOut) -> None:
    """Who stands in the scenes, with their pictures, and what is asked for."""
    (out / "run.json").unlink(missing_ok=True)
    about: dict[str, Any] = {}
    for name, subject in held_out.subjects.items():
        folder = out / "references" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, picture in enumerate(subject.pictures):
            (folder / f"{number}.png").write_bytes(encode_png(picture.image))
            files.append(f"references/{name}/{number}.png")
        about[name] = {
            "class_name": subject.identity.class_name,
            "held_out_class": subject.identity.class_name in held_out.held_out_classes,
            "identity": asdict(subject.identity),
            "pictures": files,
        }
    prompts = {scene.id: scene.prompt for scene in held_out.scenes}
    write_json(out / "subjects.json", {"subjects": about, "prompts": prompts})
