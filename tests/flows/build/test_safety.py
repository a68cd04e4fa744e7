"""A filter of unsafe pictures in a build: what it refuses is in no pair, its word is kept, and a
build without one is the same to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_build import execute, prepare
from studio_client import Client
from tiny_encoders import pictures
from tiny_filter import save_filter_folder
from toy_root import Toy

from focusdpo.data_schemas.candidates import Disrupted, Sampled, Screened
from focusdpo.flows import wiring
from focusdpo.flows.config import BuildRun
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.settings import merge, parse_overrides, preset_names, resolve
from focusdpo.flows.wiring import Meter, Resident
from focusdpo.pipeline.adapters.checked import Checked
from focusdpo.pipeline.score import SCREENED
from focusdpo.store.artefacts import Store
from focusdpo.store.provenance import licence_of
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


PRESETS = [name for name in preset_names() if name.partition("-")[0] in ("flux", "flux2", "sdxl")]
OUTSIDE = """
from typing import Literal
import numpy as np
from pydantic import BaseModel

class Brightness(BaseModel, frozen=True, extra="forbid"):
    kind: Literal["brightness:Brightness"] = "brightness:Brightness"
    threshold: float = 0.5

def checks(config): return {"brightness": lambda: "there"}
def sources(config): return []
def fingerprint(config): return f"brightness-{config.threshold}"

class Filter:
    def __init__(self, config):
        self.threshold, self.fingerprint = config.threshold, fingerprint(config)
    def unsafe(self, images):
        return np.array([image.mean() / 255 for image in images])

def build(config, device): return Filter(config)
"""
BACKBONE = {"kind": "flux2-klein", "base": "nobody/nothing"}


def test_the_filter_that_is_named_is_built_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registered one, and one from a package outside."""
    (tmp_path / "brightness.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    registered = {"source": str(save_filter_folder(tmp_path / "filter"))}
    for section in (registered, {"kind": "brightness:Brightness", "threshold": 0.9}):
        models = ModelsConfig.model_validate(
            {"device": "cpu", "backbone": BACKBONE, "safety": section}
        )
        part = wiring.build_part(models, "safety")
        assert isinstance(part, Checked) and part.threshold == section.get("threshold", 0.5)
        assert part.fingerprint == wiring.fingerprint_of(models, "safety")
        assert part.unsafe(pictures(2)).shape == (2,)
        wiring.free_parts(models, ())
    with pytest.raises(ValueError, match="no safety 'image-clasifier'; did you mean"):
        ModelsConfig.model_validate({"backbone": BACKBONE, "safety": {"kind": "image-clasifier"}})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_for_photographs_have_one_and_can_do_without(preset: str) -> None:
    given = {"root": "data", "preset": preset}
    models = resolve(BuildRun, given).models
    assert models is not None and models.safety.source == "Falconsai/nsfw_image_detection"
    assert "Apache-2.0" in licence_of(models, "safety")
    without = resolve(BuildRun, merge(given, parse_overrides(["models.safety=null"]))).models
    assert without is not None and without.safety is None
    stricter = resolve(BuildRun, merge(given, parse_overrides(["models.safety.threshold=0.2"])))
    assert stricter.models is not None and stricter.models.safety.threshold == 0.2
    pocket = resolve(BuildRun, {"root": "data", "preset": "pocket"})
    assert not wiring.Parts(pocket.family).has("safety")


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
    shown = [
        one
        for stage, kind in (("generate", Sampled), ("disrupt", Disrupted))
        for key in store.keys(stage)
        for one in store.read(stage, key, kind)
    ]
    refused = {one.candidate_id for one in screened if one.refused}
    assert {one.candidate_id for one in screened} == {one.id for one in shown}
    assert refused == {one.id for one in shown if _blue(store.image(one.image)) > 0.02}
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
