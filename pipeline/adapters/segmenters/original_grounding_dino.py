"""Grounding DINO (arXiv 2303.05499) from the package groundingdino-py, built to the size of its
checkpoint and run beside transformers 5.

The package's text encoder calls methods of BertModel that transformers 5 has no more. `TextEncoder`
stands in for it: same parameters under the same names, same numbers. The package's names are
replaced only while a model is built.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters.detections import require_bert_tokens
from focusdpo.pipeline.adapters.segmenters.original_files import (
    Shapes,
    count,
    read_shapes,
    read_tensors,
    require_model,
    shape_of,
)

IGNORED = frozenset({"label_enc.weight", "bert.embeddings.position_ids"})
"""Tensors of the published files that inference does not use."""
_WHAT = "Grounding DINO"
_HEADS = 8
"""Attention heads, which no tensor of a checkpoint shows; the same in both published models."""
_INSTALL = (
    'install it with `pip install "focusdpo[groundingdino]"`, or take kind: grounding-sam-hf, '
    "which needs no extra"
)
_building = threading.Lock()


class TextEncoder(nn.Module):
    """BERT with a mask per pair of tokens, so that the words of a caption do not see each other.

    Stands in for groundingdino's BertModelWarper, which fails beside transformers 5: parameters
    keep their names, and the numbers are the same bit for bit.
    """

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings = bert_model.embeddings
        self.encoder = bert_model.encoder
        self.pooler = bert_model.pooler

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Tokens (B, T) and who may see whom (B, T, T) -> {"last_hidden_state": (B, T, D)}."""
        hidden_BTD = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids
        )
        # transformers 5 takes masks of four dimensions as they are: added to the scores.
        hidden_from = (~attention_mask.bool())[:, None].to(hidden_BTD.dtype)
        mask_B1TT = hidden_from * torch.finfo(hidden_BTD.dtype).min
        out = self.encoder(hidden_BTD, attention_mask=mask_B1TT)
        return {"last_hidden_state": out.last_hidden_state}


@dataclass(frozen=True, slots=True)
class GroundingDinoSizes:
    """What the shapes of a checkpoint say."""

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    stages: tuple[int, ...]
    """Swin stages whose features the detector reads."""
    mlp: int
    width: int
    feedforward: int
    encoder_layers: int
    decoder_layers: int
    queries: int
    levels: int
    encoder_points: int
    decoder_points: int

    def described(self) -> str:
        """One line for the health table."""
        known = {96: "Swin-T", 128: "Swin-B", 192: "Swin-L"}
        swin = known.get(self.embed, f"Swin of width {self.embed}")
        return f"Grounding DINO on {swin}, {self.queries} queries"


def package() -> Any:
    """groundingdino's model module. UserError that says how to install it when it is missing, or
    when its opencv does not find the system's libGL."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Importing from timm.models.layers")
            import groundingdino.models.GroundingDINO.groundingdino as module
    except ModuleNotFoundError as error:
        missing = error.name or "groundingdino"
        raise UserError(
            f"models.segmenter.kind: grounding-sam needs {missing}, which is not installed: "
            f"{_INSTALL}"
        ) from error
    except ImportError as error:
        raise UserError(
            f"models.segmenter.kind: grounding-sam: {error}. groundingdino-py brings "
            "opencv-python, which needs the system's libGL: `apt-get install libgl1 "
            "libglib2.0-0`, or replace it: `pip uninstall opencv-python && pip install "
            "opencv-python-headless`"
        ) from error
    return module


def grounding_dino_sizes(shapes: Shapes, field: str) -> GroundingDinoSizes:
    """The architecture of a checkpoint. UserError when it is not a Grounding DINO."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(shapes, name, field, _WHAT)

    embed = shape("backbone.0.patch_embed.proj.weight")[0]
    depths = tuple(
        count(shapes, f"backbone.0.layers.{i}.blocks.")
        for i in range(count(shapes, "backbone.0.layers."))
    )
    # (2 * window - 1) ** 2 rows, one column per head.
    tables = [
        shape(f"backbone.0.layers.{i}.blocks.0.attn.relative_position_bias_table")
        for i in range(len(depths))
    ]
    levels, width = shape("transformer.level_embed")

    def points(layer: str) -> int:
        return shape(f"{layer}.sampling_offsets.weight")[0] // (_HEADS * levels * 2)

    return GroundingDinoSizes(
        embed=embed,
        depths=depths,
        heads=tuple(heads for _, heads in tables),
        window=(round(tables[0][0] ** 0.5) + 1) // 2,
        stages=tuple(i for i in range(len(depths)) if f"backbone.0.norm{i}.weight" in shapes),
        mlp=shape("backbone.0.layers.0.blocks.0.mlp.fc1.weight")[0],
        width=width,
        feedforward=shape("transformer.encoder.layers.0.linear1.weight")[0],
        encoder_layers=count(shapes, "transformer.encoder.layers."),
        decoder_layers=count(shapes, "transformer.decoder.layers."),
        queries=shape("transformer.tgt_embed.weight")[0],
        levels=levels,
        encoder_points=points("transformer.encoder.layers.0.self_attn"),
        decoder_points=points("transformer.decoder.layers.0.cross_attn"),
    )


def make_grounding_dino(sizes: GroundingDinoSizes, text_folder: Path) -> Any:
    """The package's model, its weights not yet loaded; BERT's size and tokenizer are those of
    `text_folder`. What sizes do not say is as in the package's own configuration files."""
    module = package()
    from groundingdino.config import GroundingDINO_SwinT_OGC as published
    from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
    from groundingdino.models.GroundingDINO.backbone.position_encoding import (
        build_position_encoding,
    )
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer

    defaults = {name: value for name, value in vars(published).items() if name[0] != "_"}
    settings: dict[str, Any] = dict(
        hidden_dim=sizes.width,
        dim_feedforward=sizes.feedforward,
        enc_layers=sizes.encoder_layers,
        dec_layers=sizes.decoder_layers,
        num_queries=sizes.queries,
        num_feature_levels=sizes.levels,
        enc_n_points=sizes.encoder_points,
        dec_n_points=sizes.decoder_points,
        nheads=_HEADS,
        # Recomputing in the backward pass is for training.
        use_checkpoint=False,
        use_transformer_ckpt=False,
    )
    args = SimpleNamespace(**defaults | settings)
    # Swin reads numbers off tensors that it makes, so it cannot be made without memory.
    with torch.device("cpu"):
        swin = SwinTransformer(
            embed_dim=sizes.embed,
            depths=list(sizes.depths),
            num_heads=list(sizes.heads),
            window_size=sizes.window,
            mlp_ratio=sizes.mlp / sizes.embed,
            out_indices=sizes.stages,
        )
    backbone = Joiner(swin, build_position_encoding(args))
    backbone.num_channels = [swin.num_features[i] for i in sizes.stages]
    with _stand_ins(module):
        model = module.GroundingDINO(
            backbone,
            module.build_transformer(args),
            num_queries=sizes.queries,
            aux_loss=True,
            iter_update=True,
            query_dim=4,
            num_feature_levels=sizes.levels,
            nheads=_HEADS,
            dec_pred_bbox_embed_share=args.dec_pred_bbox_embed_share,
            two_stage_type=args.two_stage_type,
            two_stage_bbox_embed_share=args.two_stage_bbox_embed_share,
            two_stage_class_embed_share=args.two_stage_class_embed_share,
            text_encoder_type=str(text_folder),
            sub_sentence_present=True,
        )
    require_bert_tokens(model.tokenizer, text_folder, "models.segmenter.text_encoder")
    return model


def check_grounding_dino(file: Path, text_folder: Path, field: str) -> GroundingDinoSizes:
    """The sizes of a checkpoint that holds all of a Grounding DINO over this text encoder and
    nothing else, else UserError."""
    shapes = read_shapes(file, field, IGNORED)
    sizes = grounding_dino_sizes(shapes, field)
    with torch.device("meta"):
        model = make_grounding_dino(sizes, text_folder)
    require_model(shapes, model, field, f"{_WHAT} over the text encoder {text_folder}")
    return sizes


def load_grounding_dino(file: Path, text_folder: Path, field: str) -> nn.Module:
    """The model with the file's weights, frozen, on the CPU in float32."""
    model = make_grounding_dino(check_grounding_dino(file, text_folder, field), text_folder)
    model.load_state_dict(read_tensors(file, field, IGNORED))
    frozen: nn.Module = model.float().eval().requires_grad_(False)
    return frozen


class PackageDetector:
    """A `Detector`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def offsets(self, caption: str) -> list[tuple[int, int]]:
        """First character and the one after the last of each token; (0, 0): special."""
        encoded = self.model.tokenizer(caption, return_offsets_mapping=True)
        return [(int(first), int(last)) for first, last in encoded["offset_mapping"]]

    def detect(self, pixels_B3hw: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, 256) and boxes (B, Q, 4) as shares."""
        with warnings.catch_warnings():
            # The package still calls torch.cuda.amp.autocast.
            warnings.filterwarnings("ignore", category=FutureWarning)
            out = self.model(pixels_B3hw, captions=list(captions))
        return out["pred_logits"], out["pred_boxes"]


@contextlib.contextmanager
def _stand_ins(module: Any) -> Iterator[None]:
    """For the time of a build: our text encoder for the package's, BERT by its settings alone (its
    weights come with the checkpoint), and no lines on standard output."""
    from groundingdino.util import get_tokenlizer
    from transformers import BertConfig, BertModel

    def bert(folder: str) -> nn.Module:
        return BertModel(BertConfig.from_pretrained(folder))

    with _building, contextlib.redirect_stdout(io.StringIO()):
        before = module.BertModelWarper, get_tokenlizer.get_pretrained_language_model
        module.BertModelWarper = TextEncoder
        get_tokenlizer.get_pretrained_language_model = bert
        try:
            yield
        finally:
            module.BertModelWarper, get_tokenlizer.get_pretrained_language_model = before
