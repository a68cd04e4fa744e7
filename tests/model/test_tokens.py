"""Packing, masks on tokens, position ids."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from focusdpo.model.tokens import image_ids, mask_to_tokens, pack, unpack

sides = st.integers(1, 5)


@given(batch=st.integers(1, 3), channels=st.integers(1, 4), rows=sides, cols=sides)
def test_unpack_inverts_pack(batch: int, channels: int, rows: int, cols: int) -> None:
    latents = torch.randn(batch, channels, 2 * rows, 2 * cols)
    tokens = pack(latents)
    assert tokens.shape == (batch, rows * cols, 4 * channels)
    assert torch.equal(unpack(tokens, (rows, cols)), latents)


def test_pack_is_the_layout_of_flux() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 3, 8, 6)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 3, 8, 6))


def test_a_token_is_masked_from_half_its_pixels_on() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[0, :8, :4] = 1
    mask[0, 8:, 8:11] = 1
    assert mask_to_tokens(mask, (2, 2)).tolist() == [[1, 0, 0, 0]]
    assert mask_to_tokens(mask, (2, 2), 0.0).tolist() == [[1, 0, 0, 1]]


@given(rows=sides, cols=sides, others=st.lists(st.tuples(sides, sides), max_size=3))
def test_references_lie_along_the_diagonal(
    rows: int, cols: int, others: list[tuple[int, int]]
) -> None:
    ids = image_ids((rows, cols), tuple(others))
    grids = [(rows, cols), *others]
    parts = ids.split([h * w for h, w in grids])
    assert (ids[:, 0] == 0).all()
    for index, (part, (height, width)) in enumerate(zip(parts, grids, strict=True)):
        start = [sum(g[0] for g in grids[:index]), sum(g[1] for g in grids[:index])]
        assert part[0, 1:].tolist() == start
        assert part[-1, 1:].tolist() == [start[0] + height - 1, start[1] + width - 1]
        # Nothing before shares a row or a column with it.
        assert index == 0 or (torch.cat(parts[:index])[:, 1:].amax(0) < part[:, 1:].amin(0)).all()
