"""The generator as a part: uint8 in and out. Random weights; the real architecture."""

import numpy as np
import pytest
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux import SamplingConfig
from focusdpo.pipeline.parts import ReferenceImage
from focusdpo.pocket.models.autoencoder import build_autoencoder
from focusdpo.pocket.models.generator import (
    REFERENCE_SIZE,
    REFERENCE_SUBJECT,
    as_backbone,
    build_generator,
    frame_references,
)
from focusdpo.pocket.models.pocket_painter import PocketGenerator
from focusdpo.pocket.world.identities import class_names, sample_identities
from focusdpo.pocket.world.world import render_references

PROMPTS = ["a cat and a key on sand", "a duck and a bell on wood"]


@pytest.fixture(scope="module")
def generator() -> PocketGenerator:
    torch.manual_seed(0)
    autoencoder = build_autoencoder()
    autoencoder.fit([torch.rand(8, 3, 96, 96) * 2 - 1])
    model = build_generator()
    with torch.no_grad():  # its output layer starts at zero, and nothing would depend on anything
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return PocketGenerator(as_backbone(model, autoencoder.eval(), SamplingConfig(steps=3)))


def test_a_prompt_that_is_not_read_as_it_stands_is_told(
    generator: PocketGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = generator.backbone
    with caplog.at_level("WARNING"):
        backbone.encode_prompts(["a cat on grass, and a duck", "an airplane on sand"])
        assert not caplog.messages
        for _ in range(2):
            backbone.encode_prompts(["seven ducks, a cat", f"a cat{' and a cat' * 6}"])
    assert caplog.messages == [
        "the generator was not taught 'seven': seven ducks, a cat",
        f"the generator reads the first 12 of 13 tokens: a cat{' and a cat' * 6}",
    ]
    with_article = backbone.encode_prompts(["an airplane on sand", "a airplane on sand"])
    assert torch.equal(*with_article.embeds_BTD)


@pytest.fixture(scope="module")
def references() -> list[list[ReferenceImage]]:
    people = sample_identities("train", class_names(), 4, 0)
    images, masks = render_references(people, range(4))
    pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    made = [ReferenceImage(p, m) for p, m in zip(pictures, masks.numpy(), strict=True)]
    return [made[:2], made[2:]]


def test_images_do_not_depend_on_the_batch(
    generator: PocketGenerator, references: list[list[ReferenceImage]]
) -> None:
    both = generator.generate(PROMPTS, references, [1, 2])
    alone = generator.generate(PROMPTS[1:], references[1:], [2])
    assert [image.shape for image in both] == [(96, 96, 3)] * 2 and both[0].dtype == np.uint8
    assert np.abs(both[1].astype(int) - alone[0].astype(int)).max() <= 1
    other = generator.generate(PROMPTS[1:], references[1:], [3])
    assert np.abs(other[0].astype(int) - alone[0].astype(int)).mean() > 1


def test_references_may_have_any_size(
    generator: PocketGenerator, references: list[list[ReferenceImage]]
) -> None:
    def grown(one: ReferenceImage) -> ReferenceImage:
        image = one.image.repeat(3, 0).repeat(3, 1)
        mask = one.mask.repeat(3, 0).repeat(3, 1)
        # Wide, with something that the mask leaves out.
        wide = np.full((288, 400, 3), 40, np.uint8)
        wide[:, 54:342] = image
        around = np.zeros((288, 400), bool)
        around[:, 54:342] = mask
        return ReferenceImage(wide, around)

    wide = generator.generate(PROMPTS, [[grown(r) for r in row] for row in references], [1, 2])
    assert [image.shape for image in wide] == [(96, 96, 3)] * 2


def test_repaint_without_a_mask_gives_the_image_back(generator: PocketGenerator) -> None:
    image = generator.generate(PROMPTS[:1], [[]], [4])[0]
    mask = np.zeros((96, 96), bool)
    kept = generator.inpaint([image], [mask], PROMPTS[:1], [[]], [5])[0]
    rebuilt = generator.backbone.decode(
        generator.backbone.encode_images(
            torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        )
    )
    expected = ((rebuilt[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(kept - expected).max() <= 1
    mask[16:48, 16:48] = True
    painted = generator.inpaint([image], [mask], PROMPTS[:1], [[]], [5])[0].astype(int)
    assert np.abs(painted - kept)[20:44, 20:44].mean() > 1


def test_wrong_calls_are_refused(
    generator: PocketGenerator, references: list[list[ReferenceImage]]
) -> None:
    with pytest.raises(UserError, match="equally many"):
        generator.generate(PROMPTS, [references[0], references[1][:1]], [1, 2])
    with pytest.raises(UserError, match="2 prompts"):
        generator.generate(PROMPTS, references, [1])
    small = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="32 x 32"):
        generator.inpaint([small], [np.ones((32, 32), bool)], PROMPTS[:1], [[]], [1])


def test_fingerprint_is_stable(generator: PocketGenerator) -> None:
    assert generator.fingerprint == generator.backbone.fingerprint
    assert PocketGenerator(generator.backbone, "known").fingerprint == "known"


def test_a_framed_subject_is_centred_at_one_size_wherever_it_stood() -> None:
    image, mask = render_references(sample_identities("train", ["house"], 1, 0), [5])
    bare = torch.where(mask[:, None], image, torch.ones(())) * 2 - 1
    moved, there = bare.roll((5, -4), (2, 3)), mask.roll((5, -4), (1, 2))
    large = torch.nn.functional.interpolate(bare, scale_factor=2)
    one, inside = frame_references(bare, mask.float())
    assert one.shape == (1, 3, REFERENCE_SIZE, REFERENCE_SIZE)
    spans = [torch.nonzero(inside[0].any(axis)).flatten() for axis in (0, 1)]
    low, high = [int(s[0]) for s in spans], [int(s[-1]) + 1 for s in spans]
    longest = max(b - a for a, b in zip(low, high, strict=True))
    assert abs(longest - REFERENCE_SUBJECT) <= 1
    assert all(abs(a + b - REFERENCE_SIZE) <= 2 for a, b in zip(low, high, strict=True))
    assert (one[0][:, inside[0] == 0] > 0.5).float().mean() > 0.95
    torch.testing.assert_close(frame_references(moved, there.float())[0], one)
    doubled, _ = frame_references(
        large, mask.float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    assert (doubled - one).abs().mean() < 0.02
