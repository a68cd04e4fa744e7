"""An adapter given away: diffusers loads it, UNO's layout has its names, the card tells all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_flux
import yaml
from safetensors import safe_open

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.exporting import export_adapter
from focusdpo.model.adapter import AdapterCard, add_policy, policy_parameters, save_adapter
from focusdpo.model.backbones import flux_uno
from focusdpo.model.configs import LoraConfig


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy as training leaves it, with the run's settings beside it."""
    folder = tmp_path_factory.mktemp("exporting")
    base = tiny_flux.make_flux(folder / "flux")
    config = tiny_flux.tiny_config(base, tiny_flux.make_uno(folder / "uno"))
    backbone = flux_uno.build(config, "cpu")
    lora = LoraConfig(rank=4, alpha=4, targets=backbone.lora_targets)
    add_policy(backbone.transformer, lora, seed=0)
    card = AdapterCard(
        lora=lora, base_fingerprint=backbone.fingerprint, dataset_version="d1",
        objective="focus_dpo", step=7, train_config={"steps": 7, "focus": {"tau": 0.7}},
        licences=("base: no commercial use", "subjects: CC BY 4.0"),
    )  # fmt: skip
    weights = policy_parameters(backbone.transformer)
    save_adapter(folder / "train" / "adapter", backbone.transformer, card, weights)
    run = {"suite": "checkpoints", "models": {"backbone": config.model_dump(mode="json")}}
    (folder / "train" / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "train" / "adapter"


def test_diffusers_loads_what_is_exported(adapter: Path, tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    out = export_adapter(adapter, tmp_path / "out")
    pipeline = FluxPipeline.from_pretrained(adapter.parents[1] / "flux", local_files_only=True)
    pipeline.load_lora_weights(out)
    assert pipeline.get_active_adapters()


def test_unos_layout_has_unos_names(adapter: Path, tmp_path: Path) -> None:
    out = export_adapter(adapter, tmp_path / "out", "uno")
    with safe_open(out / "dit_lora.safetensors", "pt") as file:
        assert all(".processor." in name and "_lora" in name for name in file.keys())  # noqa: SIM118


def test_the_card_tells_settings_licences_and_how_to_load(adapter: Path, tmp_path: Path) -> None:
    card = (export_adapter(adapter, tmp_path / "out") / "README.md").read_text()
    for part in (
        "base: no commercial use", "subjects: CC BY 4.0", "`focus.tau` | 0.7", "load_lora_weights",
        "arXiv 2509.01181", "dataset version `d1`", "None was given to this card",
    ):  # fmt: skip
        assert part in card


def test_an_evaluation_stands_in_the_card_and_must_be_this_adapters(
    adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    about = {"adapter": str(adapter), "protocol": "pocket", "scenes": 3, "seed": 1}
    rows = [
        {
            "group": "all",
            "metric": "identity",
            "model": model,
            "mean": mean,
            "low": 0.1,
            "high": 0.3,
        }
        for model, mean in (("base", 0.5), ("adapter", 0.7), ("adapter - base", 0.2))
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "run.json").write_text(json.dumps(about))
    out = export_adapter(adapter, tmp_path / "out", evaluations=[folder])
    assert (
        "| identity | 0.5000 | 0.7000 | +0.2000 [+0.1000, +0.3000] |"
        in (out / "README.md").read_text()
    )
    (folder / "run.json").write_text(json.dumps(about | {"adapter": "elsewhere"}))
    with pytest.raises(UserError, match="an evaluation of elsewhere, not of"):
        export_adapter(adapter, tmp_path / "other", evaluations=[folder])


def test_a_damaged_adapter_is_not_exported(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[: -3 if file.suffix != ".json" else None])
    with pytest.raises(UserError, match="corrupt or truncated"):
        export_adapter(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
