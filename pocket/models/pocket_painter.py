"""The pocket generator as a part of the pipeline: it paints and repaints uint8 images."""

from __future__ import annotations

from pathlib import Path

from focusdpo.model.adapter import load_adapter
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.pipeline.adapters.painter import BackbonePainter
from focusdpo.pocket.models.generator import load_generator

BATCH = 16
"""Images sampled at once; no image depends on it beyond rounding."""


class PocketGenerator(BackbonePainter):
    """The painter of the world's scenes."""

    backbone: FluxBackbone

    def __init__(self, backbone: FluxBackbone, fingerprint: str | None = None) -> None:
        super().__init__(backbone, fingerprint or backbone.fingerprint, BATCH)

    @classmethod
    def load(
        cls,
        adapter: str | Path | None = None,
        *,
        fingerprint: str | None = None,
        sampling: SamplingConfig | None = None,
    ) -> PocketGenerator:
        """The packaged weights, with the LoRA in the folder `adapter` on top. Without
        `fingerprint` it is the backbone's, joined with the digest of the adapter's weights.

        Raises UserError for missing or foreign weights.
        """
        backbone = load_generator(sampling=sampling)
        base = backbone.fingerprint
        if adapter is not None:
            base = f"{base}+{load_adapter(backbone, Path(adapter)).weights_digest}"
        return cls(backbone, fingerprint or base)
