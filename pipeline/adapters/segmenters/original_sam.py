"""SAM (arXiv 2304.02643) from the package segment-anything, built to the size of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import PaddedView
from focusdpo.pipeline.adapters.segmenters.original_files import (
    Shapes,
    count,
    read_shapes,
    read_tensors,
    require_model,
    shape_of,
)

WIDTHS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}
_WHAT = "Segment Anything (SAM)"
_DECODER_HEADS = 8
"""The one size that no tensor of a checkpoint shows; the same in every published SAM."""


@dataclass(frozen=True, slots=True)
class SamSizes:
    """What the shapes of a checkpoint say."""

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    grid: int
    """Patches along a side of the view."""
    window: int
    whole: tuple[int, ...]
    """Layers that attend to all patches."""
    prompt: int
    mask_channels: int
    layers: int
    decoder_mlp: int
    proposals: int
    quality_depth: int
    quality_width: int

    @property
    def name(self) -> str:
        """vit_b, vit_l, vit_h or "vit" for any other."""
        return next((n for n, width in WIDTHS.items() if width == self.width), "vit")

    def described(self) -> str:
        """One line for the health table."""
        side = self.grid * self.patch
        return f"SAM {self.name}, {self.depth} layers of width {self.width}, {side} pixels"


def sam_sizes(shapes: Shapes, field: str, wanted: str | None = None) -> SamSizes:
    """The architecture of a checkpoint. UserError when it is not a SAM, or not the wanted one."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(shapes, name, field, _WHAT)

    width, _, patch, _ = shape("image_encoder.patch_embed.proj.weight")
    grid = shape("image_encoder.pos_embed")[1]
    depth = count(shapes, "image_encoder.blocks.")
    reaches = [shape(f"image_encoder.blocks.{i}.attn.rel_pos_h") for i in range(depth)]
    # A relative position table has 2 * window - 1 rows; windows are smaller than the grid.
    whole = tuple(i for i, (rows, _) in enumerate(reaches) if rows == 2 * grid - 1)
    windows = {(rows + 1) // 2 for i, (rows, _) in enumerate(reaches) if i not in whole}
    sizes = SamSizes(
        width=width,
        depth=depth,
        heads=width // reaches[0][1],
        mlp=shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
        patch=patch,
        grid=grid,
        window=max(windows, default=0),
        whole=whole,
        prompt=shape("image_encoder.neck.0.weight")[0],
        mask_channels=shape("prompt_encoder.mask_downscaling.3.weight")[0],
        layers=count(shapes, "mask_decoder.transformer.layers."),
        decoder_mlp=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
        proposals=shape("mask_decoder.mask_tokens.weight")[0] - 1,
        quality_depth=count(shapes, "mask_decoder.iou_prediction_head.layers."),
        quality_width=shape("mask_decoder.iou_prediction_head.layers.0.weight")[0],
    )
    if wanted and sizes.name != wanted:
        raise UserError(f"{field}: the file holds SAM {sizes.name}, sam_type asks for {wanted}")
    return sizes


def make_sam(sizes: SamSizes) -> Sam:
    """The package's model, its weights not yet loaded."""
    side = sizes.grid * sizes.patch
    encoder = ImageEncoderViT(
        depth=sizes.depth,
        embed_dim=sizes.width,
        img_size=side,
        mlp_ratio=sizes.mlp / sizes.width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=sizes.heads,
        patch_size=sizes.patch,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=sizes.whole,
        window_size=sizes.window,
        out_chans=sizes.prompt,
    )
    prompts = PromptEncoder(
        embed_dim=sizes.prompt,
        image_embedding_size=(sizes.grid, sizes.grid),
        input_image_size=(side, side),
        mask_in_chans=sizes.mask_channels,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=sizes.proposals,
        transformer=TwoWayTransformer(
            depth=sizes.layers,
            embedding_dim=sizes.prompt,
            mlp_dim=sizes.decoder_mlp,
            num_heads=_DECODER_HEADS,
        ),
        transformer_dim=sizes.prompt,
        iou_head_depth=sizes.quality_depth,
        iou_head_hidden_dim=sizes.quality_width,
    )
    return Sam(encoder, prompts, decoder)


def check_sam(file: Path, field: str, wanted: str | None = None) -> SamSizes:
    """The sizes of a checkpoint that holds all of a SAM and nothing else, else UserError."""
    shapes = read_shapes(file, field)
    sizes = sam_sizes(shapes, field, wanted)
    with torch.device("meta"):
        require_model(shapes, make_sam(sizes), field, _WHAT)
    return sizes


def load_sam(file: Path, field: str, wanted: str | None = None) -> Sam:
    """The model with the file's weights, frozen, on the CPU in float32."""
    sam = make_sam(check_sam(file, field, wanted))
    sam.load_state_dict(read_tensors(file, field))
    return sam.float().eval().requires_grad_(False)


class PackageSam:
    """A `MaskModel`."""

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self.view = PaddedView(sam.image_encoder.img_size)

    def encode(self, pixels_B3SS: Tensor) -> list[Any]:
        """An embedding (1, C, g, g) per image."""
        return list(self.sam.image_encoder(pixels_B3SS).float().split(1))

    def propose(self, known: Any, corners_N4: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4 g, 4 g) and their predicted IoU (N, K)."""
        return self._decode(known, multimask, points=None, boxes=corners_N4)

    def propose_at(
        self, known: Any, points_N2: Tensor, labels_N: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (1, K, 4 g, 4 g) and their predicted IoU (1, K), for all points."""
        points = points_N2[None], labels_N[None]
        return self._decode(known, multimask, points=points, boxes=None)

    def _decode(self, known: Any, multimask: bool, **prompts: Any) -> tuple[Tensor, Tensor]:
        sparse, dense = self.sam.prompt_encoder(**prompts, masks=None)
        logits, quality = self.sam.mask_decoder(
            image_embeddings=known,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        return logits, quality
