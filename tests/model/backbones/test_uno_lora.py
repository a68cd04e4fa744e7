"""UNO's LoRA file: checked by its header, merged, and our policy written in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tiny_flux import NUM_DOUBLE, NUM_SINGLE, RANK, WIDTH, make_flux, make_uno, uno_tensors
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import (
    AdapterCard,
    add_policy,
    policy_parameters,
    save_adapter,
)
from focusdpo.model.backbones.uno_lora import (
    check_uno,
    export_uno,
    fuse,
    fuse_uno,
    uno_file,
    uno_targets,
)
from focusdpo.model.training.config import LoraConfig
from focusdpo.store.checkpoints import read_json

TARGETS = uno_targets(NUM_DOUBLE, NUM_SINGLE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def settings(base: Path) -> dict[str, Any]:
    return read_json(base / "transformer" / "config.json", "models.backbone.base")


def transformer(base: Path) -> Any:
    model = FluxTransformer2DModel.from_pretrained(base / "transformer", local_files_only=True)
    return model.requires_grad_(False)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def adapter(folder: Path, base: Path, *, targets: tuple[str, ...] = TARGETS) -> dict[str, Tensor]:
    """A trained adapter on disk, and what it adds to every weight, by hand."""
    model = transformer(base)
    lora = LoraConfig(rank=2, alpha=6.0, targets=targets)
    add_policy(model, lora, seed=1)
    parameters = policy_parameters(model)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    card = AdapterCard(
        lora=lora, base_fingerprint="b", dataset_version="v", objective="focus_dpo", step=1
    )
    save_adapter(folder, model, card, parameters)
    added = {}
    for name, parameter in parameters.items():
        layer, _, part = name.partition(".lora_")
        if part.startswith("B"):
            down = parameters[f"{layer}.lora_A.policy.weight"]
            added[f"{layer}.weight"] = 3.0 * (parameter.detach() @ down.detach())
    return added


def added_by_diffusers(base: Path, path: Path) -> dict[str, Tensor]:
    """What diffusers' own loader and `fuse_lora` add to the weights for a UNO file."""
    loaded = FluxPipeline.from_pretrained(base, local_files_only=True)
    before = weights(loaded.transformer)
    loaded.load_lora_weights(str(path.parent), weight_name=path.name)
    loaded.fuse_lora()
    loaded.unload_lora_weights()
    after = loaded.transformer.state_dict()
    moved = {name: after[name] - before[name] for name in before}
    return {name: value for name, value in moved.items() if value.abs().max() > 1e-6}


def test_the_layout_is_the_public_files() -> None:
    """The names and shapes of UNO's dit_lora.safetensors for the real FLUX.1 (rank 512)."""
    from focusdpo.model.backbones.uno_lora import uno_shapes

    shapes = uno_shapes(19, 38, 3072, 512)
    assert len(shapes) == 19 * 8 + 38 * 4
    double, single = "double_blocks.18.processor", "single_blocks.37.processor"
    assert shapes[f"{double}.qkv_lora1.down.weight"] == (512, 3072)
    assert shapes[f"{double}.qkv_lora2.up.weight"] == (9216, 512)
    assert shapes[f"{double}.proj_lora2.up.weight"] == (3072, 512)
    assert shapes[f"{single}.qkv_lora.up.weight"] == (9216, 512)
    assert shapes[f"{single}.proj_lora.down.weight"] == (512, 15360)
    assert sum(a * b for a, b in shapes.values()) == 956_301_312


def test_merging_adds_up_times_down(base: Path) -> None:
    model, uno = transformer(base), uno_tensors()
    before = weights(model)
    assert fuse(model, uno) == NUM_DOUBLE * 8 + NUM_SINGLE * 4
    assert model.state_dict().keys() == before.keys()
    after = weights(model)

    def product(slot: str) -> Tensor:
        return uno[f"{slot}.up.weight"] @ uno[f"{slot}.down.weight"]

    qkv = product("double_blocks.1.processor.qkv_lora2").chunk(3)
    attention = "transformer_blocks.1.attn"
    for name, part in zip(("add_q_proj", "add_k_proj", "add_v_proj"), qkv, strict=True):
        key = f"{attention}.{name}.weight"
        torch.testing.assert_close(after[key], before[key] + part)
    key = "single_transformer_blocks.0.proj_out.weight"
    moved = before[key] + product("single_blocks.0.processor.proj_lora")
    torch.testing.assert_close(after[key], moved)
    assert torch.equal(after["proj_out.weight"], before["proj_out.weight"])
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert len(before) - len(unchanged) == NUM_DOUBLE * 8 + NUM_SINGLE * 4


def test_merging_is_diffusers_fuse_lora(base: Path, tmp_path: Path) -> None:
    file = uno_file(str(make_uno(tmp_path)), "uno")
    model = transformer(base)
    before = weights(model)
    fuse_uno(model, file)
    wanted = added_by_diffusers(base, file)
    assert len(wanted) == NUM_DOUBLE * 8 + NUM_SINGLE * 4
    for name, value in model.state_dict().items():
        if name in wanted:
            torch.testing.assert_close(value - before[name], wanted[name], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, before[name])


def test_a_prefix_changes_nothing(base: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    prefixed = {f"diffusion_model.{name}": value for name, value in uno_tensors().items()}
    file = make_uno(tmp_path, prefixed) / "dit_lora.safetensors"
    assert check_uno(file, settings, "uno") == RANK
    one, other = transformer(base), transformer(base)
    fuse_uno(one, file)
    fuse(other, uno_tensors())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_exported_policy_adds_what_the_adapter_adds(
    base: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Through diffusers' own loader for UNO's layout."""
    added = adapter(tmp_path / "adapter", base)
    file = export_uno(tmp_path / "adapter", tmp_path / "out")
    assert file == tmp_path / "out" / "dit_lora.safetensors"
    assert check_uno(file, settings, "models.backbone.uno") == 3 * 2
    found = added_by_diffusers(base, file)
    assert found.keys() == added.keys()
    for name, value in added.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_policy_of_some_layers_fills_the_others_with_zeros(
    base: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    targets = ("to_k", "transformer_blocks.2.attn.to_add_out")
    added = adapter(tmp_path / "adapter", base, targets=targets)
    file = export_uno(tmp_path / "adapter", tmp_path / "policy.safetensors")
    assert file == tmp_path / "policy.safetensors"
    assert check_uno(file, settings, "models.backbone.uno") == 2
    found = added_by_diffusers(base, file)
    assert found.keys() == added.keys()
    for name, value in added.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_joined_with_uno_it_is_the_sum(
    base: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """One file that UNO's own code runs on plain FLUX."""
    added = adapter(tmp_path / "adapter", base)
    uno = make_uno(tmp_path / "uno")
    file = export_uno(tmp_path / "adapter", tmp_path / "joined.safetensors", uno=str(uno))
    assert check_uno(file, settings, "models.backbone.uno") == RANK + 3 * 2
    joined, parts = transformer(base), transformer(base)
    fuse_uno(joined, file)
    fuse_uno(parts, uno / "dit_lora.safetensors")
    wanted = parts.state_dict()
    for name, value in joined.state_dict().items():
        sum_ = wanted[name] + added.get(name, 0)
        torch.testing.assert_close(value, sum_, rtol=1e-4, atol=1e-4)


def test_the_same_adapter_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", base)
    one = export_uno(tmp_path / "adapter", tmp_path / "1.safetensors").read_bytes()
    assert one == export_uno(tmp_path / "adapter", tmp_path / "2.safetensors").read_bytes()


def test_layers_that_uno_has_no_place_for_are_refused(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", base, targets=("to_q", "ff.net.2"))
    with pytest.raises(UserError, match=r"transformer_blocks.0.ff.net.2.*lora.targets"):
        export_uno(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_uno_of_another_base_is_not_joined(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", base)
    uno = uno_tensors()
    name = "double_blocks.1.processor.proj_lora1.up.weight"
    make_uno(tmp_path / "uno", uno | {name: torch.zeros(WIDTH + 1, RANK)})
    with pytest.raises(UserError, match=r"uno: .*another shape"):
        export_uno(tmp_path / "adapter", tmp_path / "out", uno=str(tmp_path / "uno"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((make_uno(tmp_path / "uno") / "dit_lora.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"uno: .*cut.safetensors.*download"):
        export_uno(tmp_path / "adapter", tmp_path / "out", uno=str(cut))
    assert not (tmp_path / "out").exists()


def changed(settings: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> str:
    file = make_uno(folder, tensors) / "dit_lora.safetensors"
    with pytest.raises(UserError) as error:
        check_uno(file, settings, "models.backbone.uno")
    message = str(error.value)
    assert message.startswith("models.backbone.uno: ") and str(file) in message
    return message


def test_files_that_do_not_fit_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    uno = uno_tensors()
    assert check_uno(make_uno(tmp_path) / "dit_lora.safetensors", settings, "f") == RANK
    name = "double_blocks.0.processor.qkv_lora1.down.weight"
    less = {n: t for n, t in uno.items() if n != name}
    assert f"1 tensors missing, first: {name}" in changed(settings, less, tmp_path)
    more = uno | {name.replace("blocks.0", "blocks.7"): uno[name].clone()}
    assert "1 not expected" in changed(settings, more, tmp_path)
    mixed = uno | {name: torch.zeros(RANK + 1, WIDTH)}
    assert "mixes LoRA ranks [4, 5]" in changed(settings, mixed, tmp_path)
    halved = uno | {name.replace("down", "up"): torch.zeros(3 * WIDTH, RANK - 1)}
    assert "of another shape" in changed(settings, halved, tmp_path)
    wide = settings | {"num_attention_heads": 4}
    assert "width 48" in changed(wide, uno, tmp_path)
    peft = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, WIDTH)}
    assert "not in UNO's layout" in changed(settings, peft, tmp_path)


def test_damaged_files_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = make_uno(tmp_path) / "dit_lora.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="download"):
        check_uno(file, settings, "models.backbone.uno")
    pickle = file.rename(tmp_path / "dit_lora.bin")
    with pytest.raises(UserError, match="pickle"):
        check_uno(pickle, settings, "models.backbone.uno")
    with pytest.raises(UserError, match=r"models.backbone.uno: .* holds no dit_lora.safetensors"):
        uno_file(str(tmp_path), "models.backbone.uno")
    with pytest.raises(UserError, match="does not exist"):
        uno_file(str(tmp_path / "absent"), "models.backbone.uno")


def test_a_damaged_adapter_is_not_exported(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    save_file({name: value + 1 for name, value in tensors.items()}, file)
    with pytest.raises(UserError, match="has changed since training"):
        export_uno(tmp_path / "adapter", tmp_path / "out")
