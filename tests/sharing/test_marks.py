"""Painted pictures say so: read back by Pillow's own XMP reader and by C2PA's own validator."""

from __future__ import annotations

import io
import json
from pathlib import Path

import c2pa
import numpy as np
import pytest
from certificates import write_certificate
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_png, encode_png, is_marked, mark_png
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.generate.inference import About, Painted, read_about
from focusdpo.flows.settings import resolve
from focusdpo.reports.thumbnails import picture
from focusdpo.sharing.marks import MarkConfig, marked, unsigned

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""As IPTC's vocabulary has it."""


def source_type(data: bytes) -> str | None:
    """What an independent reader finds."""
    with Image.open(io.BytesIO(data)) as image:
        told = image.getxmp()
    if not told:
        return None
    found: str = told["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"]
    return found


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (side, side, 3)).astype(np.uint8)


def test_a_png_keeps_its_pixels_and_says_what_it_is() -> None:
    plain = encode_png(noise(40))
    told = mark_png(plain)
    assert source_type(plain) is None and source_type(told) == SOURCE
    np.testing.assert_array_equal(decode_png(told), noise(40))
    assert mark_png(told) == told and is_marked(told) and not is_marked(plain)
    assert mark_png(plain, wanted=False) == plain


@pytest.mark.parametrize(("side", "kind"), [(64, "image/png"), (400, "image/jpeg")])
def test_painted_pictures_of_a_report_say_so(side: int, kind: str) -> None:
    told, plain = picture(noise(side), "x", painted=True), picture(noise(side), "x")
    assert told.mime == plain.mime == kind
    assert (source_type(told.data), source_type(plain.data)) == (SOURCE, None)


def about() -> About:
    return About(
        version="1", prompt="a cat", class_names=("cat",), references=(), seeds=(1,),
        preset="pocket", settings={}, fingerprint="f",
    )  # fmt: skip


def test_generated_pictures_say_so_unless_told_not_to(tmp_path: Path) -> None:
    image = Image.fromarray(noise(16))
    path = Painted(image, about()).save(tmp_path / "a.png")
    assert source_type(path.read_bytes()) == SOURCE
    assert read_about(path) == about(), "what it tells of its making stays readable"
    bare = Painted(image, about(), MarkConfig(synthetic=False)).save(tmp_path / "b.png")
    assert source_type(bare.read_bytes()) is None


def test_a_certificate_signs_and_the_signature_comes_off_again(tmp_path: Path) -> None:
    config = MarkConfig(**write_certificate(tmp_path))
    painted = Painted(Image.fromarray(noise(64)), about(), config)
    data = painted.save(tmp_path / "a.png").read_bytes()
    told = json.loads(c2pa.Reader("image/png", io.BytesIO(data)).json())
    manifest = told["manifests"][told["active_manifest"]]
    (actions,) = (one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    assert actions["data"]["actions"][0]["digitalSourceType"] == SOURCE
    assert manifest["signature_info"]["common_name"] == "signer"
    passed = {one["code"] for one in told["validation_results"]["activeManifest"]["success"]}
    assert {"claimSignature.validated", "assertion.dataHash.match"} <= passed
    assert source_type(data) == SOURCE and unsigned(data) == painted.png()
    changed = bytearray(data)
    changed[-40] ^= 1
    again = json.loads(c2pa.Reader("image/png", io.BytesIO(bytes(changed))).json())
    assert again["validation_state"] == "Invalid"


def test_a_bad_certificate_is_told(tmp_path: Path) -> None:
    good = write_certificate(tmp_path)
    png = encode_png(noise(16))
    (tmp_path / "text.pem").write_text("hello")
    for change, what in (
        ({"key": str(tmp_path / "absent.pem")}, "marks.key: .*cannot be read"),
        ({"certificate": str(tmp_path / "text.pem")}, "is not PEM"),
        ({"certificate": good["key"]}, "cannot sign"),
    ):
        with pytest.raises(UserError, match=what):
            marked(png, MarkConfig(**(good | change)))
    with pytest.raises(UserError, match="certificate and key go together"):
        resolve(GenerateRun, {"marks": {"certificate": "c.pem"}})
