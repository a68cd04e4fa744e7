"""Pictures that are nearly one, where people look: subjects, winners, what validation left out."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_root import small_version
from studio_client import Client

from focusdpo.data_schemas.tables import to_parquet
from focusdpo.flows.build.outcome import Brought
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.ingest import IngestConfig, put_subject
from focusdpo.pipeline.subjects.near_duplicates import HASHES, WinnerHash, picture_hash
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import sealed
from focusdpo.store.manifests import lineage_columns
from focusdpo.store.versions import publish
from focusdpo.studio.pages import subjects_page

PICTURE = re.compile(r'<img src="(/[^"]+)"')


def scene(seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC))


def brighter(image: np.ndarray) -> np.ndarray:
    return (image.astype(int) + 6).clip(0, 255).astype(np.uint8)


def test_references_of_a_subject_and_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole = Store.open(tmp_path / "data"), np.ones((64, 64), np.bool_)
    pictures = {
        "twice": [scene(1), brighter(scene(1))],
        "other": [scene(2), scene(3)],
        "same": [brighter(scene(2)), scene(4)],
    }
    subjects = [
        put_subject(store, id=name, class_name="cat", pictures=[(one, whole) for one in shown])
        for name, shown in pictures.items()
    ]
    registry.add(store, subjects, IngestConfig())
    client = Client(tmp_path / "data")
    page = client.page("/subjects").text
    _, alike = page.split('id="alike"')
    within, across = alike.split("Two subjects share a picture")
    assert set(re.findall(r'href="/subjects/(\w+)"', within)) == {"twice"}
    assert set(re.findall(r'href="/subjects/(\w+)"', across)) == {"other", "same"}
    assert "views from other sides" in within and "bring all its pictures under one name" in across
    for address in PICTURE.findall(alike):
        assert client.http.get(address.replace("&amp;", "&")).status_code == 200
    # A page does not hash thousands unasked, and what is known is not hashed again.
    monkeypatch.setattr(subjects_page, "MOST_HASHED", 2)
    assert 'id="alike"' in client.page("/subjects").text
    anew = Client(tmp_path / "data")
    assert "6 are new here" in anew.page("/subjects").text
    assert 'id="alike"' in anew.page("/subjects?alike=all").text


def test_winners_and_what_was_kept_out_of_validation(tmp_path: Path) -> None:
    version = small_version(tmp_path / "root", prompt="an owl on sand")
    store, rows = version.store, {row.pair_id: row for row in version.rows}
    table = lineage_columns(store, version.id, ["stage", "key"]).to_pydict()
    first, second, *_ = (row for row in version.rows if row.split == "train")
    out = next(row for row in version.rows if row not in (first, second))
    kept = [row for row in version.rows if row != out]
    published = publish(
        store,
        kept,
        subjects=version.subjects(),
        artefacts=list(zip(table["stage"], table["key"], strict=True)),
        config={},
        rejects={"near_duplicate": 1},
        seeds={},
    )
    own = picture_hash(np.asarray(version.read(out).images.win))
    values = {first.pair_id: own ^ 1, second.pair_id: own ^ 3}
    hashes = [
        WinnerHash(digest=rows[name].digest, hash=f"{value:016x}") for name, value in values.items()
    ]
    store.files.write(HASHES, to_parquet(hashes, WinnerHash))
    client = Client(tmp_path / "root")
    page = client.page("/alike").text
    kept_out, alike = page.split("<h2>Of two scenes</h2>")
    assert f"{len(kept) - 2} of {len(kept)} winners have no hash" in kept_out
    assert "an owl on sand" in kept_out and f"/pairs/{first.pair_id}" in kept_out
    assert f"scene-{out.scene_id}" in kept_out
    assert set(re.findall(r'href="/pairs/(\w+)"', alike)) == set(values)
    for address in PICTURE.findall(page):
        assert client.http.get(address.replace("&amp;", "&")).status_code == 200
    assert (
        'href="/alike"' in client.page("/").text and 'href="/alike"' in client.page("/pairs").text
    )
    brought = Brought(version=published.id, parent=None, pairs=1, rejects={}, partitions=1,
                      stage_seconds={}, notes=["subjects 's0' and 's1' may be one"])  # fmt: skip
    store.files.write(f"versions/{published.id}/build.json", sealed(asdict(brought)))
    assert "may be one" in client.page("/subjects").text


def test_a_version_without_hashes_says_so(tmp_path: Path) -> None:
    small_version(tmp_path / "root")
    page = Client(tmp_path / "root").page("/alike").text
    assert "5 of 5 winners have no hash" in page and "No pair was kept out" in page
