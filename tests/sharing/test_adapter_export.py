"""An adapter given away: diffusers loads it, UNO's layout has its names, the card tells all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.inference import read_about
from focusdpo.model.adapter import (
    AdapterCard,
    add_policy,
    policy_parameters,
    read_card,
    read_weights,
    save_adapter,
)
from focusdpo.model.backbones import flux_uno
from focusdpo.model.training.config import LoraConfig
from focusdpo.sharing.adapter_export import export_adapter


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


@pytest.fixture(scope="module")
def strong_adapter(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of rank 4 and alpha 12 that changes something: the LoRA's scale is 3."""
    folder = tmp_path_factory.mktemp("scaled")
    run = yaml.safe_load((adapter.parent / "run.yaml").read_text())
    backbone = tiny_backbone(run)
    lora = LoraConfig(rank=4, alpha=12, targets=backbone.lora_targets)
    add_policy(backbone.transformer, lora, seed=0)
    weights = policy_parameters(backbone.transformer)
    for parameter in weights.values():
        parameter.data += 0.05
    card = AdapterCard(
        lora=lora, base_fingerprint=backbone.fingerprint, dataset_version="d1", objective="dpo",
        step=1,
    )  # fmt: skip
    save_adapter(folder / "adapter", backbone.transformer, card, weights)
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "adapter"


def tiny_backbone(run: dict[str, Any]) -> Any:
    from focusdpo.model.backbones.flux_config import FluxUnoConfig

    return flux_uno.build(FluxUnoConfig.model_validate(run["models"]["backbone"]), "cpu")


def merged(folder: Path, loaded: object) -> dict[str, torch.Tensor]:
    """The weights of diffusers' transformer with a LoRA fused into them."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(loaded)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return dict(pipeline.transformer.state_dict())


def test_the_scale_is_the_same_in_every_loader(
    adapter: Path, strong_adapter: Path, tmp_path: Path
) -> None:
    """The folder, the tensors alone, and the folder that training wrote."""
    flux = adapter.parents[1] / "flux"
    out = export_adapter(strong_adapter, tmp_path / "out")
    trained = merged(flux, strong_adapter)
    for loaded in (out, load_file(out / "pytorch_lora_weights.safetensors")):
        given = merged(flux, loaded)
        assert given.keys() == trained.keys()
        for name, tensor in trained.items():
            torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-6)
    alone = merged(flux, load_file(strong_adapter / "pytorch_lora_weights.safetensors"))
    assert any(not torch.allclose(alone[name], tensor) for name, tensor in trained.items())


def test_what_is_exported_is_an_adapter_of_ours_with_the_same_effect(
    strong_adapter: Path, tmp_path: Path
) -> None:
    out = export_adapter(strong_adapter, tmp_path / "out")
    card = read_card(out)
    assert card.lora.alpha == card.lora.rank == 4
    was, now = read_weights(strong_adapter, read_card(strong_adapter)), read_weights(out, card)
    for name, tensor in was.items():
        torch.testing.assert_close(now[name], tensor * (3 if ".lora_B." in name else 1))


def test_alpha_as_rank_is_copied_byte_for_byte(adapter: Path, tmp_path: Path) -> None:
    out = export_adapter(adapter, tmp_path / "out")
    for name in ("pytorch_lora_weights.safetensors", "adapter.json"):
        assert (out / name).read_bytes() == (adapter / name).read_bytes()


def test_an_adapter_that_another_program_saved_again_has_changed(
    adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    weights = copy / "pytorch_lora_weights.safetensors"
    save_file(load_file(weights), weights)
    with pytest.raises(UserError, match=r"has changed since training.*set weights_digest to"):
        export_adapter(copy, tmp_path / "out")
    card = json.loads((copy / "adapter.json").read_text()) | {"weights_digest": ""}
    del card["blake2b"]
    (copy / "adapter.json").write_text(json.dumps(card))
    export_adapter(copy, tmp_path / "out")


def test_unos_layout_has_unos_names(adapter: Path, tmp_path: Path) -> None:
    out = export_adapter(adapter, tmp_path / "out", "uno")
    with safe_open(out / "dit_lora.safetensors", "pt") as file:
        assert all(".processor." in name and "_lora" in name for name in file.keys())  # noqa: SIM118


def test_the_card_tells_settings_licences_and_how_to_load(adapter: Path, tmp_path: Path) -> None:
    card = (export_adapter(adapter, tmp_path / "out") / "README.md").read_text()
    for part in (
        "base: no commercial use", "subjects: CC BY 4.0", "`focus.tau` | 0.7", "load_lora_weights",
        "arXiv 2509.01181", "dataset version `d1`", "None was given to this card",
        'Generator("flux-uno", adapter="THIS_FOLDER")', "license_name: see-card",
    ):  # fmt: skip
        assert part in card


def test_an_evaluation_stands_in_the_card_and_must_be_this_adapters(
    adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    about: dict[str, object] = {"adapter": str(adapter), "protocol": "pocket", "scenes": 3}
    about["seed"] = 1
    about["fingerprints"] = {"judge": "398a", "base": "d287"}
    rows = [
        {
            "protocol": "pocket",
            "group": "all",
            "metric": "identity",
            "model": model,
            "mean": mean,
            "low": 0.1,
            "high": 0.3,
            "scenes": 3,
        }
        for model, mean in (("base", 0.5), ("adapter", 0.7), ("adapter - base", 0.2))
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "run.json").write_text(json.dumps(about))
    out = export_adapter(adapter, tmp_path / "out", evaluations=[folder])
    assert (
        "| identity | 0.5000 | 0.7000 | +0.2000 [+0.1000, +0.3000] | 3 |"
        in (out / "README.md").read_text()
    )
    assert "Models by fingerprint: judge 398a, base d287." in (out / "README.md").read_text()
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


def test_an_export_replaces_an_earlier_one_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    out = export_adapter(adapter, tmp_path / "out", "uno")
    export_adapter(adapter, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "adapter.json", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="there is something already"):
        export_adapter(adapter, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_bases_name_is_one_value_of_the_front_matter(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter.parent, tmp_path / "train")
    file = tmp_path / "train" / "run.yaml"
    run = yaml.safe_load(file.read_text())
    run["models"]["backbone"]["base"] = "me/x\nlicense: mit\n# <b>"
    file.write_text(yaml.safe_dump(run))
    card = (
        export_adapter(tmp_path / "train" / "adapter", tmp_path / "out") / "README.md"
    ).read_text()
    _, front, body = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["license"] == "other" and about["base_model"] == "me/x\nlicense: mit\n# <b>"
    assert "<b>" not in body.replace("\\<", "") and "\nlicense: mit" not in body


@pytest.mark.slow
def test_the_cards_three_lines_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the folder's name; and the subjects' licences are text."""
    from PIL import Image
    from pocket_adapter import pocket_adapter

    out = export_adapter(pocket_adapter(tmp_path / "run" / "adapter"), tmp_path / "given")
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "focusdpo" and "base_model" not in front
    assert "\\<b\\>MIT" in card and "<b>" not in card
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(lines.strip().splitlines()) == 3
    for name, colour in (("cat", (200, 40, 40, 255)), ("rocket", (40, 40, 200, 255))):
        picture = Image.new("RGBA", (64, 64))
        picture.paste(colour, (16, 16, 48, 48))
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(lines.replace("THIS_FOLDER", str(out)), "card", "exec"), {})
    assert read_about(tmp_path / "out.png").class_names == ("cat", "rocket")
