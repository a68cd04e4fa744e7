"""The authors' names of Grounding DINO's and SAM's tensors -> those of the folders on the hub."""

from __future__ import annotations

import re

from torch import Tensor

_SWIN = "model.backbone.conv_encoder.model."
_DETECTOR_NAMES = (
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^input_proj\.", "model.input_proj_vision."),
    (r"^backbone\.0\.norm(\d)", lambda m: f"{_SWIN}hidden_states_norms.stage{int(m[1]) + 1}"),
    (r"^backbone\.0\.patch_embed\.proj", "backbone.0.embeddings.patch_embeddings.projection"),
    (r"^backbone\.0\.patch_embed\.norm", "backbone.0.embeddings.norm"),
    (r"^backbone\.0\.layers", "backbone.0.encoder.layers"),
    (r"(backbone\..*)\.norm1\.", r"\1.layernorm_before."),
    (r"(backbone\..*)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.relative_position_bias", ".attention.self.relative_position_bias"),
    (r"\.attn\.qkv\.", ".attention.self.qkv."),
    (r"(backbone\..*)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(backbone\..*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(backbone\..*)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"^backbone\.0\.", "model.backbone.conv_encoder.model."),
    (r"^transformer\.", "model."),
    (r"^model\.tgt_embed", "model.query_position_embeddings"),
    (r"^model\.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    (r"^model\.decoder\.norm", "model.decoder.layer_norm"),
    (r"ref_point_head", "reference_points_head"),
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.ca_text\.", ".encoder_attn_text."),
    (r"\.catext_norm\.", ".encoder_attn_text_layer_norm."),
    (r"^(model\.encoder)\.layers\.(\d+)", r"\1.layers.\2.deformable_layer"),
    (r"(deformable_layer)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(deformable_layer)\.norm2", r"\1.final_layer_norm"),
    (r"\.text_layers\.(\d+)", r".layers.\1.text_enhancer_layer"),
    (r"(text_enhancer_layer)\.norm1", r"\1.layer_norm_before"),
    (r"(text_enhancer_layer)\.norm2", r"\1.layer_norm_after"),
    (r"\.linear([12])\.", r".fc\1."),
    (r"\.fusion_layers\.(\d+)", r".layers.\1.fusion_layer"),
    (r"\.gamma_v", ".vision_param"),
    (r"\.gamma_l", ".text_param"),
    (r"layer_norm_v\.", "layer_norm_vision."),
    (r"layer_norm_l\.", "layer_norm_text."),
    (r"\.(values_|out_|)v_proj\.", r".\1vision_proj."),
    (r"\.(values_|out_|)l_proj\.", r".\1text_proj."),
)
_SAM_NAMES = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"\.blocks\.", ".layers."),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
    (r"(iou_prediction_head|mlps\.\d)\.layers\.0", r"\1.proj_in"),
    (r"(iou_prediction_head|mlps\.\d)\.layers\.2", r"\1.proj_out"),
    (r"(iou_prediction_head|mlps\.\d)\.layers\.1", r"\1.layers.0"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"point_embeddings", "point_embed"),
    (
        r"pe_layer\.positional_encoding_gaussian_matrix",
        "shared_embedding.positional_embedding",
    ),
)


def detector_to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """groundingdino's names and layouts -> those of IDEA-Research's folders on the hub: other
    names, and the joint query, key and value matrices cut in three."""
    out = {}
    for name, tensor in state.items():
        if re.search(r"^bert\.pooler|relative_position_index|^transformer\.decoder\.bbox", name):
            continue
        for pattern, new in _DETECTOR_NAMES:
            name = re.sub(pattern, new, name)
        if "in_proj_" in name or ".qkv." in name:
            for part, own in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[re.sub(r"in_proj_|qkv\.", f"{part}.", name)] = own
        else:
            out[name] = tensor
    return out


def sam_to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """segment-anything's names -> those of facebook's folders on the hub."""
    out = {}
    for name, tensor in state.items():
        for pattern, new in _SAM_NAMES:
            name = re.sub(pattern, new, name)
        out[name] = tensor
    shared = out["prompt_encoder.shared_embedding.positional_embedding"]
    return out | {"shared_image_embedding.positional_embedding": shared}
