"""A filter of unsafe pictures in a build: what it refuses is in no pair, its word is kept, and a
build without one is the same to the byte."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_build import execute, prepare
from studio_client import Client
from toy_root import Toy

from focusdpo.data_schemas.candidates import Disrupted, Sampled, Screened
from focusdpo.flows import wiring
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.wiring import Meter, Resident
from focusdpo.pipeline.adapters.checked import Checked
from focusdpo.pipeline.score import SCREENED
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version


class NoBlue:
    """A filter that finds much blue unsafe; it really looks."""

    fingerprint, threshold = "no-blue", 0.5

    def unsafe(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.array([_blue(image) > 0.02 for image in images], np.float32) * 0.9


def _blue(image: NDArray[np.uint8]) -> float:
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return float((blue - red > 80).mean())


class WithFilter(wiring.Parts):
    """The toy's parts and the filter."""

    def __init__(self, family: wiring.Family, adapter: str | None = None) -> None:
        super().__init__(family, adapter)
        part = Checked("safety", NoBlue())
        meter: Meter = self.meter
        self._residents["safety"] = Resident("safety", NoBlue.fingerprint, lambda: part, meter)


def test_refused_pictures_are_in_no_pair(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = resolve(BuildRun, toy.tree())
    plain = execute(prepare(run))
    before, pairs = toy.files("stages"), open_version(str(toy.root)).rows
    assert any("blue" in row.subject_ids for row in pairs)
    monkeypatch.setattr(wiring, "Parts", WithFilter)
    wiring.resident_parts.cache_clear()
    made = execute(prepare(run))
    assert {name for name, count in made.made.items() if count} == {"score", "pair"}
    version, store = open_version(str(toy.root)), Store.open(str(toy.root))
    assert version.rows
    for row in version.rows:
        images = version.read(row).images
        assert max(_blue(np.asarray(images.win)), _blue(np.asarray(images.lose))) <= 0.02
    new = set(store.keys("score")) - {name.rpartition("/")[2][:-4] for name in before}
    screened = [one for key in new for one in store.read("score", key, Screened, SCREENED)]
    pictures = [
        one
        for stage, kind in (("generate", Sampled), ("disrupt", Disrupted))
        for key in store.keys(stage)
        for one in store.read(stage, key, kind)
    ]
    refused = {one.candidate_id for one in screened if one.refused}
    assert {one.candidate_id for one in screened} == {one.id for one in pictures}
    assert refused == {one.id for one in pictures if _blue(store.image(one.image)) > 0.02}
    assert made.rejects["unsafe_picture"] == len(refused) > 0
    page = Client(toy.root).page("/rejects?reason=unsafe_picture").text
    assert "Refused as unsafe: show it" in page and "models.safety.threshold" in page
    partition = next(row.partition for row in pairs if "blue" in row.subject_ids)
    assert "unsafe 0.90" in Client(toy.root).page(f"/scenes/{partition}").text
    # Without the filter: what was there before, and nothing of it was touched.
    monkeypatch.undo()
    toy_again = {name: data for name, data in toy.files("stages").items() if name in before}
    assert toy_again == before and not any(SCREENED.encode() in data for data in before.values())
    assert plain.rejects.get("unsafe_picture", 0) == 0
