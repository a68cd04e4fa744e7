"""The studio's pages on a small real root: what they show, and what they refuse."""

from __future__ import annotations

import html
import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from small_root import small_version
from studio_client import Client
from studio_runs import add_steps, make_evaluation, make_run

from focusdpo.studio.version_reading import Dataset

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
PICTURE = re.compile(r'(?:src|data-src)="(/[^"]+)"')


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "root"
    small_version(folder, prompt=HOSTILE)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(folder / "first")
    make_run(folder / "second", steps=4, finished=False)
    make_evaluation(folder / "eval-a", adapter=str(run / "adapter"), prompt=HOSTILE)
    make_evaluation(folder / "eval-b", gain=0.1)
    return folder


@pytest.fixture(scope="module")
def client(root: Path, runs: Path) -> Client:
    return Client(root, runs)


def dataset_of(client: Client) -> Dataset:
    dataset = client.app.state.studio.dataset()
    assert dataset is not None
    return dataset


def test_home_tells_what_there_is_and_what_comes_next(client: Client) -> None:
    page = client.page("/").text
    assert "5 pairs of 2 subjects" in page
    assert re.search(r'<li class=" ?next" aria-current="step">\s*<h3>Review</h3>', page)
    assert "/rejects?reason=missing_subject" in page
    few = r"only \d pairs to train on, which is few \(below 50\): bring more [a-z ]+, or "
    assert re.search(f"{few}raise “Scenes per set of subjects” and “Sampled candidates", page)


def test_an_empty_root_is_shown_and_nothing_is_made(tmp_path: Path) -> None:
    client = Client(tmp_path / "new")
    home = client.page("/")
    assert home.status_code == 200 and "A new dataset" in home.text
    assert 'aria-current="step">\n    <h3>Add subjects' in home.text
    assert client.page("/subjects").status_code == client.page("/runs").status_code == 200
    for path in ("/pairs", "/scenes", "/rejects", "/focus"):
        answer = client.page(path)
        assert answer.status_code == 404 and "no dataset" in answer.text
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    from focusdpo.data_schemas.errors import UserError

    (tmp_path / "thesis.tex").write_text("hours of work")
    with pytest.raises(UserError, match="not a FocusDPO dataset root"):
        Client(tmp_path)


PAGES = [
    "/", "/subjects", "/subjects/s0", "/scenes", "/scenes/p0", "/pairs", "/pairs/pair0", "/alike",
    "/rejects", "/rejects?reason=missing_subject", "/focus", "/focus/pair0", "/runs",
    "/evaluations",
]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_with_its_policy_and_its_pictures(client: Client, path: str) -> None:
    answer = client.page(path)
    assert answer.status_code == 200, answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "alert('x')" not in answer.text and "onerror=alert" not in answer.text.replace(
        "&gt;&lt;img src=x onerror=alert(1)", ""
    )
    assert not re.search(r"<[^>]+\s(on\w+|style)=", answer.text)
    for address in PICTURE.findall(answer.text):
        found = client.http.get(address.replace("&amp;", "&"))
        assert found.status_code == 200, address
        if not address.startswith("/static/"):
            with Image.open(io.BytesIO(found.content)) as image:
                image.verify()


def test_hostile_words_are_shown_as_words(client: Client) -> None:
    for path in ("/pairs/pair0", "/scenes/p0", "/focus/pair0"):
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in client.page(path).text
    page = client.page(
        "/pairs",
    ).text
    assert "<script>alert" not in page
    found = client.http.get("/pairs", params={"text": HOSTILE}, headers={"accept": "text/html"})
    assert "<script>alert" not in found.text and "5 of 5 pairs" in found.text
    refused = client.http.get("/pairs", params={"sort": HOSTILE}, headers={"accept": "text/html"})
    assert refused.status_code == 400 and "<script>alert" not in refused.text


@pytest.mark.parametrize(
    "path",
    [
        "/pairs/none", "/subjects/none", "/scenes/none", "/focus/none", "/runs/none",
        "/evaluations/none", "/thumbnails/pair0/0000", "/pair-pictures/pair0/0000/win",
        "/runs/..%2f..%2fetc", "/static/app.py", "/static/..%2f..%2fpyproject.toml",
        "/pictures/subjects/0123456789abcdef/ref0.png", "/pictures/..%2f..%2f/aaaaaaaa/x.png",
        "/pictures/subjects/..%2f..%2f/ref0.png", "/focus/pair0/maps", "/focus/pair0?adapter=none",
        "/focus/pair0/maps/base/winner/matched", "/nothing-here",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(client: Client, path: str) -> None:
    assert client.page(path).status_code == 404, path
    told = client.get(path)
    assert told.status_code == 404


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("page=x", "no whole number"), ("low=much", "no number"), ("low=nan", "no number"),
        ("sort=up", "expected one of"), ("score=luck", "expected one of"),
        ("text=" + "x" * 301, "at most 300"), ("subjects=1e3", "no whole number"),
    ],
)  # fmt: skip
def test_what_no_field_can_be_is_400(client: Client, query: str, said: str) -> None:
    answer = client.page(f"/pairs?{query}")
    assert answer.status_code == 400 and said in answer.text


def test_the_grid_is_filtered_sorted_and_keeps_its_choice(client: Client) -> None:
    page = client.page("/pairs?sort=-margin&low=0.515").text
    shown = re.findall(r'href="/pairs/(pair\d)\?([^"]+)"', page)
    assert [one for one, _ in shown] == ["pair4", "pair3", "pair2"]
    assert all("sort=-margin" in query and "low=0.515" in query for _, query in shown)
    middle = client.page("/pairs/pair3?sort=-margin&low=0.515").text
    assert 'rel="prev" href="/pairs/pair4?' in middle and 'rel="next" href="/pairs/pair2?' in middle
    assert "Pair 2 of 3" in middle
    outside = client.page("/pairs/pair0?sort=-margin&low=0.515").text
    assert "Not in the choice" in outside
    assert client.page("/pairs?page=99").text.count("<img ") == 5


def test_a_pair_shows_its_scores_reason_and_lineage(client: Client) -> None:
    page = client.page("/pairs/pair0").text
    assert "identity of s0 falls" in page and "0.800" in page and "0.300" in page
    for stage in ("compose", "generate", "disrupt", "score", "pair"):
        assert f'<th scope="row">{stage}</th>' in page
    row = dataset_of(client).row("pair0")
    assert row is not None and row.shard in page


def test_pictures_are_kept_by_browsers(client: Client) -> None:
    row = dataset_of(client).row("pair1")
    assert row is not None
    for path in (
        f"/thumbnails/pair1/{row.digest}",
        f"/pair-pictures/pair1/{row.digest}/difference",
    ):
        first = client.http.get(path)
        assert "immutable" in first.headers["cache-control"]
        again = client.http.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    wrong = client.http.get(f"/pair-pictures/pair1/{row.digest}/mask7")
    assert wrong.status_code == 404


def test_rejects_show_their_candidate_and_reason(client: Client) -> None:
    page = client.page("/rejects?reason=missing_subject").text
    assert "1 of 2 subjects not found: s1" in page
    assert page.count('alt="Rejected candidate') == 5
    of_subject = client.page("/rejects?reason=missing_subject&subject=nobody").text
    assert "Nothing was rejected" in of_subject


def test_training_runs_finished_and_not(client: Client, runs: Path) -> None:
    page = client.page("/runs").text
    assert "30 of 40" in page and "4 of 40" in page and "not finished" in page
    ids = dict(re.findall(r'href="/runs/(\w+)">[^<]*/(first|second)<', page))
    first, second = sorted(ids, key=lambda one: ids[one])
    done = client.page(f"/runs/{first}").text
    assert "Implicit accuracy" in done and "<svg" in done and "/evaluations/" in done
    before = client.get(f"/runs/{second}/state").json()
    assert before["steps"] == 4 and not before["finished"]
    add_steps(runs / "second", 4, 3)
    after = client.get(f"/runs/{second}/state").json()
    assert after["steps"] == 7 and after["stamp"] != before["stamp"]
    assert "7 of 40" in client.page(f"/runs/{second}/charts").text


def test_a_running_training_is_seen_as_it_grows(tmp_path: Path) -> None:
    """Its sample pictures and its looks; pictures are entered by nobody who looks for runs."""
    run = make_run(tmp_path / "runs/live", steps=4, finished=False)
    client = Client(tmp_path / "root", tmp_path / "runs")
    (found,) = client.app.state.studio.runs().training
    page = client.page(f"/runs/{found.id}").text
    assert "Samples while training" not in page and "Validation scenes" not in page
    stamp = client.get(f"/runs/{found.id}/state").json()["stamp"]
    (run / "samples").mkdir()
    sheet = run / "samples/step-000250.png"
    Image.new("RGB", (400, 80), "red").save(sheet)
    (run / "samples/step-000500.png").symlink_to(sheet)
    (run / "samples/config.json").write_text("{}")
    (run / "samples/metrics").mkdir()
    (run / "looks.json").write_text('[{"step": 250, "identity": 0.1, "score": 0.3}]')
    after = client.get(f"/runs/{found.id}/state").json()
    assert after["stamp"] != stamp and len(client.app.state.studio.runs().training) == 1
    page = client.page(f"/runs/{found.id}/charts").text
    assert page.count("Samples after step 250") == 2 and "step 500" not in page
    assert "What should rise" in page and "data:image/jpeg" in page
    for wrong in ('{"a": 1}', "[1]", '[{"identity": 0.1}]', "["):
        (run / "looks.json").write_text(wrong)
        refused = client.page(f"/runs/{found.id}/charts")
        assert refused.status_code == 400 and "looks.json" in refused.text


def test_tensorboard_is_named_with_its_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my runs/one")
    client = Client(tmp_path / "root", tmp_path / "my runs")
    (found,) = client.app.state.studio.runs().training
    assert "tensorboard --logdir" not in client.page("/runs").text
    (run / "tensorboard").mkdir()
    for path, folder in (
        ("/runs", tmp_path / "my runs"),
        (f"/runs/{found.id}", run / "tensorboard"),
    ):
        said = re.findall(r"<code>(tensorboard [^<]+)</code>", client.page(path).text)
        assert [shlex.split(html.unescape(one)) for one in said] == [
            ["tensorboard", "--logdir", str(folder)]
        ]


def test_a_version_published_meanwhile_is_shown(tmp_path: Path) -> None:
    client = Client(tmp_path / "root")
    assert "A new dataset" in client.page("/").text
    small_version(tmp_path / "root", scenes=2)
    client.app.state.studio.forget()
    assert "2 pairs of 2 subjects" in client.page("/").text


def test_curves_of_several_runs_lie_one_over_the_other(client: Client) -> None:
    ids = [one.id for one in client.app.state.studio.runs().training]
    names = [one.name for one in client.app.state.studio.runs().training]
    assert all(f'value="{id}"' in client.page("/runs").text for id in ids)
    page = client.page(f"/runs/compare?run={ids[0]}&run={ids[1]}").text
    charts = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert "Loss" in charts[0] and len(charts) > 1
    for chart in charts:
        if "Loss" in chart:
            assert all(f">{name}</span>" in chart for name in names)
            assert len(set(re.findall(r'class="curve (\w+) mean"', chart))) == 2
    for query in ("", f"run={ids[0]}", f"run={ids[0]}&run={ids[0]}", "&".join(["run=x"] * 5)):
        assert client.page(f"/runs/compare?{query}").status_code == 400
    assert client.page(f"/runs/compare?run={ids[0]}&run=nope").status_code == 404
