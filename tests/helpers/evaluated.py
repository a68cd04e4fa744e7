"""The folder of an evaluation, made by hand: twelve scenes, base and adapter, real pictures and
tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image
from small_root import grey

from focusdpo.data_schemas.evaluations import AgreementRow, EvalScene
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.evaluation.comparison import rows
from focusdpo.evaluation.protocols import EvaluateConfig

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&"
SCENES = 12
GAIN = tuple(0.1 - 0.4 * (i == 3) + 0.001 * i for i in range(SCENES))
"""In identity, but for a loss of 0.3 in scene 3."""


def scene_record(model: str, index: int, identity: float, **changes: object) -> EvalScene:
    """A scene of two subjects."""
    values = {
        "protocol": "pocket",
        "model": model,
        "scene_id": f"scene{index:02d}",
        "index": 0,
        "image": f"images/{model}/scene{index:02d}-0.png",
        "subject_ids": ("a", "b"),
        "class_names": ("cat", "dog"),
        "held_out": index % 2 == 0,
        "seen": 2,
        "boxes": ((0, 0, 9, 9), (20, 20, 40, 40)),
        "matched": (identity, identity),
        "identity": identity,
        "leakage_margin": identity - 0.2,
        "confusion": 0.0,
        "missing": 0.0,
        "duplicate": 0.0,
        "class_recognition": 1.0,
        "hue_error": float("nan"),
        "pattern_error": 0.2,
        "clip_t": 0.3,
        "scr_40": 0.0,
        "scr_50": 0.0,
        "scr_60": 0.0,
        "copy_paste": 0.3,
        "failed": 0.0,
    }
    return EvalScene(**(values | changes))  # type: ignore[arg-type]


def agreement_row(model: str, scorer: float, judge: float, spearman: float | None) -> AgreementRow:
    """Identity by scorer and judge."""
    return AgreementRow(
        metric="identity",
        group="all",
        model=model,
        spearman=spearman,
        count=12,
        scenes=12,
        scorer_mean=scorer,
        scorer_low=scorer - 0.01,
        scorer_high=scorer + 0.01,
        judge_mean=judge,
        judge_low=judge - 0.01,
        judge_high=judge + 0.01,
    )


def evaluation_folder(
    folder: Path,
    gain: Sequence[float] = GAIN,
    adapter_name: str = "a1",
    shade: int = 100,
    *,
    image: str = "",
    failed: Mapping[int, tuple[float, float]] = {},  # noqa: B006
    prompt: str = HOSTILE,
    about: Mapping[str, object] = {},  # noqa: B006
    **settings: object,
) -> Path:
    """What `evaluate` leaves; `about` goes into run.json, `settings` make a config.yaml. `image`:
    what the record of scene 0's adapter names instead of its picture. `failed`: shares of failed
    subjects of base and adapter by scene, 0 else."""
    base = [scene_record("base", i, 0.5 + 0.01 * i) for i in range(len(gain))]
    adapter = [scene_record("adapter", i, 0.5 + 0.01 * i + more) for i, more in enumerate(gain)]
    for at, record in enumerate(base + adapter):
        path = folder / record.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey(shade + at)).save(path)
    for at, (ours, theirs) in failed.items():
        base[at] = dataclasses.replace(base[at], failed=ours)
        adapter[at] = dataclasses.replace(adapter[at], failed=theirs)
    if image:
        adapter[0] = dataclasses.replace(adapter[0], image=image)
    reference = folder / "references" / "a" / "0.png"
    reference.parent.mkdir(parents=True)
    Image.fromarray(grey(200)).save(reference)
    table = rows(base, adapter, EvaluateConfig(resamples=200))
    files = {
        "rows.json": [dataclasses.asdict(row) for row in table],
        "subjects.json": {
            "subjects": {"a": {"class_name": "cat", "pictures": ["references/a/0.png"]}},
            "prompts": {record.scene_id: prompt for record in base},
        },
        "run.json": {
            "identity": "0123abcd",
            "protocol": "pocket",
            "seed": 0,
            "fingerprints": {"base": "b1", "adapter": adapter_name, "judge": "j1"},
            "agreement": [
                dataclasses.asdict(agreement_row("base", 0.6, 0.5, 0.4)),
                dataclasses.asdict(agreement_row("adapter - base", 0.1, 0.002, None)),
            ],
            **about,
        },
    }
    (folder / "scenes.parquet").write_bytes(to_parquet(base + adapter, EvalScene))
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    if settings:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    return folder
