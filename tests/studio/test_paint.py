"""Paint with an adapter: what the form refuses, and a painting from the order to its page."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from pocket_adapter import pocket_adapter
from studio_client import Client
from studio_runs import make_evaluation, make_run

from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.flows.generate.compared import Compared, Judged, read_compared
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.ingest import IngestConfig, put_subject
from focusdpo.pocket.world.identities import class_names
from focusdpo.pocket.world.world_subjects import draw
from focusdpo.store.artefacts import Store
from focusdpo.studio.pages import subjects_page


@pytest.fixture
def studio(tmp_path: Path) -> Client:
    """Three registered subjects, a run that ended, and an evaluation of it."""
    store = Store.open(tmp_path / "data")
    subjects = [
        put_subject(
            store,
            id=one.id,
            class_name=one.identity.class_name,
            pictures=[(picture.image, picture.mask) for picture in one.pictures],
        )
        for one in draw("train", class_names("train"), 3, 1, 0)
    ]
    registry.add(store, subjects, IngestConfig())
    make_run(tmp_path / "data-runs/first")
    make_run(tmp_path / "data-runs/live", finished=False)
    adapter = tmp_path / "data-runs/first/adapter"
    make_evaluation(tmp_path / "data-runs/eval", adapter=str(adapter))
    return Client(tmp_path / "data")


def names(studio: Client) -> list[str]:
    known = studio.app.state.studio.registry()
    return list(known.entries)


def run_id(studio: Client, name: str = "first") -> str:
    return next(r.id for r in studio.app.state.studio.runs().training if r.path.name == name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"run": "nope"}, "Adapter: choose a training run that has ended"),
        ({"run": "live"}, "Adapter: choose a training run that has ended"),
        ({}, "Subjects: choose 1 to 3"),
        ({"subject1": "../../etc/passwd"}, "is none of them"),
        ({"subject1": "0", "subject2": "0"}, "one is chosen twice"),
        ({"subject1": "0", "count": "9"}, "Pictures of each: got"),
        ({"subject1": "0", "seed": "-1"}, "Seed: got"),
        ({"subject1": "0", "preset": "/etc/x.yaml"}, "Preset: there is no"),
    ],
)
def test_what_is_wrong_is_told_by_its_field(
    studio: Client, fields: dict[str, str], said: str
) -> None:
    known = dict(zip("012", names(studio), strict=True))
    form = {"run": "first"} | {name: known.get(text, text) for name, text in fields.items()}
    form["run"] = run_id(studio, form["run"]) if form["run"] in ("first", "live") else form["run"]
    answer = studio.form("/paint/start", **form)
    assert answer.status_code == 400 and said in answer.text
    assert studio.app.state.studio.jobs.list() == []
    assert not list(studio.root.parent.rglob("shown"))


def test_no_file_is_named_after_a_strangers_subject(studio: Client) -> None:
    """A root from elsewhere whose version has a subject of such a name."""
    acting = studio.app.state.studio
    known = next(iter(subjects_page.members(acting).values()))
    hostile = dataclasses.replace(known, id="../../out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects_page, "members", lambda _: {hostile.id: hostile})
        assert subjects_page.usable(acting) == {}
        answer = studio.form("/paint/start", run=run_id(studio), subject1=hostile.id)
        assert answer.status_code == 400 and "is none of them" in answer.text
    assert not list(studio.root.parent.rglob("out.png"))


def test_a_scene_of_an_evaluation_fills_the_form(studio: Client) -> None:
    (folder,) = studio.app.state.studio.runs().evaluations
    page = studio.page(f"/evaluations/{folder.id}").text
    (link, *_) = re.findall(r'href="(/paint\?[^"]+)"', page)
    form = studio.page(link.replace("&amp;", "&")).text
    assert f'<option value="{run_id(studio)}" selected' in form
    (scene,) = re.findall(r'name="scene" value="([^"]+)"', form)
    prompt = EvaluationFolder(folder.path).prompts[scene]
    assert f"scene={scene}" in link and prompt in html.unescape(form) and prompt not in form
    assert studio.page(f"/paint?evaluation={folder.id}&scene=other").status_code == 404


def kept(studio: Client) -> Path:
    """A painting as a job has left it."""
    folder = studio.root.parent / "data-runs/.studio/paintings/0123456789abcdef/result"
    folder.mkdir(parents=True)
    for name in ("base-0", "adapter-0", "reference-0", "other"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    sides = {
        model: (
            Judged(file=f"{model}-0.png", seed=3, identity=value, leakage_margin=None,
                   each=(each,), words=words),
        )
        for model, value, each, words in (
            ("base", 0.5, 0.5, "found"), ("adapter", 0.0, None, "<b>cat</b> missing"),
        )
    }  # fmt: skip
    made = Compared(prompt="a <i>cat</i>", class_names=("cat",), names=("tom",),
                    references=("reference-0.png",), adapter="a", sides=sides)  # fmt: skip
    (folder / "compare.json").write_text(made.model_dump_json())
    job = studio.root.parent / "data-runs/.studio/jobs/20260101-000000000000-paint-abcdef"
    job.mkdir(parents=True)
    about = {"kind": "paint", "title": "paint", "root": str(studio.root), "shown": ["focusdpo"],
             "command": [], "started": "2026-01-01T00:00:00", "outputs": {"painting": str(folder)},
             "form": {"subject1": "tom", "run": "x"}}  # fmt: skip
    (job / "job.json").write_text(json.dumps(about))
    (job / "ended.json").write_text('{"code": 0}')
    return folder


def test_the_painting_that_is_kept_is_shown_with_the_judges_numbers(studio: Client) -> None:
    folder = kept(studio)
    page = studio.page("/paint").text
    assert (
        "a &lt;i&gt;cat&lt;/i&gt;" in page
        and "<i>" not in page
        and "<b>cat</b> missing" not in page
    )
    assert "cat not found" in page and "0.50" in page and 'value="tom"' in page
    for address in re.findall(r'src="(/paint/pictures/[^"]+)"', page):
        assert studio.get(address).headers["content-type"] == "image/png"
    for name in ("other.png", "compare.json", "..%2Fcompare.json", "base-1.png"):
        assert studio.get(f"/paint/pictures/{name}").status_code == 404
    (folder / "compare.json").write_text("{")
    assert studio.page("/paint").status_code == 400


@pytest.mark.slow
def test_own_subjects_are_painted_and_the_next_takes_their_place(studio: Client) -> None:
    pocket_adapter(studio.root.parent / "data-runs/first/adapter")
    first, second, _ = names(studio)
    folders = []
    orders = ({"subject1": first, "subject2": second}, {"subject1": second}, {"subject1": first})
    for subjects in orders:
        answer = studio.form("/paint/start", run=run_id(studio), count="1", **subjects)
        assert answer.status_code == 303, answer.text
        id = answer.headers["location"].rpartition("/")[2]
        jobs = studio.app.state.studio.jobs
        deadline = time.monotonic() + 300
        while (job := jobs.get(id)).active:
            assert time.monotonic() < deadline
            time.sleep(0.3)
        assert job.state == "done", job.log
        folders.append(Path(job.outputs["painting"]))
        made = read_compared(folders[-1])
        assert made is not None and made.names == tuple(subjects.values())
        assert studio.get(f"/jobs/{id}/state").json()["page"] == "/paint"
    left = [folder.parent.exists() for folder in folders]
    assert left == [False, True, True], "the last stays until there is another"
    assert made.prompt in studio.page("/paint").text
