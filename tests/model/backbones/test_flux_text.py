"""Prompts as FluxPipeline encodes them, once each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from tiny_flux import make_flux

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import tell_prompt
from focusdpo.model.backbones.flux_uno_backbone import FluxPrompts

PROMPTS = ["a cat and a dog on grass", "a red car", "", "zebra"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_flux(tmp_path_factory.mktemp("flux"))
    return FluxPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


class Counted(torch.nn.Module):
    """An encoder that counts its calls."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder, self.calls = encoder, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.encoder(*args, **kwargs)


def encoder(pipeline: Any, **options: Any) -> tuple[FluxPrompts, Counted]:
    t5 = Counted(pipeline.text_encoder_2)
    prompts = FluxPrompts(
        pipeline.text_encoder,
        pipeline.tokenizer,
        t5,
        pipeline.tokenizer_2,
        device="cpu",
        **{"max_tokens": 12} | options,
    )
    return prompts, t5


@pytest.mark.parametrize("length", [12, 512])
@torch.no_grad()
def test_embeddings_are_the_pipelines(pipeline: Any, length: int) -> None:
    ours = encoder(pipeline, max_tokens=length)[0](PROMPTS)
    embeds, pooled, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=length)
    torch.testing.assert_close(ours.embeds_BTD, embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.pooled_BD, pooled, rtol=1e-4, atol=1e-5)
    assert ours.embeds_BTD.shape == (4, length, 16)
    assert not torch.allclose(embeds[0], embeds[1], atol=1e-2)
    alone = pipeline.encode_prompt(PROMPTS[1], max_sequence_length=length)
    assert torch.equal(ours.embeds_BTD[1:2], alone[0]) and torch.equal(
        ours.pooled_BD[1:2], alone[1]
    )


def test_no_prompt_is_encoded_twice_and_none_depends_on_its_neighbours(pipeline: Any) -> None:
    prompts, t5 = encoder(pipeline)
    both = prompts([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert t5.calls == 2
    again = prompts(PROMPTS[:2])
    assert t5.calls == 2
    alone = encoder(pipeline)[0]([PROMPTS[1]])
    assert torch.equal(both.embeds_BTD[:2], again.embeds_BTD)
    assert torch.equal(both.embeds_BTD[1:2], alone.embeds_BTD)
    assert torch.equal(both.pooled_BD[0], both.pooled_BD[2])
    assert not again.embeds_BTD.requires_grad


def test_memory_is_bounded(pipeline: Any) -> None:
    """512 tokens of width 16 in float32 are 32 KiB: 1 MiB holds 31 prompts and their pooled."""
    prompts, t5 = encoder(pipeline, max_tokens=512, cache_mib=1)
    many = [f"a cat and {'a ' * i}dog" for i in range(40)]
    prompts(many)
    prompts(many[-31:])
    assert t5.calls == 40
    prompts(many[:1])
    assert t5.calls == 41
    prompts, t5 = encoder(pipeline, cache_mib=0)
    prompts(PROMPTS[:1])
    prompts(PROMPTS[:1])
    assert t5.calls == 2


def test_a_folder_keeps_embeddings_from_run_to_run(pipeline: Any, tmp_path: Path) -> None:
    options = {"folder": tmp_path / "cache", "fingerprint": "one"}
    first = encoder(pipeline, **options)[0](PROMPTS)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    prompts, t5 = encoder(pipeline, **options)
    again = prompts(PROMPTS)
    assert t5.calls == 0
    assert torch.equal(first.embeds_BTD, again.embeds_BTD)
    assert torch.equal(first.pooled_BD, again.pooled_BD)
    prompts, t5 = encoder(pipeline, folder=tmp_path / "cache", fingerprint="two")
    prompts(PROMPTS[:1])
    assert t5.calls == 1
    for file in (tmp_path / "cache").glob("*"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"damaged prompt embedding.*remove"):
        encoder(pipeline, **options)[0](PROMPTS)


def test_a_prompt_too_long_is_told(pipeline: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder(pipeline)[0](["a cat " * 10])
    assert "T5 reads the first 12 of 21 tokens: a cat" in caplog.text


def test_what_is_not_read_is_told_once_and_after_a_cache_too(
    pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"folder": tmp_path / "cache", "fingerprint": "one"}
    encoder(pipeline, **options)[0](["a dog " * 10, "a dog \N{SNOWMAN}"])
    tell_prompt.cache_clear()  # as another process
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            encoder(pipeline, **options)[0](["a dog " * 10, "a dog \N{SNOWMAN}"])
    assert sorted(message.partition(": ")[0] for message in caplog.messages) == [
        "T5 reads the first 12 of 21 tokens",
        "T5 was not taught '\N{SNOWMAN}'",
    ]
