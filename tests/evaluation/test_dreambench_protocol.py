"""DreamBench: the public lists rebuilt, the folder read, the measures against plain formulas."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import photo_folder
import pytest
import toy_world
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.dreambench_metrics import (
    BENCH_METRICS,
    BenchParts,
    bench_rows,
    know_subject,
    match,
    measure_pictures,
    undetected,
)
from focusdpo.evaluation.dreambench_protocol import (
    LIVE,
    PAIRS,
    PHOTOGRAPH,
    PROTOCOLS,
    PUBLIC_ROWS,
    DreamBenchConfig,
    bench_scenes,
    public_rows,
    rows_digest,
    shown_photograph,
    target_photographs,
)
from focusdpo.evaluation.photographs import (
    open_photographs,
    parse_prompts,
    read_photograph,
)
from focusdpo.evaluation.pocket_protocol import EvaluateConfig
from focusdpo.pipeline.parts import Detection

SINGLE, ALL, MULTI = PROTOCOLS
CONFIG = EvaluateConfig(resamples=200, batch=5)
HALF = tuple(photo_folder.CLASSES)[:15]
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dreambooth"
TOY = BenchParts(
    whole=photo_folder.Identity(),
    identity=photo_folder.Identity(),
    clip=toy_world.Clip(),
    segmenter=toy_world.Segmenter(),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 30 toy subjects."""
    return photo_folder.write_photo_folder(tmp_path_factory.mktemp("photographs") / "all")


@pytest.fixture
def public(tmp_path: Path):
    """The public classes and prompts over one toy subject."""
    folder = tmp_path / "public"
    return open_photographs(
        photo_folder.write_photo_folder(folder, ("can",), dict(photo_folder.CLASSES))
    )


def test_the_public_lists_are_rebuilt_row_by_row(public) -> None:
    """The digests are of the 750 rows that Kosmos-G's and UNO's public lists hold, in order."""
    for name, protocol in PROTOCOLS.items():
        rows = public_rows(public, protocol)
        assert len(rows) == 750 and rows_digest(rows) == PUBLIC_ROWS[name]
        assert len(set(rows)) == 750 or name != SINGLE
        assert set(Counter(names for names, _ in rows).values()) == {25}


def test_subjects_and_pairs_are_of_the_kinds_that_the_protocol_says() -> None:
    assert len(PHOTOGRAPH) == 30 and len(LIVE) == 9 and set(PHOTOGRAPH) > LIVE
    assert len(set(PAIRS)) == 30 and {name for pair in PAIRS for name in pair} == set(PHOTOGRAPH)
    assert Counter(sum(name in LIVE for name in pair) for pair in PAIRS) == {0: 10, 1: 10, 2: 10}
    assert all(pair[0] in LIVE for pair in PAIRS if set(pair) & LIVE), "what is worn is the first's"
    words = [tuple(photo_folder.CLASSES[name] for name in pair) for pair in PAIRS]
    assert Counter(a for a, b in words if a == b) == {"dog": 4, "cat": 1, "toy": 1}


def test_every_prompt_is_formed_right(public) -> None:
    prompts = {name: set() for name in PROTOCOLS}
    for name, protocol in PROTOCOLS.items():
        for names, prompt in public_rows(public, protocol):
            assert "{" not in prompt and "  " not in prompt and prompt.startswith("a ")
            at = 0
            for subject in names:
                word = photo_folder.CLASSES[subject]
                assert word in prompt[at:], (names, prompt)
                at = prompt.index(word, at) + len(word)
            prompts[name].add(prompt)
    assert {"a dog in a chef outfit", "a can floating in an ocean of milk"} <= prompts[SINGLE]
    assert "a can in a chef outfit" not in prompts[SINGLE]
    assert {
        "a cat and a dog in the snow",
        "a cat wearing a red hat, next to it is a dog",
        "a red cat, next to it is a dog",
        "a bowl and a can floating on top of water",
        "a cube shaped bowl and a cube shaped can",
        "a dog in a police outfit, next to it is a teapot",
    } <= prompts[MULTI]


def test_scenes_of_the_whole_set(whole: Path) -> None:
    folder = open_photographs(whole)
    single, all_refs, multi = (
        bench_scenes(folder, protocol, DreamBenchConfig()) for protocol in PROTOCOLS.values()
    )
    assert [len(plan.scenes) for plan in (single, all_refs, multi)] == [750, 750, 750]
    assert single.scenes == all_refs.scenes, "one noise: pictures can be compared across targets"
    assert single.images_per_prompt == 4 and multi.images_per_prompt == 1
    assert len({scene.id for scene in multi.scenes}) == 750
    other = bench_scenes(folder, PROTOCOLS[SINGLE], DreamBenchConfig(seed=1))
    assert all(
        a.seed != b.seed and a.id == b.id for a, b in zip(single.scenes, other.scenes, strict=True)
    )
    assert single.shown_id == f"{SINGLE} [changed prompts file]", "toy classes are not the public"
    assert shown_photograph(folder, "dog3").name == "05.jpg"
    assert target_photographs(folder, "dog3", PROTOCOLS[SINGLE]) == (whole / "dog3" / "05.jpg",)
    targets = target_photographs(folder, "dog3", PROTOCOLS[ALL])
    assert [file.stem for file in targets] == ["05", "00", "01", "02", "03", "04"]


def test_a_part_of_the_set_runs_only_when_told_and_says_so(tmp_path: Path) -> None:
    folder = open_photographs(
        photo_folder.write_photo_folder(tmp_path / "half", HALF, dict(photo_folder.CLASSES))
    )
    with pytest.raises(UserError, match=r"15 of 30 subjects are missing: dog7, .*allow_partial"):
        bench_scenes(folder, PROTOCOLS[SINGLE], DreamBenchConfig())
    partial = DreamBenchConfig(allow_partial=True)
    plan = bench_scenes(folder, PROTOCOLS[SINGLE], partial)
    assert plan.shown_id == f"{SINGLE} [15 of 30 subjects]" and len(plan.scenes) == 15 * 25
    pairs = bench_scenes(folder, PROTOCOLS[MULTI], partial)
    both = [pair for pair in PAIRS if set(pair) <= set(HALF)]
    assert pairs.shown_id == f"{MULTI} [{len(both)} of 30 pairs]" and pairs.sets == len(both)
    few = DreamBenchConfig(subjects=("cat", "dog"), prompts=3, images_per_prompt=2)
    quick = bench_scenes(folder, PROTOCOLS[SINGLE], few)
    assert quick.shown_id == f"{SINGLE} [2 of 30 subjects] [3 of 25 prompts]"
    assert len(quick.scenes) == 6 and set(quick.scenes) <= set(plan.scenes)
    with pytest.raises(UserError, match="dreambench.subjects: hamster not in"):
        bench_scenes(folder, PROTOCOLS[SINGLE], DreamBenchConfig(subjects=("hamster",)))
    with pytest.raises(UserError, match="no scene has all its subjects"):
        bench_scenes(folder, PROTOCOLS[MULTI], DreamBenchConfig(subjects=("cat", "clock")))


def test_bad_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        open_photographs(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no prompts_and_classes.txt"):
        open_photographs(tmp_path)
    folder = photo_folder.write_photo_folder(tmp_path / "dreambooth" / "dataset", ("can", "cat"))
    assert set(open_photographs(folder.parent).subjects) == {"can", "cat"}, "a checkout will do"
    (folder / "can" / "01.jpg").unlink()
    with pytest.raises(UserError, match="can: the photograph 01 is absent"):
        shown_photograph(open_photographs(folder), "can")
    for file in (folder / "can").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="can: no photograph"):
        open_photographs(folder)
    shutil.rmtree(folder / "can")
    (folder / "cat" / "04.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"04\.jpg: not an image"):
        read_photograph(folder / "cat" / "04.jpg")
    shutil.rmtree(folder / "cat")
    with pytest.raises(UserError, match="no folder of any listed subject"):
        open_photographs(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("Classes", "Klassen"), "nothing under 'Classes'"),
        (lambda text: text.split("Live")[0], "nothing under 'Live Subject Prompts'"),
        (lambda text: text.replace("can,can", "can,"), "line 8: expected 'subject,class'"),
        (lambda text: text.replace("dog2,dog", "dog,dog"), "each once"),
        (lambda text: text.replace("{1} in the snow", "in the snow"), "one {0} and one {1}"),
    ],
)
def test_a_bad_prompts_file_is_told_by_line(change, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("{", r"\{")):
        parse_prompts(change(photo_folder.prompts_text(photo_folder.CLASSES)))


def test_lists_that_are_not_whole_are_told(tmp_path: Path) -> None:
    folder = photo_folder.write_photo_folder(tmp_path / "a", ("can",))
    text = (folder / "prompts_and_classes.txt").read_text()
    short = "".join(line for line in text.splitlines(True) if "on a cobblestone" not in line)
    (folder / "prompts_and_classes.txt").write_text(short)
    with pytest.raises(UserError, match="24 object prompts, expected 25"):
        public_rows(open_photographs(folder), PROTOCOLS[SINGLE])
    (folder / "prompts_and_classes.txt").write_text(text.replace("\nvase,", "\nvases,"))
    with pytest.raises(UserError, match="lists no class of vase"):
        public_rows(open_photographs(folder), PROTOCOLS[SINGLE])


def test_transparent_photographs_stand_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:10] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_photograph(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30] and image[19, 0].tolist() == [255] * 3


def _known(folder, name: str, protocol: str):
    files = target_photographs(folder, name, PROTOCOLS[protocol])
    photographs = [read_photograph(file) for file in files]
    return know_subject(photographs, folder.classes[name], TOY, CONFIG), photographs


@pytest.mark.parametrize("protocol", [SINGLE, ALL, MULTI])
def test_whole_pictures_against_plain_formulas(whole: Path, protocol: str) -> None:
    folder = open_photographs(whole)
    config = DreamBenchConfig(subjects=("cat", "dog", "backpack"), prompts=1)
    plan = bench_scenes(folder, PROTOCOLS[protocol], config)
    known, photographs = {}, {}
    for name in plan.names:
        known[name], photographs[name] = _known(folder, name, protocol)
    pictures = [
        photo_folder.BASE.one(
            scene.prompt, [_shown(photographs[n][0]) for n in scene.subject_ids], at
        )
        for at, scene in enumerate(plan.scenes)
    ]
    count = len(pictures)
    judged, scores = measure_pictures(
        "base", plan.shown_id, plan.scenes, [0] * count, [""] * count, pictures, known, TOY, CONFIG
    )
    for scene, picture, one, score in zip(plan.scenes, pictures, judged, scores, strict=True):
        expected = {"dino": [], "clip_i": []}
        for name in scene.subject_ids:
            for metric, encode in (("dino", TOY.whole.embed_whole), ("clip_i", _clip)):
                mine = encode([picture])[0]
                cosines = [float(np.dot(mine, encode([p])[0])) for p in photographs[name]]
                expected[metric].append(sum(cosines) / len(cosines))
        for metric, each in expected.items():
            assert getattr(score, metric) == pytest.approx(sum(each) / len(each), abs=1e-6)
            assert getattr(score, f"{metric}_each") == pytest.approx(each, abs=1e-6)
        words = toy_world.Clip().embed_texts([scene.prompt])[0]
        assert one.clip_t == pytest.approx(float(_clip([picture])[0] @ words), abs=1e-6)
        assert math.isnan(one.hue_error) and one.protocol == plan.shown_id


def _clip(images):
    return toy_world.Clip().embed_images(images)


def _shown(image):
    from focusdpo.pipeline.parts import ReferenceImage

    return ReferenceImage(image=image, mask=np.ones(image.shape[:2], bool))


def test_instances_by_word_then_identity(whole: Path) -> None:
    """Two of one class, one of another; swapped, missing, doubled."""
    folder = open_photographs(whole)
    words = photo_folder.TOY_CLASSES
    pair = next(p for p in PAIRS if words[p[0]] == words[p[1]])
    plan = bench_scenes(folder, PROTOCOLS[MULTI], DreamBenchConfig(subjects=pair, prompts=1))
    (scene,) = plan.scenes
    known = {name: _known(folder, name, MULTI)[0] for name in pair}
    assert all(one.undetected == 0 and len(one.identity) == 6 for one in known.values())
    (a, b), word = pair, words[pair[0]]
    hues = photo_folder.HUES
    other = next(w for w in toy_world.WORDS if w != word)

    def look(things):
        picture = toy_world.picture(things)
        judged, _ = measure_pictures("base", "p", [scene], [0], [""], [picture], known, TOY, CONFIG)
        return judged[0]

    right = look([(word, hues[b], 0), (word, hues[a], 2)])
    assert (right.missing, right.confusion, right.duplicate) == (0, 0, 0)
    assert right.boxes[0][0] > right.boxes[1][0], "the places do not matter, the looks do"
    assert right.identity > 0.98 and right.leakage_margin > 0
    twice = look([(word, hues[a], 0), (word, hues[a], 2)])
    assert (twice.missing, twice.duplicate, twice.confusion) == (0, 0.5, 0.5)
    lost = look([(word, hues[a], 0), (other, hues[b], 2)])
    assert lost.missing == 0.5 and lost.boxes[1] == (), "another word's thing is nobody"
    assert lost.scr_40 == 0.5 and undetected([right, lost]) == (1, 4)


def test_looks_alone_may_decide() -> None:
    mask = np.ones((2, 2), bool)
    found = [Detection(word, mask, (0, 0, 2, 2), 0.9) for word in ("cat", "dog")]
    similarity = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert match(similarity, ("cat", "dog"), found, 2.0) == [0, 1]
    assert match(similarity, ("cat", "dog"), found, 0.0) == [1, 0]
    assert match(np.zeros((2, 0)), ("cat", "dog"), [], 2.0) == [-1, -1]


def test_a_photograph_without_the_subject_is_counted() -> None:
    empty = toy_world.picture([])
    there = toy_world.picture([("disc", 0, 1)])
    known = know_subject([there, empty], "disc", TOY, CONFIG)
    assert known.undetected == 1 and known.masks[1].all() and not known.masks[0].all()


def test_the_table_draws_sets_of_subjects(whole: Path) -> None:
    """Means are over sets' means; a metric that is constant within a set has the spread of sets."""
    folder = open_photographs(whole)
    plan = bench_scenes(
        folder, PROTOCOLS[SINGLE], DreamBenchConfig(subjects=("cat", "dog", "vase"), prompts=4)
    )
    known = {name: _known(folder, name, SINGLE)[0] for name in plan.names}
    measured = {}
    for model, shift in (("base", 40.0), ("adapter", 0.0)):
        pictures = [
            toy_world.picture([(s.class_names[0], photo_folder.HUES[s.subject_ids[0]] + shift, 1)])
            for s in plan.scenes
        ]
        count = len(pictures)
        measured[model] = measure_pictures(
            model, "p", plan.scenes, [0] * count, [""] * count, pictures, known, TOY, CONFIG
        )
    table = {(r.metric, r.group, r.model): r for r in bench_rows(measured, CONFIG)}
    assert {metric for metric, _, _ in table} == set(BENCH_METRICS) - {
        "leakage_margin",
        "confusion",
    }
    assert {group for _, group, _ in table} == {"all", "1 subject"}
    base, gap = table["dino", "all", "base"], table["dino", "all", "adapter - base"]
    assert base.scenes == gap.scenes == 3
    by_set = {}
    for judged, score in zip(*measured["base"], strict=True):
        by_set.setdefault(judged.subject_ids, []).append(score.dino)
    assert base.mean == pytest.approx(np.mean([np.mean(v) for v in by_set.values()]))
    assert min(map(np.mean, by_set.values())) - 1e-9 <= base.low <= base.high
    assert gap.mean > 0 and table["identity", "all", "adapter - base"].low > 0
    judged, scores = measured["base"]
    with pytest.raises(ValueError, match="different pictures"):
        bench_rows({"base": (judged, scores[::-1])}, CONFIG)


@pytest.mark.skipif(not REAL.is_dir(), reason="the DreamBooth photographs are not at hand")
def test_the_real_folder_as_it_is() -> None:
    folder = open_photographs(REAL)
    with pytest.raises(UserError, match="subjects are missing"):
        bench_scenes(folder, PROTOCOLS[SINGLE], DreamBenchConfig())
    partial = DreamBenchConfig(allow_partial=True)
    for name, protocol in PROTOCOLS.items():
        assert rows_digest(public_rows(folder, protocol)) == PUBLIC_ROWS[name]
        plan = bench_scenes(folder, protocol, partial)
        assert plan.shown_id.startswith(f"{name} [") and "changed" not in plan.shown_id
    for name in folder.subjects:
        image = read_photograph(shown_photograph(folder, name))
        assert image.ndim == 3 and min(image.shape[:2]) > 100
