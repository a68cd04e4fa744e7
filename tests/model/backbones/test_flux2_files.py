"""FLUX.2 Klein's checkpoint: identified without loading, refused when it is not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_flux2 import save_tiny_flux2, tiny_config

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones import flux2_klein


@pytest.fixture(scope="module")
def flux2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flux2(tmp_path_factory.mktemp("flux2"))


def test_fingerprint_is_known_without_loading(flux2_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(flux2_folder)
    klein = flux2_klein.build(config, "cpu")
    assert flux2_klein.fingerprint(config) == klein.fingerprint
    moved = shutil.copytree(flux2_folder, tmp_path / "moved")
    assert flux2_klein.fingerprint(tiny_config(moved)) == klein.fingerprint
    for change in (
        {"steps": 3},
        {"image_size": (64, 96)},
        {"strength": 0.5},
        {"blocks": ("double.0",)},
    ):
        changed = tiny_config(flux2_folder, **change)
        assert flux2_klein.fingerprint(changed) != klein.fingerprint, change
    file = moved / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["bn.running_mean"] += 1
    save_file(tensors, file)
    assert flux2_klein.fingerprint(tiny_config(moved)) != klein.fingerprint


def test_doctor_names_what_it_found(flux2_folder: Path) -> None:
    rows = {name: check() for name, check in flux2_klein.checks(tiny_config(flux2_folder)).items()}
    assert "distilled" in rows["pipeline"] and "2 + 2" in rows["pipeline"]
    assert all("tensors" in line for name, line in rows.items() if name != "pipeline")
    (field, source, patterns) = flux2_klein.sources(tiny_config(flux2_folder))[0]
    assert (field, source) == ("models.backbone.base", str(flux2_folder))
    assert patterns and "transformer/*" in patterns


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder: Path, tensor: str) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(tensor)
    save_file(tensors, file)


def as_pickle(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def as_shards(folder: Path) -> None:
    part = folder / "text_encoder"
    file = part / "model.safetensors"
    names = dict.fromkeys(load_file(file), "model-00002-of-00002.safetensors")
    file.rename(part / "model-00001-of-00002.safetensors")
    (part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def cut(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_template(folder: Path) -> None:
    (folder / "tokenizer" / "chat_template.jinja").unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"),
        "FluxPipeline, expected Flux2KleinPipeline",
    ),
    "another transformer": (
        lambda f: edit(f / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        "expected Flux2Transformer2DModel",
    ),
    "another size": (
        lambda f: edit(f / "transformer" / "config.json", num_layers=3),
        "tensors missing",
    ),
    "a missing tensor": (lambda f: drop(f, "x_embedder.weight"), "x_embedder.weight"),
    "a pickle": (as_pickle, "a pickle"),
    "a missing shard": (as_shards, "lacks model-00002"),
    "a cut file": (cut, "promises"),
    "another text encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", hidden_size=32),
        "text of width 48",
    ),
    "another autoencoder": (
        lambda f: edit(f / "vae" / "config.json", latent_channels=8),
        "16 channels",
    ),
    "another schedule": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        "DDIMScheduler, expected FlowMatch",
    ),
    "no chat template": (without_template, "chat template"),
    "no tokeniser": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json"),
    "a missing folder": (lambda f: shutil.rmtree(f / "vae"), "right folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_before_it_is_loaded(
    flux2_folder: Path, tmp_path: Path, name: str
) -> None:
    harm, message = BROKEN[name]
    folder = shutil.copytree(flux2_folder, tmp_path / "harmed")
    harm(folder)
    with pytest.raises(UserError, match=message):
        flux2_klein.build(tiny_config(folder), "cpu")
    failed = []
    for check in flux2_klein.checks(tiny_config(folder)).values():
        try:
            check()
        except UserError as error:
            failed.append(str(error))
    assert failed and all("models.backbone" in line for line in failed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (64, 72)}, "image_size 64 x 72.*multiples of 16"),
        ({"reference_size": 40}, "reference_size 40"),
        ({"text_layers": (1, 2)}, "width 48, 2 layers"),
        ({"text_layers": (1, 2, 9)}, "layers 0 to 5"),
        ({"blocks": ("double.2",)}, "no block 'double.2'.*double.0 to double.1"),
        ({"base": "/nowhere/at/all"}, "models.backbone.base: /nowhere/at/all does not exist"),
        ({"base": "nobody/nothing"}, "focusdpo fetch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    flux2_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        flux2_klein.build(tiny_config(flux2_folder, **changes), "cpu")
