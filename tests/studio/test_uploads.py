"""Add a subject: whatever comes is taken in or refused in words, and nothing else is lost."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_disk import no_file_beyond
from studio_client import Client

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build import sources
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.doctor import run_check
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.subjects.registry import read_registry
from focusdpo.store.artefacts import Store
from focusdpo.studio.drafts import Drafts

DRAFT = "0123456789abcdef"
HERE = f"/add-subject/{DRAFT}"


@pytest.fixture
def studio(tmp_path: Path) -> Client:
    return Client(tmp_path / "data")


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def cut_out(hue: int = 200, side: int = 48) -> bytes:
    """A disc with alpha."""
    rows, columns = np.mgrid[0:side, 0:side] - side / 2
    inside = rows**2 + columns**2 < (side / 3) ** 2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = (hue, 80, 255 - hue)
    pixels[..., 3] = inside * 255
    return png(Image.fromarray(pixels, "RGBA"))


def busy(side: int = 64) -> bytes:
    """A picture in which no background can be told."""
    rng = np.random.default_rng(0)
    return png(Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)))


def bomb(width: int = 30000, height: int = 30000) -> bytes:
    """A small file that says it is a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def bring(studio: Client, data: bytes, name: str = "disc.png"):
    return studio.post(f"{HERE}/pictures", params={"name": name}, content=data)


def save(studio: Client, name: str = "red-disc", class_name: str = "star", **more: object):
    values = {"name": name, "class_name": class_name, "licence": "MIT", **more}
    return studio.post(f"{HERE}/save", json=values)


def files(studio: Client) -> list[str]:
    return sorted(
        str(path.relative_to(studio.root.parent))
        for path in studio.root.parent.rglob("*")
        if path.is_file()
    )


SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
)
BAD = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"hello there", "not an image"),
    "drawing.png": (SVG, "not an image"),
    "page.webp": (b"<!doctype html><script>alert(1)</script>", "not an image"),
    "cut.png": (cut_out()[:200], "damaged or truncated"),
    "half.jpg": (b"\xff\xd8\xff\xe0" + bytes(40), ""),
    "bomb.png": (bomb(), "megapixels"),
    "dot.png": (png(Image.new("RGB", (3, 3))), "3 x 3 pixels"),
    "zip.png": (b"PK\x03\x04" + bytes(500), "not an image"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_picture_is_refused_by_name_and_costs_no_other(studio: Client, name: str) -> None:
    assert bring(studio, cut_out()).status_code == 201
    before = files(studio)
    data, said = BAD[name]
    answer = bring(studio, data, name)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert message.startswith(f"{name}: ") and said in message
    assert str(studio.root.parent) not in message
    assert files(studio) == before
    assert bring(studio, cut_out(90), "next.png").status_code == 201
    assert save(studio).status_code == 200


def test_what_is_visible_nowhere_is_refused_when_saved(studio: Client) -> None:
    bring(studio, png(Image.new("RGBA", (40, 40), (9, 9, 9, 0))), "ghost.png")
    answer = save(studio)
    assert answer.status_code == 400 and "ghost.png: nothing is visible" in answer.json()["error"]


def test_200_megabytes_are_refused_before_they_have_come(studio: Client) -> None:
    path = f"{HERE}/pictures?name=big.png"
    piece = bytes(2**20)
    assert studio.stream(path, (piece for _ in range(200)), 200 * 2**20) == (413, 0)
    status, taken = studio.stream(path, (piece for _ in range(200)), None)
    assert status == 413 and taken == 51, "what does not say its size is counted"
    assert files(studio) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd.png",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "<img src=x onerror=alert(1)>.png",
        '"><script>alert(1)</script>.png',
        "a\x00b\r\nset-cookie: x.png",
        "\u202egnp.exe",
        "{{ 7*7 }}.png",
        "x" * 10_000 + ".png",
        "",
    ],
)
def test_a_hostile_name_is_shown_and_never_a_path(studio: Client, name: str) -> None:
    answer = bring(studio, cut_out(), name)
    assert answer.status_code == 201
    shown = answer.json()["name"]
    assert shown.isprintable() and 0 < len(shown) <= 80
    page = studio.page(HERE).text
    assert "<img src=x" not in page and "<script>alert" not in page
    assert all(part.startswith("data-runs/.studio/drafts/") for part in files(studio))
    assert save(studio).status_code == 200
    assert not list(studio.root.parent.glob("**/passwd*"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "x" * 10_000, "10000 characters"),
        ("name", "../up", "expected letters"),
        ("name", "", "expected letters"),
        ("class_name", "a" * 10_000, "10000 characters"),
        ("class_name", "st\x1bar", "control characters"),
        ("class_name", "starr", "near: star"),
        ("class_name", "<b>star</b>", "Class: the models do not know '<b>star</b>'"),
        ("licence", "l" * 10_000, "10000 characters"),
    ],
)
def test_what_is_typed_has_limits_and_the_draft_stays(
    studio: Client, field: str, value: str, said: str
) -> None:
    bring(studio, cut_out())
    answer = save(studio, **{"name": "disc", field: value})
    assert answer.status_code == 400 and said in answer.json()["error"]
    assert len(Drafts(studio.root.parent / "data-runs/.studio/drafts").get(DRAFT).pictures) == 1
    assert read_registry(Store.open(studio.root)) is None
    assert save(studio).status_code == 200


def test_saving_is_what_subjects_add_does(studio: Client, tmp_path: Path) -> None:
    pictures = {"01.png": cut_out(), "02.png": cut_out(90)}
    folder = tmp_path / "by-hand" / "red-disc"
    folder.mkdir(parents=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        bring(studio, data, name)
    (folder / "subject.yaml").write_text("class_name: star\nlicence: MIT\n")
    answer = save(studio)
    assert answer.json()["subject"] == "red-disc" and answer.json()["subjects"] == 1
    sources.add(resolve(GenerateRun, {}), str(tmp_path / "other"), [folder])
    ours, theirs = (
        read_registry(Store.open(root)).entries["red-disc"]
        for root in (studio.root, tmp_path / "other")
    )
    assert (ours.artefact, ours.digest) == (theirs.artefact, theirs.digest)
    assert studio.page(HERE).status_code == 200, "the draft is gone, its page is an empty one"
    assert not [path for path in files(studio) if "/drafts/" in path]


def test_a_drawn_mask_is_the_subjects_mask(studio: Client) -> None:
    told = bring(studio, busy(96), "noise.png").json()
    assert "the whole picture counts" in told["notes"][0]
    mask = np.zeros((96, 96), np.uint8)
    mask[15:75, 30:60] = 255
    assert (
        studio.post(f"{told['edit']}/draw", content=png(Image.fromarray(mask))).status_code == 200
    )
    page = studio.page(HERE).text
    assert "mask drawn by hand" in page and "the whole picture counts" not in page
    shown = Image.open(io.BytesIO(studio.get(told["mask"]).content))
    np.testing.assert_array_equal(np.asarray(shown) > 127, mask > 127)
    assert save(studio).status_code == 200
    store = Store.open(studio.root)
    subject = read_registry(store).entries["red-disc"].subject()
    kept = store.mask(subject.references[0].mask)
    assert kept.shape == (96, 96) and kept.mean() == pytest.approx((mask > 0).mean(), rel=0.02)
    np.testing.assert_array_equal(store.image(subject.references[0].image)[~kept], 255)


def test_masks_that_cannot_be_are_refused(studio: Client) -> None:
    told = bring(studio, busy(64), "noise.png").json()
    for data, said in (
        (png(Image.new("L", (64, 64))), "nothing is marked"),
        (png(Image.new("L", (32, 64), 255)), "32 x 64 pixels"),
        (b"not a picture", "did not arrive whole"),
        (bomb(5000, 5000), "larger than any view"),
        (bomb(), "did not arrive whole"),
    ):
        answer = studio.post(f"{told['edit']}/draw", content=data)
        assert answer.status_code == 400 and said in answer.json()["error"], said
    studio.post(f"{told['edit']}/draw", content=png(Image.new("L", (64, 64), 255)))
    assert studio.post(f"{told['edit']}/draw", content=b"").status_code == 200
    page = studio.page(HERE).text
    assert "mask drawn by hand" not in page and "the whole picture counts" in page


def test_a_registered_name_is_kept_unless_it_is_to_be_replaced(studio: Client) -> None:
    bring(studio, cut_out())
    save(studio)
    bring(studio, cut_out(30))
    answer = save(studio)
    assert answer.status_code == 400 and "red-disc" in answer.json()["error"]
    assert save(studio, replace=True).status_code == 200
    assert read_registry(Store.open(studio.root)).number == 2


def test_errors_speak_of_the_pages_fields(studio: Client) -> None:
    bring(studio, cut_out())
    assert save(studio, replace=True).json()["error"].startswith("Name: nothing is registered yet")
    save(studio)
    bring(studio, cut_out(30))
    errors = [
        save(studio).json()["error"],
        save(studio, name="red_disc").json()["error"],
        save(studio, name="a-1", class_name="").json()["error"],
        save(studio, name="123", class_name="").json()["error"],
        save(studio, name="123", replace=True).json()["error"],
    ]
    bring(studio, cut_out(20)[:90], "cut.png")
    bring(studio, png(Image.new("RGBA", (40, 40), (9, 9, 9, 0))), "ghost.png")
    errors.append(save(studio, name="b").json()["error"])
    for said in errors:
        assert said.startswith(("Name: ", "Class: ", "ghost.png: ")), said
        for foreign in ("`", "--", "subject.yaml", "folder", "/", "none of", "cannot be used"):
            assert foreign not in said, said
    assert "tick “Replace" in errors[0] and "untick “Replace" in errors[4]


def test_no_more_pictures_than_are_used(studio: Client) -> None:
    for number in range(16):
        assert bring(studio, cut_out(number), f"{number}.png").status_code == 201
    answer = bring(studio, cut_out(77), "one-more.png")
    assert answer.status_code == 400 and answer.json()["error"].startswith("one-more.png: 16")
    assert studio.post(f"{HERE}/p3/remove").status_code == 200
    assert bring(studio, cut_out(77), "one-more.png").json()["id"] == "p16"


def test_a_draft_is_there_after_a_restart(studio: Client) -> None:
    bring(studio, cut_out(), "disc.png")
    studio.post(f"{HERE}/note", json={"name": "disc", "class_name": "star", "licence": "mine"})
    again = Client(studio.root)
    page = again.page(HERE).text
    assert 'value="disc"' in page and "disc.png" in page
    assert HERE in again.page("/add-subject/ffffffffffffffff").text, "and is offered"
    assert again.post(f"{HERE}/discard").status_code == 200
    assert not [path for path in files(studio) if DRAFT in path]


@pytest.mark.parametrize(
    "path",
    [
        "/add-subject/nope",
        f"{HERE}/p0",
        f"{HERE}/p0/view.png",
        f"{HERE}/p0/draft.png",
        "/add-subject/..%2f..%2fetc/p0/view.png",
    ],
)
def test_what_is_not_there_is_not_found(studio: Client, path: str) -> None:
    assert studio.get(path).status_code == 404


def test_changes_need_the_pages_token(studio: Client) -> None:
    answer = studio.http.post(f"{HERE}/pictures?name=a.png", content=cut_out())
    assert answer.status_code == 403 and files(studio) == []


def test_a_full_disk_is_told_and_the_next_upload_is_taken(studio: Client) -> None:
    assert bring(studio, cut_out(), "first.png").status_code == 201
    before = files(studio)
    with no_file_beyond(64):
        answer = bring(studio, cut_out(hue=90), "second.png")
    assert answer.status_code == 400 and "free some space" in answer.json()["error"].lower()
    assert files(studio) == before, "nothing half-written is left"
    assert bring(studio, cut_out(hue=90), "second.png").status_code == 201


@pytest.mark.parametrize(
    "name", ["draft.json", "p0.upload", "p0.view.png", "p0.found.png", "p0.mask.png"]
)
def test_one_flipped_bit_in_a_draft_is_noticed(studio: Client, name: str) -> None:
    bring(studio, cut_out())
    drafts = Drafts(studio.root.parent / "data-runs/.studio/drafts")
    drafts.draw(DRAFT, "p0", drafts.mask(DRAFT, "p0"))
    folder = next(path.parent for path in studio.root.parent.rglob("draft.json"))
    assert run_check(folder).ok
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    told = run_check(folder)
    assert not told.ok and str(path) in told.told
    readers: dict[str, Callable[[], object]] = {
        "draft.json": lambda: drafts.get(DRAFT),
        "p0.view.png": lambda: drafts.file(DRAFT, "p0", "view"),
        "p0.found.png": lambda: drafts.file(DRAFT, "p0", "found"),
        "p0.mask.png": lambda: drafts.mask(DRAFT, "p0"),
    }
    if name in readers:
        with pytest.raises(UserError, match=f"{name}: damaged"):
            readers[name]()
    if name == "draft.json":  # it costs its own row, not the page of others
        assert drafts.list() == []
        assert studio.page("/add-subject/ffffffffffffffff").status_code == 200
