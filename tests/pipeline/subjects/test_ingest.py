"""A team's own folder: what it may hold, what is refused and how it is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_disk import small_disk
from unprivileged import unprivileged

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.subjects.folders import clean_name, doubles
from focusdpo.pipeline.subjects.ingest import (
    IngestConfig,
    Ingested,
    ingest,
    put_subject,
)
from focusdpo.store.artefacts import Store

CONFIG = IngestConfig()
CLASSES = ("cat", "dog", "teddy bear", "object")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "subjects"
    path.mkdir()
    return path


def disc(side: int = 64, radius: float = 0.3) -> np.ndarray:
    """(side, side) bool"""
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    return x**2 + y**2 < radius**2


def with_alpha(side: int = 64, colour: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    mask = disc(side)
    image = np.zeros((side, side, 4), np.uint8)
    image[mask] = (*colour, 255)
    return Image.fromarray(image)


def add(folder: Path, name: str, card: str | None = None, **pictures: Image.Image) -> Path:
    path = folder / name
    path.mkdir()
    # By default each subject looks its own way.
    colour = (200, *hashlib.sha256(name.encode()).digest()[:2])
    for stem, picture in (pictures or {"a": with_alpha(colour=colour)}).items():
        picture.save(path / f"{stem}.png")
    if card is not None:
        (path / "subject.yaml").write_text(card)
    return path


def messages(result: Ingested) -> dict[str, str]:
    return {problem.subject: problem.message for problem in result.problems if problem.fatal}


def test_a_folder_becomes_subjects(folder: Path, store: Store) -> None:
    add(folder, "dog", a=with_alpha(), b=with_alpha(colour=(0, 0, 200)))
    add(folder, "cat-02", "licence: CC-BY 4.0, Ann\n")
    add(folder, "Rex", "class_name: dog\n")
    add(folder, "my_teddy-bear")
    result = ingest(folder, store, CONFIG, known_classes=CLASSES, strict=True)
    assert result.problems == []
    by_id = {subject.id: subject for subject in result.subjects}
    assert {name: one.class_name for name, one in by_id.items()} == {
        "dog": "dog", "cat-02": "cat", "Rex": "dog", "my_teddy-bear": "teddy bear",
    }  # fmt: skip
    assert by_id["cat-02"].licence == "CC-BY 4.0, Ann"
    assert len(by_id["dog"].references) == 2
    image = store.image(by_id["dog"].references[0].image)
    mask = store.mask(by_id["dog"].references[0].mask)
    np.testing.assert_array_equal(mask, disc())
    assert (image[mask] == (200, 30, 30)).all()
    assert (image[~mask] == 255).all()


def test_a_second_run_writes_nothing_and_gives_the_same(folder: Path, store: Store) -> None:
    add(folder, "cat")
    first = ingest(folder, store, CONFIG)
    files = {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()}
    assert ingest(folder, store, CONFIG) == first
    assert files == {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()}


def test_the_digest_is_of_class_and_pixels(folder: Path, store: Store) -> None:
    same = with_alpha()
    add(folder, "cat", "licence: a\n", a=same)
    add(folder, "other", "licence: b\nclass_name: cat\n", a=same)
    add(folder, "dog", a=same)
    add(folder, "blue", "class_name: cat\n", a=with_alpha(colour=(0, 0, 9)))
    digests = {
        name: ingest(folder, store, CONFIG, only=[name]).subjects[0].digest
        for name in ("cat", "other", "dog", "blue")
    }
    assert digests["cat"] == digests["other"]
    assert len(set(digests.values())) == 3


def test_a_finished_reference_is_stored_as_it_is(folder: Path, store: Store) -> None:
    mask = disc()
    image = np.where(mask[..., None], np.uint8(90), np.uint8(255)).repeat(3, axis=2)[..., :3]
    given = put_subject(store, id="cat", class_name="cat", pictures=[(image, mask)])
    np.testing.assert_array_equal(store.image(given.references[0].image), image)
    rgba = np.dstack([image, mask.astype(np.uint8) * 255])
    add(folder, "cat", a=Image.fromarray(rgba))
    (read,) = ingest(folder, store, CONFIG).subjects
    assert read == given


def test_without_alpha_or_uniform_background_the_whole_picture_is_the_subject(
    folder: Path, store: Store
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    add(folder, "cat", a=Image.fromarray(noise))
    result = ingest(folder, store, CONFIG)
    (note,) = result.problems
    assert not note.fatal
    assert note.message.startswith("a.png: no alpha and no uniform background")
    (subject,) = result.subjects
    assert store.mask(subject.references[0].mask).all()
    np.testing.assert_array_equal(store.image(subject.references[0].image), noise)


# Bad input


def test_one_bad_subject_does_not_stop_the_others_unless_strict(folder: Path, store: Store) -> None:
    add(folder, "cat")
    bad = add(folder, "dog")
    (bad / "b.png").write_bytes(b"")
    result = ingest(folder, store, CONFIG, known_classes=CLASSES)
    assert [subject.id for subject in result.subjects] == ["cat"]
    assert "b.png: the file is empty" in messages(result)["dog"]
    with pytest.raises(UserError, match="b.png: the file is empty"):
        ingest(folder, store, CONFIG, known_classes=CLASSES, strict=True)


def test_every_kind_of_bad_subject_is_told(folder: Path, store: Store, tmp_path: Path) -> None:
    add(folder, "good", "class_name: cat\n")
    (folder / "nothing").mkdir()
    (add(folder, "heic", "class_name: cat\n") / "a.png").rename(folder / "heic" / "a.heic")
    add(folder, "Twin-1")
    add(folder, "twin_1")
    add(folder, "cta")
    add(folder, "spaced name")
    add(folder, "кот")
    add(folder, "猫")
    add(folder, "good-again", "class_name: cat\n", a=Image.open(folder / "good" / "a.png"))
    (add(folder, "cards", "class_name: cat\n") / "subject.yml").write_text("class_name: dog\n")
    add(folder, "narrow", "class_name: cat\n", a=with_alpha(), a_mask=Image.new("L", (64, 60)))
    add(folder, "007")
    add(folder, "field", "class_name: cat\nlicense: CC0\n")
    add(folder, "type", "class_name: [cat]\n")
    add(folder, "yaml", "class_name: {cat\n")
    add(folder, "list", "- cat\n")
    add(folder, "clear", "class_name: cat\n", a=Image.new("RGBA", (64, 64)))
    add(folder, "dot", "class_name: cat\n", a=Image.new("RGB", (1, 1)))
    add(tmp_path, "elsewhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    add(folder, "peek", "class_name: cat\n")
    (folder / "peek" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "notes.txt").write_text("not a subject")
    result = ingest(folder, store, CONFIG, known_classes=CLASSES)
    assert [subject.id for subject in result.subjects] == ["good"]
    told = messages(result)
    expected = {
        "nothing": "no picture; put at least one .png, .jpg or .webp there",
        "heic": "no picture (only a.heic); put at least one .png, .jpg or .webp there (a.heic: "
        "ignored, HEIC is not read; save as JPEG or PNG)",
        "кот": "named with letters, digits, '-' and '_' (a to z, no accents, no other scripts",
        "猫": "no other scripts",
        "good-again": "has the same pictures as 'good'; remove one of the two folders",
        "cards": "subject.yaml and subject.yml: one card is read; keep subject.yaml",
        "narrow": "a_mask.png: a mask of 64 x 60 pixels for a picture of 64 x 64, a.png",
        "Twin-1": "subjects Twin-1 and twin_1 have the same name",
        "twin_1": "subjects Twin-1 and twin_1 have the same name",
        "cta": "does not know the class 'cta' (near: cat)",
        "spaced name": "named with letters, digits",
        "007": "write class_name into",
        "field": "subject.yaml: license: no such field; allowed are class_name",
        "type": "subject.yaml: class_name: Input should be a valid string",
        "yaml": "subject.yaml: not readable YAML",
        "list": "subject.yaml: expected lines such as 'class_name: cat'",
        "clear": "a.png: nothing is visible",
        "dot": "a.png: 1 x 1 pixels",
        "linked": "a link that leads out of",
        "peek": "b.png: a link that leads out of",
    }
    assert sorted(told) == sorted(expected)
    for name, text in expected.items():
        assert text in told[name], told[name]
    assert "class_name: object" in told["cta"]


def test_names_differ_in_more_than_case_and_separators() -> None:
    names = ["toy-1-12-cat", "toy-11-2-cat", "toy_1_12_cat", "кот", "猫", "Кот"]
    twins = doubles([Path(name) for name in names])
    assert sorted(twins) == sorted(["toy-1-12-cat", "toy_1_12_cat", "кот", "Кот"])


def test_a_class_nobody_knows_is_refused_with_those_that_are(folder: Path, store: Store) -> None:
    add(folder, "xylophone")
    with pytest.raises(UserError, match=r"known: cat, dog, object, teddy bear\); write a known"):
        ingest(folder, store, CONFIG, known_classes=CLASSES, strict=True)


def test_a_mixed_folder_tells_what_it_leaves_out(folder: Path, store: Store) -> None:
    path = add(folder, "cat", a=with_alpha(), b=with_alpha(colour=(0, 9, 9)))
    for kind in ("bmp", "tiff", "gif", "avif", "jfif"):
        save_as = "jpeg" if kind == "jfif" else kind
        with_alpha().convert("RGB").save(path / f"c.{kind}", format=save_as)
    for name in ("x.heic", "y.HEIC", "notes.txt", "clip.mov", ".DS_Store", "Thumbs.db"):
        (path / name).write_bytes(b"...")
    (path / "originals").mkdir()
    (subject,), notes = read_one(folder, store)
    assert len(subject.references) == 7
    assert [note for note in notes if "ignored" in note] == [
        "clip.mov: ignored, a film; save frames as JPEG or PNG",
        "notes.txt: ignored, no picture that can be read (those are .png, .jpg, .jpeg, .jfif, "
        ".webp, .gif, .bmp, .tif, .tiff, .avif)",
        "originals: ignored, a folder within a subject's",
        "x.heic, y.HEIC: ignored, HEIC is not read; save as JPEG or PNG",
    ]


def read_one(folder: Path, store: Store) -> tuple[list[Subject], list[str]]:
    """The subjects, and the notes on them."""
    result = ingest(folder, store, CONFIG, strict=True)
    return result.subjects, [problem.message for problem in result.problems]


@pytest.mark.parametrize("mask", ["00_mask.png", "00-mask.png", "00.MASK.png"])
def test_a_mask_beside_its_picture_is_no_second_picture(
    folder: Path, store: Store, mask: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = folder / "cat"
    path.mkdir()
    Image.fromarray(noise).save(path / "00.jpg", quality=100)
    Image.fromarray(disc()).save(path / mask)
    (subject,), notes = read_one(folder, store)
    assert notes == []
    (reference,) = subject.references
    np.testing.assert_array_equal(store.mask(reference.mask), disc())


def test_a_subject_that_is_a_mask_is_a_picture(folder: Path, store: Store) -> None:
    add(folder, "mask", red_mask=with_alpha())
    (subject,), _ = read_one(folder, store)
    assert len(subject.references) == 1


@pytest.mark.parametrize("name", ["subject.yml", "subject.yaml.txt", "Subject.yaml", "subject.txt"])
def test_a_card_by_another_name_is_read_and_told(folder: Path, store: Store, name: str) -> None:
    (add(folder, "tom") / name).write_text("class_name: cat\nlicence: CC0\n")
    (subject,), notes = read_one(folder, store)
    assert (subject.class_name, subject.licence) == ("cat", "CC0")
    assert notes == [f"{name}: read as subject.yaml; rename it"]


def test_what_is_said_of_many_pictures_is_one_note(folder: Path, store: Store) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        f"p{i}": Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        for i in range(5)
    }
    add(folder, "cat", **pictures)
    _, (note,) = read_one(folder, store)
    assert note.startswith("p0.png, p1.png, p2.png and 2 more: no alpha and no uniform background")


def test_a_stray_picture_beside_the_folders_is_told(
    folder: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, "cat")
    with_alpha().save(folder / "stray.png")
    ingest(folder, store, CONFIG)
    assert "stray.png: ignored, beside the subjects' folders" in caplog.text


def test_a_folder_that_may_not_be_read_is_that_subjects_problem(folder: Path, store: Store) -> None:
    add(folder, "cat")
    ingest(folder, store, CONFIG)
    add(folder, "dog").chmod(0)
    with unprivileged(folder):
        result = ingest(folder, store, CONFIG)
    assert [subject.id for subject in result.subjects] == ["cat"]
    assert "dog" in messages(result)["dog"]
    assert "Permission denied" in messages(result)["dog"]


def test_a_full_disk_is_no_subjects_problem(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        store = Store.open(disk / "root")
        (disk / "ballast").write_bytes(bytes(1000 * 1024))
        for i in range(8):
            noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            add(folder, f"cat-{i}", a=Image.fromarray(noise))
        with pytest.raises(UserError, match="the disk is full"):
            ingest(folder, store, CONFIG)


def test_hostile_yaml_is_just_unreadable(folder: Path, store: Store, tmp_path: Path) -> None:
    add(folder, "cat", f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(UserError, match="not readable YAML"):
        ingest(folder, store, CONFIG, strict=True)
    assert not (tmp_path / "made").exists()


def test_without_a_usable_subject_there_is_an_error(folder: Path, store: Store) -> None:
    with pytest.raises(UserError, match="no subject folders; expected .*/<subject>/"):
        ingest(folder, store, CONFIG)
    with pytest.raises(UserError, match="no such folder"):
        ingest(folder / "absent", store, CONFIG)
    (folder / "cat").mkdir()
    with pytest.raises(UserError, match="none of 1 subjects is usable.*no picture"):
        ingest(folder, store, CONFIG)


def test_notes_about_pictures_are_kept(folder: Path, store: Store) -> None:
    path = add(folder, "cat")
    with_alpha().convert("CMYK").save(path / "b.jpg")
    notes = [p.message for p in ingest(folder, store, CONFIG).problems if not p.fatal]
    assert "b.jpg: CMYK converted to RGB" in notes


def test_more_pictures_than_are_used_are_told(folder: Path, store: Store) -> None:
    add(folder, "cat", **{f"p{i}": with_alpha() for i in range(4)})
    result = ingest(folder, store, IngestConfig(max_references=3))
    assert len(result.subjects[0].references) == 3
    assert result.problems[0].message == "4 pictures, the first 3 are used"


@pytest.mark.parametrize(
    ("name", "word"),
    [("cat", "cat"), ("Teddy_bear-02", "teddy bear"), ("CAT-007", "cat"), ("42", "")],
)
def test_a_folders_name_suggests_the_class(name: str, word: str) -> None:
    assert clean_name(name) == word


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("class_name: no\n", 'line 1: no is read as true or false, not as text; quote it: "no"'),
        ("licence: x\nclass_name: 007\n", 'line 2: 007 is read as a number, .* quote it: "007"'),
        ("licence: 4.0\n", '4.0 is read as a number, not as text; quote it: "4.0"'),
        ("licence: 2024-01-01\n", 'is read as a date, not as text; quote it: "2024-01-01"'),
        ("class_name: cat\nclass_name: dog\n", "line 2: 'class_name' is given a second time"),
    ],
)
def test_a_card_whose_text_yaml_takes_for_something_else(
    folder: Path, store: Store, card: str, words: str
) -> None:
    add(folder, "cat", card)
    with pytest.raises(UserError, match=f"subject.yaml, {words}" if "line" in words else words):
        ingest(folder, store, CONFIG, strict=True)


def test_a_card_in_another_encoding_is_named(folder: Path, store: Store) -> None:
    card = add(folder, "cat", "") / "subject.yaml"
    card.write_bytes("licence: Ute Müller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"subject.yaml: line 1 is not UTF-8 .*encoding UTF-8"):
        ingest(folder, store, CONFIG, strict=True)
