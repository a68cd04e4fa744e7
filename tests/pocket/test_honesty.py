"""The judge is independent of the parts that choose pairs: from their cards, weights and draws.

Proven: no tensor, architecture, batch seed or individual in common, and nobody of another split in
any training. Not claimed: another world. All are taught on the same renderer, shapes, backgrounds
and cells.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket import loading
from focusdpo.pocket.lineage import Lineage, Stream, lineage_path, read_lineage
from focusdpo.pocket.recipes.drawn import Drawn, drawn
from focusdpo.pocket.weightfiles import WEIGHTS, load_tensors

SCORERS = ("segmenter", "identity", "clip")
MODELS = ("judge", *SCORERS)
BATCHES = 20
LARGE = 256
"""Elements from which on a chance correlation of two tensors is small."""


@pytest.fixture(scope="module")
def cards() -> dict[str, Lineage]:
    return {name: read_lineage(name, WEIGHTS) for name in MODELS}


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Tensor]]:
    return {name: load_tensors(name, WEIGHTS) for name in MODELS}


@pytest.fixture(scope="module")
def draws(cards: dict[str, Lineage]) -> dict[str, Drawn]:
    """Of the first batches of each stage; all of them take half an hour."""
    return {
        name: drawn(tuple(first_batches(stream) for stream in card.streams))
        for name, card in cards.items()
    }


def first_batches(stream: Stream) -> Stream:
    end = min(stream.end_batch_seed, stream.first_batch_seed + BATCHES)
    return stream.model_copy(update={"end_batch_seed": end})


def test_a_missing_card_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"judge\.card\.json"):
        read_lineage("judge", tmp_path)
    lineage_path("judge", tmp_path).write_text("{}")
    with pytest.raises(UserError, match="install the package again"):
        read_lineage("judge", tmp_path)


def test_seeds_are_apart(cards: dict[str, Lineage]) -> None:
    assert len({card.init_seed for card in cards.values()}) == len(MODELS)
    streams = [stream for card in cards.values() for stream in card.streams]
    assert len({stream.seed for stream in streams}) == len(streams)
    spans = sorted((one.first_batch_seed, one.end_batch_seed) for one in streams)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.slow
def test_only_the_training_split_was_seen(
    cards: dict[str, Lineage], draws: dict[str, Drawn]
) -> None:
    for name in MODELS:
        assert {stream.identities_split for stream in cards[name].streams} == {"train"}
        assert {one.split for one in draws[name].individuals} == {"train"}
    assert {stream.classes_split for stream in cards["judge"].streams} == {"all"}
    taught = {stream.classes_split for name in SCORERS for stream in cards[name].streams}
    assert taught == {"train"}


def test_no_individual_is_shared(draws: dict[str, Drawn]) -> None:
    """An individual is exact in hue, saturation and lightness. That no batch seed is shared
    (test_seeds_are_apart) holds it for all batches."""
    judge = draws["judge"]
    assert len(judge.individuals) > 1000
    assert {len(judge.individuals & draws[name].individuals) for name in SCORERS} == {0}
    assert {len(judge.scene_seeds & draws[name].scene_seeds) for name in SCORERS} == {0}


def test_architectures_are_apart(cards: dict[str, Lineage]) -> None:
    """Named in the cards, and no class of module from outside torch in both."""
    for name in SCORERS:
        assert set(cards["judge"].architecture).isdisjoint(cards[name].architecture)
        assert foreign_modules("judge").isdisjoint(foreign_modules(name))
    for name in MODELS:
        libraries = {kind.__module__.partition(".")[0] for kind in foreign_modules(name)}
        told = " ".join(cards[name].architecture)
        assert all(library in told for library in libraries - {"focusdpo"}), libraries


def foreign_modules(name: str) -> set[type[nn.Module]]:
    modules = {type(module) for module in loading.build(name).net.modules()}
    return {kind for kind in modules if not kind.__module__.startswith("torch.")}


def test_weights_are_apart(
    cards: dict[str, Lineage], tensors: dict[str, dict[str, Tensor]]
) -> None:
    """No equal tensor, and none that looks like a copy trained on; the CLIP's tower, which did
    start from the segmenter's network, shows that such a copy would be seen."""
    assert len({card.weights for card in cards.values()}) == len(MODELS)
    assert cards["judge"].starts_from == "" and cards["clip"].starts_from == "segmenter"
    for name in SCORERS:
        equal = [
            (mine, theirs)
            for mine, a in tensors["judge"].items()
            for theirs, b in tensors[name].items()
            if a.numel() > 1 and a.shape == b.shape and torch.equal(a, b)
        ]
        assert equal == []
        assert likeness(tensors["judge"], tensors[name]) < 0.3
    assert likeness(tensors["clip"], tensors["segmenter"]) > 0.9


def likeness(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest correlation of any two tensors of equally many elements."""
    return max(
        float((one @ other).abs())
        for size in {value.numel() for value in first.values() if value.numel() >= LARGE}
        for one in directions(first, size)
        for other in directions(second, size)
    )


def directions(state: dict[str, Tensor], size: int) -> list[Tensor]:
    """Tensors of `size` elements, flat, about their mean, of unit length."""
    flat = [value.flatten() for value in state.values() if value.numel() == size]
    return [
        nn.functional.normalize(value - value.mean(), dim=0)
        for value in flat
        if value.is_floating_point()
    ]
