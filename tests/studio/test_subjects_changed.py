"""Subjects from the browser: changed, deleted, and several at once from a zip or a folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studio_client import Client

from focusdpo.data_schemas.subjects import Origin
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.ingest import IngestConfig, origin_of, put_subject
from focusdpo.pocket.world.identities import class_names
from focusdpo.pocket.world.world_subjects import draw
from focusdpo.store.artefacts import Store


@pytest.fixture
def studio(tmp_path: Path) -> Client:
    """Two registered subjects: dinosaur-like `one` and `two`."""
    store = Store.open(tmp_path / "data")
    drawn = draw("train", class_names("train"), 2, 2, 0)
    subjects = [
        put_subject(store, id=name, class_name=one.identity.class_name, licence="MIT",
                    pictures=[(picture.image, picture.mask) for picture in one.pictures])
        for name, one in zip(("one", "two"), drawn, strict=True)
    ]  # fmt: skip
    registry.add(store, subjects, IngestConfig(size=96))
    return Client(tmp_path / "data")


def entry(studio: Client, name: str) -> registry.Entry:
    known = registry.read_registry(Store.open(studio.root))
    assert known is not None
    return known.entries[name]


def pixels(studio: Client, name: str) -> list[bytes]:
    store, subject = Store.open(studio.root), entry(studio, name).subject()
    return [
        store.image(one.image).tobytes() + store.mask(one.mask).tobytes()
        for one in subject.references
    ]


def test_class_and_licence_change_and_the_pictures_stay(studio: Client) -> None:
    before, shown = entry(studio, "one"), pixels(studio, "one")
    licence = {"licence_choice": "CC-BY-4.0", "licence": ""}
    answer = studio.form("/subjects/one/describe", class_name=before.class_name, **licence)
    assert (answer.status_code, answer.headers["location"]) == (303, "/subjects/one")
    after = entry(studio, "one")
    assert (after.licence, after.digest) == ("CC-BY-4.0", before.digest), "a build has no work"
    assert pixels(studio, "one") == shown and after.added == before.added
    studio.form("/subjects/one/describe", class_name="star", licence="of the museum")
    after = entry(studio, "one")
    assert (after.class_name, after.licence) == ("star", "of the museum")
    assert after.digest != before.digest and pixels(studio, "one") == shown
    assert 'value="of the museum"' in studio.page("/subjects/one").text
    number = registry.read_registry(Store.open(studio.root)).number
    for fields, said in (
        ({"class_name": "starr"}, "Class: "),
        ({"class_name": ""}, "Class: "),
        ({"class_name": "star", "licence": "l" * 300}, "Licence: 300 characters"),
    ):
        answer = studio.form("/subjects/one/describe", **fields)
        assert answer.status_code == 400 and said in answer.text
    studio.form("/subjects/one/describe", class_name="star", licence="of the museum")
    assert registry.read_registry(Store.open(studio.root)).number == number, "nothing changed"


def test_a_subject_is_taken_up_again_and_saved_as_it_was(studio: Client) -> None:
    before = entry(studio, "one")
    address = studio.form("/subjects/one/take-up").headers["location"]
    page = studio.page(address).text
    assert "Change one" in page and "readonly" in page and "reference 2" in page
    values = {"name": "one", "class_name": before.class_name, "licence": "MIT", "replace": True}
    told = studio.post(f"{address}/save", json=values).json()
    assert told["unchanged"] and entry(studio, "one") == before, "the same pixels, the same subject"
    address = studio.form("/subjects/one/take-up").headers["location"]
    studio.post(f"{address}/p0/remove")
    assert not studio.post(f"{address}/save", json=values).json()["unchanged"]
    assert entry(studio, "one").references == 1


def test_a_subject_is_deleted_by_the_pages_own_form_alone(studio: Client) -> None:
    headers = {"accept": "text/html", "origin": "http://evil.example"}
    assert studio.http.post("/subjects/one/remove", headers=headers).status_code == 403
    assert studio.http.post("/subjects/one/remove").status_code == 403
    assert studio.form("/subjects/one/remove").headers["location"] == "/subjects"
    assert list(registry.read_registry(Store.open(studio.root)).entries) == ["two"]
    assert studio.page("/subjects/one").status_code == 404
    for act in ("remove", "take-up", "describe"):
        assert studio.form(f"/subjects/one/{act}").status_code == 404
    assert "two" in studio.page("/subjects").text


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def noise(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return png(Image.fromarray(rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)))


def half() -> bytes:
    mask = np.zeros((96, 96), np.uint8)
    mask[:, 30:78] = 255
    return png(Image.fromarray(mask))


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return sink.getvalue()


def test_a_zip_becomes_drafts_that_are_saved_one_by_one(studio: Client) -> None:
    members = {
        "mine/my star/0.png": noise(0), "mine/my star/0_mask.png": half(),
        "mine/my star/bad.png": b"no picture",
        "mine/ball_2/0.png": noise(1),
        "mine/ball_2/subject.yaml": b"class_name: star\nlicence: MIT",
        "mine/none/0.png": b"no picture",
    }  # fmt: skip
    answer = studio.post("/add-subject/several/zip?name=mine.zip", content=zipped(members))
    assert answer.status_code == 201
    told = answer.json()
    assert told["drafts"] == 2
    assert [one.partition(": ")[0] for one in told["messages"]] == ["my star", "none", "none"]
    assert str(studio.root.parent) not in answer.text
    page = studio.page("/add-subject/several").text
    assert 'value="my-star"' in page and 'value="ball_2"' in page and "2 not saved yet" in page
    drafts = {one.name: one for one in studio.app.state.studio.drafts.list()}
    star, ball = drafts["my-star"], drafts["ball_2"]
    assert (ball.class_name, ball.licence) == ("star", "MIT") and star.class_name == "star"
    assert star.pictures[0].drawn and star.pictures[0].told == []
    assert ball.pictures[0].told, "the whole picture counts"
    shown = np.asarray(
        Image.open(io.BytesIO(studio.get(f"/add-subject/{star.id}/p0/mask.png").content))
    )
    assert (shown > 127).mean() == 0.5
    for one in (star, ball):
        values = {"name": one.name, "class_name": one.class_name, "licence": one.licence}
        assert studio.post(f"/add-subject/{one.id}/save", json=values).status_code == 200
    assert list(registry.read_registry(Store.open(studio.root)).entries) == [
        "ball_2", "my-star", "one", "two",
    ]  # fmt: skip


def origin(studio: Client, name: str) -> Origin:
    return origin_of(Store.open(studio.root), entry(studio, name).artefact)


CONSENT = "Ada, to training, 2026-11-02"


def test_a_person_stays_a_person_with_consent_whatever_is_changed(studio: Client) -> None:
    card = f"class_name: star\nsource: our studio\nperson: true\nconsent: {CONSENT}\n"
    members = {"ada/0.png": noise(0), "ada/subject.yaml": card.encode()}
    studio.post("/add-subject/several/zip?name=mine.zip", content=zipped(members))
    (draft,) = studio.app.state.studio.drafts.list()
    page = studio.page("/add-subject/several").text
    assert f'value="{CONSENT}"' in page and 'name="person" checked' in page
    values = {"name": "ada", "class_name": "star", "licence": "MIT"}
    assert studio.post(f"/add-subject/{draft.id}/save", json=values).status_code == 200
    told = Origin(source="our studio", person=True, consent=CONSENT)
    assert origin(studio, "ada") == told and CONSENT in studio.page("/subjects/ada").text
    studio.form("/subjects/ada/describe", class_name="bell", licence="of the museum")
    assert entry(studio, "ada").class_name == "bell" and origin(studio, "ada") == told
    address = studio.form("/subjects/ada/take-up").headers["location"]
    values |= {"class_name": "bell", "replace": True}
    assert studio.post(f"{address}/save", json=values).status_code == 200
    assert entry(studio, "ada").licence == "MIT" and origin(studio, "ada") == told


def test_a_person_is_saved_with_consent_alone(studio: Client) -> None:
    members = {"ada/0.png": noise(0), "ada/subject.yaml": b"class_name: star\nperson: true\n"}
    studio.post("/add-subject/several/zip?name=mine.zip", content=zipped(members))
    (draft,) = studio.app.state.studio.drafts.list()
    save = f"/add-subject/{draft.id}/save"
    values = {"name": "ada", "class_name": "star", "licence": "MIT", "source": "", "person": True}
    answer = studio.post(save, json=values | {"consent": " "})
    assert (answer.status_code, answer.json()["error"]) == (
        400, "Consent: the pictures show a person; write who consented, to what and when",
    )  # fmt: skip
    assert studio.post(save, json=values | {"consent": "c" * 301}).status_code == 400
    assert studio.post(save, json=values | {"person": "on"}).status_code == 400
    assert studio.post(save, json=values | {"consent": CONSENT}).status_code == 200
    assert origin(studio, "ada") == Origin(person=True, consent=CONSENT)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped({"../../../evil.png": noise(0)}), "leads out"),
        (zipped({"/tmp/evil.png": noise(0)}), "leads out"),
        (b"no zip", "mine.zip: not a zip"),
        (zipped({"a/readme.txt": b"words"}), "holds no picture"),
    ],
)
def test_a_zip_that_cannot_be_leaves_nothing(studio: Client, data: bytes, said: str) -> None:
    before = sorted(studio.root.parent.rglob("*"))
    answer = studio.post("/add-subject/several/zip?name=mine.zip", content=data)
    assert answer.status_code == 400 and said in answer.json()["error"]
    assert [path for path in sorted(studio.root.parent.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]
    assert not Path("/tmp/evil.png").exists()


def test_a_zip_too_large_is_refused_before_it_has_come(studio: Client) -> None:
    path = "/add-subject/several/zip?name=big.zip"
    piece = bytes(2**20)
    assert studio.stream(path, (piece for _ in range(600)), 600 * 2**20) == (413, 0)
    assert studio.http.post(path, content=zipped({"a/0.png": noise(0)})).status_code == 403


def test_a_folder_comes_picture_by_picture(studio: Client) -> None:
    draft = "/add-subject/00112233aabbccdd"
    card = b"licence: CC0-1.0\n"
    told = studio.post(f"{draft}/begin?name=My%20Star!", content=card).json()
    assert told == {"name": "My-Star", "class_name": "star"}
    kept = studio.post(f"{draft}/pictures?name=0.png", content=noise(0)).json()
    wrong = studio.post(f"{kept['edit']}/mask-file?name=m.png", content=png(Image.new("L", (9, 9))))
    assert wrong.status_code == 400 and "m.png: " in wrong.json()["error"]
    assert studio.post(f"{kept['edit']}/mask-file?name=m.png", content=half()).status_code == 200
    assert 'value="CC0-1.0" selected' in studio.page("/add-subject/several").text
    assert studio.post(f"{draft}/begin?name=x", content=b"class_name: [").status_code == 400
    assert studio.post("/add-subject/..%2fx/begin?name=x").status_code == 404
