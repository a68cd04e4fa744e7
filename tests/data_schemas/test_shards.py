"""A sample keeps everything on its way through a shard, and damage is named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from pair_samples import make_sample

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import ShardSample, decode, encode, field_names, pair_digest


def encoded(sample: ShardSample) -> dict[str, bytes]:
    return encode(sample.pair, sample.images, sample.split)


@pytest.mark.parametrize("source", ["disrupt", "rank"])
@pytest.mark.parametrize("num_subjects", [1, 2, 3])
def test_round_trip_keeps_everything(num_subjects: int, source: str) -> None:
    sample = make_sample(7, num_subjects, source)
    back = decode(encoded(sample))
    assert back.pair == sample.pair
    assert back.split == sample.split
    for field in dataclasses.fields(sample.images):
        kept, given = getattr(back.images, field.name), getattr(sample.images, field.name)
        if field.name in ("complexity", "lose_complexity"):
            assert kept.dtype == np.float32
            np.testing.assert_allclose(kept, given, atol=0.5 / 255 + 1e-6)
        else:
            np.testing.assert_array_equal(kept, given)
            assert np.asarray(kept).dtype == np.asarray(given).dtype


def test_bytes_repeat_and_fields_depend_on_the_number_of_subjects_alone() -> None:
    disrupt, rank = encoded(make_sample(0, 2)), encoded(make_sample(0, 2, "rank"))
    assert encoded(make_sample(0, 2)) == disrupt
    assert list(disrupt) == list(rank) == field_names(2)
    assert len(field_names(3)) == 6 + 3 * 3


def test_json_has_the_same_types_for_both_sources() -> None:
    """Loaders infer a column from the first samples; null beside a string breaks them."""
    for source in ("disrupt", "rank"):
        pair = json.loads(encoded(make_sample(0, 2, source))["json"])["pair"]
        assert isinstance(pair["prior"], str)


def test_a_webdataset_sample_is_taken_as_it_is() -> None:
    sample = make_sample(0, 1)
    extra = {"__key__": sample.pair.id, "__url__": "x.tar", **encoded(sample)}
    assert decode(extra).pair == sample.pair


@pytest.mark.parametrize("name", field_names(2))
def test_a_missing_or_damaged_field_is_named(name: str) -> None:
    fields = encoded(make_sample(0, 2))
    with pytest.raises(UserError, match=f"(?s)x.tar.*{name}"):
        decode({k: v for k, v in fields.items() if k != name}, "x.tar")
    with pytest.raises(UserError, match=f"(?s)x.tar.*{name}"):
        decode({**fields, name: fields[name][:40]}, "x.tar")


def test_another_schema_version_is_refused() -> None:
    fields = encoded(make_sample(0, 1))
    header = json.loads(fields["json"])
    header["schema_version"] = 99
    with pytest.raises(UserError, match="schema version 99, this focusdpo reads 2"):
        decode({**fields, "json": json.dumps(header).encode()})


def test_an_ill_typed_field_is_named() -> None:
    fields = encoded(make_sample(0, 1))
    header = json.loads(fields["json"])
    header["pair"]["margin"] = "much"
    with pytest.raises(UserError, match="pair.margin"):
        decode({**fields, "json": json.dumps(header).encode()})


def test_sizes_that_disagree_are_refused() -> None:
    sample = make_sample(0, 2)
    for wrong in (
        {"lose": sample.images.lose[:32]},
        {"masks": sample.images.masks[:1]},
        {"complexity": sample.images.complexity[:, :8]},
        {"lose_complexity": sample.images.lose_complexity[:8]},
        {"reference_masks": (sample.images.reference_masks[0][:9],) * 2},
    ):
        with pytest.raises(ValueError, match=sample.pair.id):
            encode(sample.pair, dataclasses.replace(sample.images, **wrong), "train")


def test_the_digest_sees_every_field_of_a_pair() -> None:
    pair = make_sample(0, 2).pair
    others = [
        dataclasses.replace(pair, margin=0.5),
        dataclasses.replace(pair, win_image="generate/other/w.png"),
        dataclasses.replace(pair, prior=None),
    ]
    assert len({pair_digest(one) for one in [pair, *others]}) == 4
    assert pair_digest(dataclasses.replace(pair)) == pair_digest(pair)
