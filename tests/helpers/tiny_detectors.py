"""Small Grounding DINOs and SAMs with random weights, in the layouts of the published files, and
the same weights under transformers' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detector_names import detector_to_transformers, sam_to_transformers
from numpy.typing import NDArray
from torch import Tensor, nn

WORDS = ("red", "disc", "square", "cat", "dog", "##s", "old", "a", "an", "person", "thing")
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1040,
}
SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
QUERIES, SIDE = 20, 128
"""Boxes of the detector, and the side of SAM's view."""


def write_text_folder(folder: Path) -> Path:
    """config.json and the tokenizer of a small BERT: as bert-base-uncased without weights. The
    special tokens and the full stop have BERT's own ids, which transformers' model builds in."""
    from transformers import BertConfig

    BertConfig(**BERT).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def original_detector(text_folder: Path) -> nn.Module:
    """groundingdino-py's model, small. Small logits, so that no two confidences tie at 1."""
    from focusdpo.pipeline.adapters.segmenters.original_grounding_dino import (
        GroundingDinoSizes,
        make_grounding_dino,
    )

    torch.manual_seed(0)
    sizes = GroundingDinoSizes(
        embed=16,
        depths=SWIN["depths"],
        heads=SWIN["num_heads"],
        window=4,
        stages=(1, 2, 3),
        mlp=64,
        width=256,
        feedforward=64,
        encoder_layers=1,
        decoder_layers=2,
        queries=QUERIES,
        levels=4,
        encoder_points=4,
        decoder_points=4,
    )
    return _stirred(make_grounding_dino(sizes, text_folder), "transformer.decoder.norm.weight")


def write_original_detector(model: nn.Module, file: Path) -> Path:
    """As the published .pth: {"model": {"module.<name>": tensor}} with two unused tensors."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.label_enc.weight"] = torch.zeros(3, 256)
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, file)
    return file


def write_detector_folder(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A folder for transformers, of the same size: with an original's weights, or random ones."""
    from safetensors.torch import save_file
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = {name: list(v) if isinstance(v, tuple) else v for name, v in SWIN.items()}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**swin, image_size=224, out_indices=[2, 3, 4]),
        text_config=BertConfig(**BERT),
        num_queries=QUERIES,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    model = _stirred(GroundingDinoForObjectDetection(config), "model.decoder.layer_norm.weight")
    model.save_pretrained(folder)
    if state is not None:
        renamed = {k: v.clone() for k, v in detector_to_transformers(state).items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer().save_pretrained(folder)
    return folder


def original_sam() -> nn.Module:
    """segment-anything's model, small."""
    from focusdpo.pipeline.adapters.segmenters.original_sam import SamSizes, make_sam

    torch.manual_seed(1)
    sizes = SamSizes(
        width=32,
        depth=2,
        heads=2,
        mlp=128,
        patch=16,
        grid=SIDE // 16,
        window=4,
        whole=(1,),
        prompt=32,
        mask_channels=8,
        layers=2,
        decoder_mlp=64,
        proposals=3,
        quality_depth=3,
        quality_width=32,
    )
    return _stirred(make_sam(sizes))


def write_sam_folder(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A folder for transformers' SamModel, of the same size."""
    from safetensors.torch import save_file
    from transformers import SamConfig, SamModel

    torch.manual_seed(1)
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 128,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": SIDE,
            "patch_size": 16,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 32,
        },
    )
    _stirred(SamModel(config)).save_pretrained(folder)
    if state is not None:
        renamed = {k: v.clone() for k, v in sam_to_transformers(state).items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_sam2_folder(folder: Path, video: bool = False) -> Path:
    """A folder for transformers' Sam2Model, or of the whole video model, as facebook's are."""
    from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

    torch.manual_seed(2)
    hiera = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    }
    parts = {
        "vision_config": {
            "backbone_config": hiera | {"model_type": "sam2_hiera_det_model"},
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 16},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    }
    if not video:
        _stirred(Sam2Model(Sam2Config(**parts))).save_pretrained(folder)
        return folder
    memory = {
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [SIDE // 16] * 2,
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 32,
    }
    config = Sam2VideoConfig(**parts, image_size=SIDE, **memory)
    _stirred(Sam2VideoModel(config)).save_pretrained(folder)
    return folder


def pictures() -> list[NDArray[np.uint8]]:
    """Four pictures of three sizes: coloured shapes on noise."""
    rng = np.random.default_rng(5)
    out = []
    for rows, columns in ((96, 96), (96, 128), (120, 80), (96, 96)):
        image = rng.integers(90, 130, (rows, columns, 3)).astype(np.uint8)
        for _ in range(4):
            y, x = rng.integers(0, rows - 24), rng.integers(0, columns - 24)
            image[y : y + 24, x : x + 24] = rng.integers(0, 255, 3)
        out.append(image)
    return out


def _tokenizer():
    from transformers import BertTokenizer

    known = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    known |= {".": 1012, "?": 1029} | {word: 200 + at for at, word in enumerate(WORDS)}
    free = {f"[unused{i}]": i for i in set(range(BERT["vocab_size"])) - set(known.values())}
    return BertTokenizer(vocab=free | known)


def _stirred(model: nn.Module, quiet: str | None = None) -> nn.Module:
    """Noise on all parameters, also on those that start at zero; `quiet` is made small."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor += torch.randn(tensor.shape, generator=generator) * 0.03
            if name == quiet:
                tensor *= 0.1
    return model.eval()
