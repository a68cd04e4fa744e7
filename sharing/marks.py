"""What a picture that is painted for people says of its origin.

IPTC's DigitalSourceType, trainedAlgorithmicMedia, as XMP: any viewer of metadata shows it. Where
the user has a certificate, Content Credentials (C2PA) besides: `pip install 'focusdpo[c2pa]'`.
What is kept to be trained on or measured carries no mark: its bytes are what its keys say.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import SYNTHETIC, mark_png
from focusdpo.data_schemas.strict import StrictModel

CLAIM = b"caBX"
"""The PNG chunk in which C2PA's manifest lies."""


class MarkConfig(StrictModel):
    """How painted pictures say that they are."""

    synthetic: bool = Field(
        True, description="say that a model painted them: IPTC's DigitalSourceType, as XMP"
    )
    certificate: str | None = Field(
        None, description="PEM file of your certificate and its chain: sign Content Credentials"
    )
    key: str | None = Field(None, description="PEM file of the certificate's private key")
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field(
        "es256", description="what the key signs with"
    )

    @model_validator(mode="after")
    def _go_together(self) -> MarkConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both, or none")
        if self.certificate is not None and not self.synthetic:
            raise ValueError("a certificate signs that a model painted it: synthetic must be true")
        return self


def marked(png: bytes, config: MarkConfig) -> bytes:
    """A PNG with the mark, and signed where there is a certificate. The mark alone is the same
    bytes every time; a signature is not. UserError for a certificate that cannot sign."""
    png = mark_png(png, config.synthetic)
    return png if config.certificate is None else _signed(png, config)


def _signed(png: bytes, config: MarkConfig) -> bytes:
    try:
        import c2pa
    except ImportError as error:
        raise UserError(
            "marks.certificate: signing needs c2pa-python: pip install 'focusdpo[c2pa]'"
        ) from error
    info = c2pa.C2paSignerInfo(
        alg=config.algorithm,
        sign_cert=_pem(config.certificate, "certificate"),
        private_key=_pem(config.key, "key"),
        ta_url=None,
    )
    sink = io.BytesIO()
    try:
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(_claim()) as builder:
            builder.sign(signer, "image/png", io.BytesIO(png), sink)
    except c2pa.C2paError as error:
        raise UserError(
            f"marks.certificate: {config.certificate} cannot sign ({error}); C2PA wants a chain "
            "that ends in its authority, a key that fits it, and marks.algorithm to fit the key"
        ) from error
    return sink.getvalue()


def _claim() -> dict[str, Any]:
    created = {"action": "c2pa.created", "digitalSourceType": SYNTHETIC}
    return {
        "claim_generator_info": [{"name": "focusdpo", "version": metadata.version("focusdpo")}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
    }


def _pem(file: str | None, field: str) -> bytes:
    try:
        data = Path(str(file)).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"marks.{field}: {file} cannot be read ({error.strerror})") from error
    if b"-----BEGIN" not in data:
        raise UserError(f"marks.{field}: {file} is not PEM; it begins with -----BEGIN")
    return data


def unsigned(png: bytes) -> bytes:
    """A PNG as it was before it was signed."""
    return png[:8] + b"".join(chunk for kind, chunk in _chunks(png) if kind != CLAIM)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk of a PNG that was read before."""
    at = 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield png[at + 4 : at + 8], png[at:end]
        at = end
