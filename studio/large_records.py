"""Records and pictures of a made-up partition, as the stages would have stored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.candidates import Described, Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.pipeline.store import Store

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """A winner, its loser and the mask, as arrays and as the fields of a sample."""

    win: Image
    lose: Image
    mask: NDArray[np.bool_]


def commit_partition(
    store: Store,
    scene: Scene,
    pairs: Sequence[Pair],
    rejects: Sequence[Reject],
    shown: Sequence[Look],
    keys: Mapping[str, str],
) -> None:
    """Store every stage's artefact; `shown` has a look per pair, `keys` a key per stage."""
    sampled = [
        Sampled(id=one.win_id, scene_id=scene.id, index=at, seed=at, image=one.win_image)
        for at, one in enumerate(pairs)
    ]
    instances = [
        _instance(pair, r, look.mask)
        for pair, look in zip(pairs, shown, strict=True)
        for r in range(len(pair.masks))
    ]
    described = [Described(instance=one, caption=one.class_name) for one in instances]
    disrupted = [_disrupted(one) for one in pairs]
    scored = [_scored(one, won) for one in pairs for won in (True, False)]
    wins, masks, loses = _pictures(pairs, shown)
    put = partial(store.commit, partition=scene.partition, versions={"code": "1"})
    put("compose", keys["compose"], [scene], Scene)
    put("generate", keys["generate"], sampled, Sampled, images=wins)
    put("segment", keys["segment"], instances, Instance, images=masks)
    put("describe", keys["describe"], described, Described)
    put("disrupt", keys["disrupt"], disrupted, Disrupted, images=loses)
    put("score", keys["score"], scored, Scored)
    put("pair", keys["pair"], pairs, Pair, more={"rejects": (Reject, rejects)})


def _pictures(pairs: Sequence[Pair], shown: Sequence[Look]) -> tuple[dict[str, Any], ...]:
    """Members of the artefacts generate, segment and disrupt, as the pairs name them."""
    wins: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    loses: dict[str, Any] = {}
    for pair, look in zip(pairs, shown, strict=True):
        assert pair.prior is not None
        wins[_member(pair.win_image)] = look.win
        masks |= {_member(key): look.mask for key in pair.masks}
        loses[_member(pair.lose_image)] = look.lose
        loses[_member(pair.prior)] = look.mask
    return wins, masks, loses


def _member(key: str) -> str:
    return key.rpartition("/")[2]


def _instance(pair: Pair, r: int, mask: NDArray[np.bool_]) -> Instance:
    ys, xs = np.nonzero(mask)
    return Instance(
        candidate_id=pair.win_id,
        scene_id=pair.scene_id,
        subject_id=pair.subject_ids[r],
        class_name=pair.class_names[r],
        found="one",
        box=(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1),
        mask=pair.masks[r],
        confidence=0.9,
        extra=0,
    )


def _disrupted(pair: Pair) -> Disrupted:
    assert pair.prior is not None
    return Disrupted(
        id=pair.lose_id,
        scene_id=pair.scene_id,
        parent_id=pair.win_id,
        mode="all",
        subject_ids=pair.subject_ids,
        seed=0,
        image=pair.lose_image,
        prior=pair.prior,
    )


def _scored(pair: Pair, won: bool) -> Scored:
    identity = pair.win_identity if won else pair.lose_identity
    num = len(identity)
    return Scored(
        candidate_id=pair.win_id if won else pair.lose_id,
        scene_id=pair.scene_id,
        kind="sampled" if won else "disrupted",
        similarity=tuple(
            tuple(identity[i] if i == j else 0.1 for j in range(num)) for i in range(num)
        ),
        identity=identity,
        leakage_margin=identity,
        clip_i=identity,
        clip_t=pair.win_clip_t,
        background=0.0,
        complete=True,
    )
