"""A DreamBench run before any model is loaded: what it paints, what decides its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.checkpoints import digest_files
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.wiring import fingerprint_of
from focusdpo.pipeline.dreambench import (
    PROTOCOLS,
    BenchScenes,
    bench_scenes,
    target_photographs,
)
from focusdpo.pipeline.dreambench_metrics import BENCH_METRICS
from focusdpo.pipeline.keys import config_digest
from focusdpo.pipeline.photographs import PhotoFolder, open_photographs

DINO = "dino"
"""The kind of identity encoder that DreamBench's numbers are of."""
VERSION = 1
"""Changes when the same settings would give other numbers."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A run, looked at before any model is loaded."""

    run: EvaluateRun
    folder: PhotoFolder
    plan: BenchScenes
    targets: Mapping[str, tuple[Path, ...]]
    fingerprints: Mapping[str, str]
    adapter: str
    """Digest of the adapter's weights."""

    @property
    def key(self) -> str:
        """Digest of all that decides the numbers."""
        settings = {"evaluate": self.run.evaluate, "dreambench": self.run.dreambench}
        return config_digest(
            {
                "version": VERSION,
                "protocol": self.plan.shown_id,
                **{name: one.model_dump(mode="json") for name, one in settings.items()},
                "scenes": [asdict(scene) for scene in self.plan.scenes],
                "images": self.plan.images_per_prompt,
                "photographs": self.photographs,
                "parts": dict(self.fingerprints),
                "metrics": list(BENCH_METRICS),
                "adapter": self.adapter,
            }
        )

    @property
    def photographs(self) -> dict[str, str]:
        """Subject -> digest of its target photographs."""
        return {name: digest_files(files) for name, files in self.targets.items()}

    def painting_key(self, model: str) -> str:
        """Digest of all that decides one model's pictures: measuring anew paints nothing anew."""
        shown = {name: digest_files(files[:1]) for name, files in self.targets.items()}
        about: dict[str, Any] = {
            "version": VERSION,
            "seeds": [(scene.id, scene.seed) for scene in self.plan.scenes],
            "images": self.plan.images_per_prompt,
            "shown": shown,
            "how": self.run.dreambench.shown,
            "generator": self.fingerprints["generator"],
            "adapter": self.adapter if model == "adapter" else None,
        }
        if self.run.dreambench.shown == "cut_out":
            about["segmenter"] = self.fingerprints["segmenter"]
            about["limits"] = (self.run.evaluate.min_confidence, self.run.evaluate.min_area)
        return config_digest(about)


def look(run: EvaluateRun) -> Bench:
    if run.data is None:
        raise UserError(
            f"data: protocol {run.protocol} needs --data, the folder of the DreamBooth dataset; "
            "get it with `git clone https://github.com/google/dreambooth`"
        )
    protocol = PROTOCOLS[run.protocol]
    folder = open_photographs(run.data)
    plan = bench_scenes(folder, protocol, run.dreambench)
    parts = {**roles(run), "generator": "generator"}
    return Bench(
        run=run,
        folder=folder,
        plan=plan,
        targets={name: target_photographs(folder, name, protocol) for name in plan.names},
        fingerprints={part: fingerprint_of(run.family, role) for part, role in parts.items()},
        adapter=adapter_digest(Path(run.adapter)),
    )


def roles(run: EvaluateRun) -> dict[str, str]:
    """Measuring part -> its role: judges where there are some. The protocols' DINO is DINO v1
    ViT-S/16, whichever role has it. UserError when none does."""
    if run.suite != "checkpoints":
        return {"dino": "identity", **{part: part for part in ("identity", "segmenter", "clip")}}
    kinds = {role: getattr(run.models, role).kind for role in ("identity", "judge_identity")}
    dino = next((role for role, kind in kinds.items() if kind == DINO), None)
    if dino is None:
        raise UserError(
            f"protocol {run.protocol}: its DINO score needs DINO v1, but models.identity is "
            f"{kinds['identity']} and models.judge_identity {kinds['judge_identity']}; make one of "
            "them {kind: dino}"
        )
    return {
        "dino": dino,
        "identity": "judge_identity",
        "segmenter": "judge_segmenter",
        "clip": "clip",
    }


def adapter_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "adapter.json").is_file():
        raise UserError(
            f"{folder}: no adapter (adapter.json and *.safetensors); --adapter takes the folder "
            "that `train` wrote"
        )
    return digest_files(files)
