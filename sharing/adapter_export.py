"""An adapter made ready to be given away: weights in a public layout, card, licences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jinja2 import Environment, StrictUndefined

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.comparison import PairedText, paired_texts
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.reports.metric_texts import code, one_line
from focusdpo.sharing.hub import whole_folder

if TYPE_CHECKING:
    from focusdpo.model.adapter import AdapterCard

Layout = Literal["diffusers", "uno", "comfyui"]
CARD = "README.md"
ADAPTER = "adapter.json"
LORA = "lora_adapter_metadata"
"""Where a weights file tells diffusers rank and alpha."""
IP_ADAPTER = "ip_adapter.safetensors"
_SCALED = (".lora_B.weight", ".lokr_w1", ".lokr_w1_a")
"""The factors that a scale goes into: one of a layer's each."""
_KEPT = ("objective", "lora", "noise", "focus")
"""Sections of the training's settings that a card tells; `adapter.json` has all."""
_LOAD = {
    "flux-uno": """import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16)
pipe.load_lora_weights("bytedance-research/UNO", weight_name="dit_lora.safetensors")
pipe.fuse_lora(); pipe.unload_lora_weights()
pipe.load_lora_weights("THIS_FOLDER")  # references: `focusdpo generate --preset flux-uno`""",
    "sdxl-ip-adapter": """import torch
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_ip_adapter(  # before the LoRA, which diffusers would else put on half of its layers
    "h94/IP-Adapter", subfolder="sdxl_models", image_encoder_folder="models/image_encoder",
    weight_name="ip-adapter-plus_sdxl_vit-h.safetensors",
)
pipe.set_ip_adapter_scale(0.78)
pipe.load_lora_weights("THIS_FOLDER")""",
    "adapter_kv": """import torch
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_ip_adapter(  # the image encoder is that of h94/IP-Adapter, models/image_encoder
    "THIS_FOLDER", subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None
)""",
    "flux2-klein": """from diffusers import Flux2KleinPipeline

pipe = Flux2KleinPipeline.from_pretrained("black-forest-labs/FLUX.2-klein-base-4B")
pipe.load_lora_weights("THIS_FOLDER")
image = pipe(image=[first, second], prompt="a dog and a cat on a sandy beach").images[0]""",
    "pocket": "",  # no diffusers pipeline fits it as it is
}

_KLEIN = 'pipe.load_lora_weights("THIS_FOLDER")'
_FROM_FILE = 'weight_name="pytorch_lora_weights.safetensors")'
_LOAD_LOKR = {  # whose pipelines take LoRAs alone, and whose models take both
    "flux-uno": f"""pipe.transformer.load_lora_adapter(
    "THIS_FOLDER", prefix="transformer", {_FROM_FILE}""",
    "sdxl-ip-adapter": f"""pipe.unet.load_lora_adapter(
    "THIS_FOLDER", prefix="unet", {_FROM_FILE}""",
}


_COMFYUI = """# ComfyUI: comfyui_lora.safetensors -> models/loras
# ip_adapter.safetensors, where there is one -> models/ipadapter (ComfyUI_IPAdapter_plus)
# comfyui_workflow.json: drop it on the page, or POST it to /prompt"""


@dataclass(frozen=True)
class EvaluationTable:
    """An evaluation as a card shows it."""

    protocol: str
    scenes: int
    seed: str
    models: str
    """Part and fingerprint of all that painted and judged."""
    rows: list[PairedText]


def export_adapter(
    adapter: Path,
    out: Path,
    layout: Layout = "diffusers",
    *,
    uno: str | None = None,
    evaluations: Sequence[Path] = (),
) -> Path:
    """Writes `out`: weights (diffusers' layout, ComfyUI's with a workflow, or UNO's, with `uno`
    joined to UNO's own LoRA), adapter.json and a model card. UserError for a damaged adapter, an
    evaluation of another one, and a layout that does not fit."""
    from focusdpo.model.adapter import read_card, read_weights

    card = read_card(adapter)
    read_weights(adapter, card)
    tables = [_table(folder, adapter) for folder in evaluations]
    with whole_folder(out, replaces=ADAPTER) as folder:
        _write_weights(adapter, folder, card, layout, uno)
        (folder / CARD).write_text(_card(card, adapter, layout, tables), encoding="utf-8")
    return out


def _write_weights(
    adapter: Path, folder: Path, card: AdapterCard, layout: Layout, uno: str | None
) -> None:
    from focusdpo.model.adapter import WEIGHTS

    backbone = _backbone(adapter)
    if layout == "comfyui":
        from focusdpo.sharing.comfyui import write_comfyui

        write_comfyui(adapter, folder, backbone)
    elif layout == "uno":
        from focusdpo.model.backbones.uno_lora import export_uno

        export_uno(adapter, folder, uno=uno)
    elif backbone.get("policy") == "adapter_kv":
        from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
        from focusdpo.model.backbones.sdxl_ip_adapter import save_ip_adapter

        config = SdxlIpAdapterConfig.model_validate(backbone)
        save_ip_adapter(config, adapter, folder / IP_ADAPTER)
    elif card.lora.alpha != card.lora.rank:
        _write_scaled(adapter, folder, card)
        return
    else:
        shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)
    shutil.copyfile(adapter / ADAPTER, folder / ADAPTER)


def _write_scaled(adapter: Path, folder: Path, card: AdapterCard) -> None:
    """The adapter's scale, alpha / rank, multiplied into a factor of each layer: who loads the
    tensors alone, without the metadata that says alpha, gets the adapter that was trained."""
    from safetensors import safe_open
    from safetensors.torch import save

    from focusdpo.model.adapter import WEIGHTS, card_bytes, weights_digest

    scale, rank = card.lora.alpha / card.lora.rank, card.lora.rank
    with safe_open(adapter / WEIGHTS, "pt") as file:
        metadata = dict(file.metadata() or {})
        names = list(file.keys())
        tensors = {
            name: file.get_tensor(name) * (scale if name.endswith(_SCALED) else 1) for name in names
        }
    if LORA in metadata:  # absent where another program has saved the file again
        settings = json.loads(metadata[LORA])
        settings |= {name: rank for name in settings if name.endswith(("lora_alpha", ".alpha"))}
        metadata[LORA] = json.dumps(settings, sort_keys=True)
    data = save(tensors, metadata)
    (folder / WEIGHTS).write_bytes(data)
    lora = card.lora.model_copy(update={"alpha": float(rank)})
    folded = card.model_copy(update={"lora": lora, "weights_digest": weights_digest(data)})
    (folder / ADAPTER).write_bytes(card_bytes(folded))


def _card(
    card: AdapterCard, adapter: Path, layout: Layout, tables: Sequence[EvaluationTable]
) -> str:
    backbone = _backbone(adapter)
    kind = str(backbone.get("kind", "pocket"))
    base = str(backbone.get("base", "the embedded pocket generator"))
    text = resources.files("focusdpo.sharing").joinpath("templates/model_card.md.j2").read_text()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True)
    environment.filters["code"] = code
    environment.filters["one_line"] = one_line  # what users wrote is shown as text
    kv = backbone.get("policy") == "adapter_kv"
    load = _COMFYUI if layout == "comfyui" else _LOAD["adapter_kv" if kv else kind]
    if layout == "diffusers" and card.lora.kind == "lokr":
        load = load.replace('pipe.load_lora_weights("THIS_FOLDER")', _LOAD_LOKR.get(kind, _KLEIN))
    return environment.from_string(text).render(
        title=f"FocusDPO adapter for {kind}",
        card=card,
        layout=layout,
        base_name=base if kind == "pocket" else f"{kind} ({base})",
        base_model=base if "/" in base and not base.startswith("/") else "other",
        load=load,
        adapter={"lora": "LoRA", "dora": "DoRA", "lokr": "LoKr"}[card.lora.kind],
        preset=None if kv or layout != "diffusers" else kind,
        tables=tables,
        settings=list(_settings(card.train_config)),
    )


def _backbone(adapter: Path) -> Mapping[str, Any]:
    """The backbone's settings in the run that the adapter lies in; {} for the embedded one, and
    when the adapter was moved."""
    file = adapter.parent / "run.yaml"
    if not file.is_file():
        return {}
    run_config = yaml.safe_load(file.read_text("utf-8"))
    models = run_config.get("models") if isinstance(run_config, dict) else None
    return (models or {}).get("backbone") or {}


def _settings(config: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if not path and isinstance(value, Mapping) and name not in _KEPT:
            continue
        if isinstance(value, Mapping):
            rows += _settings(value, f"{path}{name}.")
        else:
            rows.append((f"{path}{name}", str(value)))
    return rows


def _table(path: Path, adapter: Path) -> EvaluationTable:
    folder = EvaluationFolder(path)
    about = folder.about
    if not folder.is_of(adapter):
        raise UserError(f"{path}: an evaluation of {about.get('adapter')}, not of {adapter}")
    fingerprints = about.get("fingerprints")
    prints = fingerprints if isinstance(fingerprints, dict) else {}
    return EvaluationTable(
        protocol=folder.protocol,
        scenes=int(about.get("scenes", 0)),
        seed=str(about.get("seed", "")),
        models=", ".join(f"{part} {name}" for part, name in prints.items()),
        rows=paired_texts(folder.rows),
    )
