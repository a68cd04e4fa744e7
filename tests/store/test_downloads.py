"""What `fetch` downloads, how much it is, and that it stays what it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from download_hub import NAME, download_hub
from huggingface_hub.utils import filter_repo_objects

from focusdpo.model.backbones import sdxl_ip_adapter
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.pipeline.adapters import inpainters
from focusdpo.pipeline.adapters.inpainters import SdxlInpaintConfig

SDXL_FILES = [
    "model_index.json",
    *(
        f"{folder}/{stem}{variant}.safetensors"
        for folder, stem in (
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
            ("text_encoder_2", "model"),
        )
        for variant in ("", ".fp16")
    ),
    "unet/config.json",
    "unet/openvino_model.bin",
    "unet/model.onnx_data",
    "sd_xl_base_1.0.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
]
"""As in stabilityai/stable-diffusion-xl-base-1.0."""
SHARDS = [
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_two_variants_one_is_downloaded(variant: str | None) -> None:
    for sources in (
        sdxl_ip_adapter.sources(SdxlIpAdapterConfig(variant=variant)),
        inpainters.sources(SdxlInpaintConfig(variant=variant)),
    ):
        patterns = sources[0][2]
        taken = list(filter_repo_objects(SDXL_FILES + SHARDS, allow_patterns=patterns))
        weights = [name for name in taken if name.endswith(".safetensors")]
        whole = [name for name in weights if "-of-" not in name]
        assert len(whole) == 4, whole
        assert all((".fp16" in name) == (variant == "fp16") for name in weights), weights
        assert len(weights) == 4 + (1 if variant is None else 2)
        assert sum("index" in name for name in taken) == 1 + 1  # and model_index.json


CODE = """
import sys
from focusdpo.store.checkpoints import fetch, locate, size_of
what, patterns = sys.argv[1], ["*.json", "*.safetensors"]
if what == "size":
    print(size_of("someone/model", "models.x", patterns))
elif what == "where":
    print((locate("someone/model", "models.x") / "w.safetensors").read_text())
else:
    print(fetch("someone/model", "models.x", patterns, update=what == "update"))
"""


def test_what_was_fetched_first_stays_until_an_update(tmp_path: Path) -> None:
    with download_hub() as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path), "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        }  # fmt: skip

        def run(what: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", CODE, what],
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        first = hub.upload({"c.json": b"{}", "w.safetensors": b"first", "w.bin": b"x" * 99})
        assert run("size") == "Download(total=7, missing=7)"
        assert run("fetch").endswith(first)
        assert "w.bin" not in hub.sent
        assert run("size") == "Download(total=7, missing=0)"
        second = hub.upload({"c.json": b"{}", "w.safetensors": b"second"})
        assert run("fetch").endswith(first)
        # Another program moves the hub's own ref, as any download without a revision does.
        folder = tmp_path / f"models--{NAME.replace('/', '--')}"
        (folder / "refs" / "main").write_text(second)
        assert run("where") == "first"
        assert run("update").endswith(second)
        assert run("where") == "second"
