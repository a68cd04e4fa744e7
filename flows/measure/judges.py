"""Who judges pictures from anywhere: the embedded judge, a preset's, or the small one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.flows.wiring import Suite, suite
from focusdpo.store.checkpoints import digest_files

if TYPE_CHECKING:
    from focusdpo.evaluation.measure.sight import Sight

SALIENCY, ENCODER = "saliency.onnx", "encoder.safetensors"
"""The small judge's weights in its folder."""
FIELD = "--lite"


@dataclass(frozen=True)
class Judging:
    """A judge before it is loaded."""

    fingerprint: str
    load: Callable[[], Sight]


def judge_of(family: Family, lite: str | None, config: EvaluateConfig) -> Judging:
    """The judge of a run. UserError for weights that are absent."""
    if lite is not None:
        return _lite(Path(lite).expanduser(), config)
    models = suite(family)
    if isinstance(family, ModelsConfig):
        roles = {"segmenter": "judge_segmenter", "identity": "judge_identity", "clip": "clip"}
        prints = " ".join(models.fingerprint(role) for role in roles.values())
        named = {part: getattr(family, role).model_dump() for part, role in roles.items()}
        return Judging(prints, partial(_photographs, models, roles, named, config))
    prints = " ".join(models.fingerprint(role) for role in ("judge", "clip"))
    return Judging(prints, partial(_pocket, models, config))


def _lite(folder: Path, config: EvaluateConfig) -> Judging:
    files = [folder / SALIENCY, folder / ENCODER]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{FIELD}: {file} is absent; docs/measure.md says how the two files are made"
            )
    return Judging(f"lite {digest_files(files)}", partial(_load_lite, files, config))


def _load_lite(files: list[Path], config: EvaluateConfig) -> Sight:
    from focusdpo.evaluation.measure.sight import PhotographSight
    from focusdpo.pipeline.adapters.checked import Checked
    from focusdpo.pipeline.adapters.image_encoder import ImageEncoder
    from focusdpo.pipeline.adapters.segmenters.saliency import SaliencySegmenter

    segmenter: Any = Checked("small judge's segmenter", SaliencySegmenter(files[0], FIELD))
    identity: Any = Checked("small judge's encoder", ImageEncoder(files[1], FIELD))
    names = (
        "U2-Net-P regions, EfficientNet-Lite0 features; it reads no words, so two subjects in each "
        "other's looks are seen where rows tell boxes",
    )
    return PhotographSight(segmenter, identity, None, config, names)


def _photographs(
    models: Suite,
    roles: Mapping[str, str],
    named: Mapping[str, Mapping[str, Any]],
    config: EvaluateConfig,
) -> Sight:
    from focusdpo.evaluation.measure.sight import PhotographSight

    parts = {part: models.build(role) for part, role in roles.items()}
    names = [
        f"{part}: {', '.join(str(v) for v in values.values() if isinstance(v, str))}"
        for part, values in named.items()
    ]
    return PhotographSight(
        parts["segmenter"],
        parts["identity"],
        parts["clip"],
        config,
        names,
        published=_told(str(named["segmenter"]["kind"]), str(named["identity"]["kind"])),
    )


def _told(segmenter: str, identity: str) -> tuple[str, ...]:
    """The public protocols that these parts tell as they were published."""
    from focusdpo.evaluation.measure.sight import PSR, SCR

    if identity == "dinov2":
        return (SCR,)
    return (PSR,) if identity == "dino" and segmenter.startswith("grounding-sam") else ()


def _pocket(models: Suite, config: EvaluateConfig) -> Sight:
    from focusdpo.evaluation.measure.sight import PocketSight
    from focusdpo.pocket.world.world import SCENE_SIZE

    return PocketSight(models.build("judge"), models.build("clip"), config, SCENE_SIZE)
