"""An image classifier's features as an identity encoder: EfficientNet-Lite0 by timm.

Trained on ImageNet's classes and on no individuals; on photographs of things it tells individuals
apart all the same (docs/measure.md has the figures). Instances are looked at on white, as DINO's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import preprocess
from focusdpo.pipeline.parts import Image, Mask, Vectors
from focusdpo.store.checkpoints import digest_files, read_header, require_tensors

VERSION = 1
NETWORK = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
MARGIN = 0.1
"""White border of a crop, a share of its longer side."""
BATCH = 32


class ImageEncoder:
    """Fits `pipeline.parts.IdentityEncoder`; D is 1280."""

    def __init__(self, source: Path, field: str) -> None:
        """UserError that names `field` for absent or wrong weights, or without timm."""
        from focusdpo.pipeline.adapters.streaming import Looker, Stream

        try:
            import timm
        except ModuleNotFoundError as error:
            raise UserError(
                f"{field}: needs the package timm; pip install 'focusdpo[lite]'"
            ) from error
        from safetensors.torch import load_file

        if not source.is_file():
            raise UserError(f"{field}: {source} is absent; docs/measure.md says how to make it")
        network = timm.create_model(NETWORK, pretrained=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        require_tensors(read_header(source, field), shapes, field, NETWORK)
        network.load_state_dict(load_file(source))
        network.reset_classifier(0)
        network.eval().requires_grad_(False)
        looker = Looker(network, MEAN, STD, preprocess.SIDE, device="cpu", dtype="float32")
        self.looker = looker
        self._instances: Stream[tuple[Image, Mask]] = Stream(
            looker,
            lambda instance: preprocess.instance(instance[0], instance[1], MARGIN, "official"),
            BATCH,
        )
        self._whole: Stream[Image] = Stream(looker, preprocess.official, BATCH)
        self.fingerprint = digest_files(
            [source], f"{NETWORK}-{VERSION}", f"preprocess-{preprocess.VERSION}"
        )

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length: the masked subject of each image on white."""
        return self._instances.run(list(zip(images, masks, strict=True)))

    def embed_whole(self, images: Sequence[Image]) -> Vectors:
        """(B, D), unit length: each whole picture."""
        return self._whole.run(images)
