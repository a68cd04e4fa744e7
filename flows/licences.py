"""Licences of the weights that a run uses: told at its start, in reports and in adapters' cards."""

from __future__ import annotations

from focusdpo.data_schemas.checkpoints import locate, read_json
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.models_config import Family
from focusdpo.model.backbones.flux_uno_config import FluxUnoConfig

POCKET = "Apache-2.0, trained on renders of MIT-licensed 3D emoji"
DEV = "FLUX.1 [dev] Non-Commercial License: no commercial use"
SCHNELL = "Apache-2.0 (FLUX.1 [schnell])"
UNO = "CC BY-NC 4.0 (UNO): no commercial use"

BY_KIND = {
    "sdxl-ip-adapter": "CreativeML Open RAIL++-M (SDXL); Apache-2.0 (IP-Adapter)",
    "flux2-klein": "Apache-2.0 (FLUX.2 [klein] 4B), FLUX Non-Commercial License (9B): see its card",
    "flux-fill": "FLUX.1 [dev] Non-Commercial License (Fill): no commercial use",
    "sdxl-inpaint": "CreativeML Open RAIL++-M (SDXL inpainting)",
    "grounding-sam": "Apache-2.0 (Grounding DINO, SAM)",
    "grounding-sam-hf": "Apache-2.0 (Grounding DINO, SAM)",
    "dino": "Apache-2.0 (DINO)",
    "dinov2": "Apache-2.0 (DINOv2)",
    "clip": "MIT (OpenAI CLIP)",
    "vlm": "see the captioner's own card (SmolVLM: Apache-2.0)",
}
"""Of the public checkpoints that a kind is made for; whoever brings other weights knows theirs."""


def licence_of(family: Family, role: str) -> str:
    """The licence of a part's weights; "" for a part without any."""
    if isinstance(family, str):
        return POCKET
    config = getattr(family, "backbone" if role == "generator" else role, None)
    if isinstance(config, FluxUnoConfig):
        return "; ".join([_flux(config.base), *([UNO] if config.uno else [])])
    return BY_KIND.get(getattr(config, "kind", ""), "")


def notices(family: Family) -> list[str]:
    """What to say before a run: who may not use what it makes for what."""
    if isinstance(family, str):
        return []
    told = {role: licence_of(family, role) for role in ("backbone", "inpainter")}
    return [f"licence of the {role}: {licence}" for role, licence in told.items() if licence]


def _flux(base: str) -> str:
    """dev embeds guidance, schnell does not."""
    try:
        folder = locate(base, "models.backbone.base")
        about = read_json(folder / "transformer" / "config.json", "models.backbone.base")
    except UserError:
        return f"{DEV}, or {SCHNELL}"  # not here yet: `doctor` and the run itself say so
    return DEV if about.get("guidance_embeds") else SCHNELL
