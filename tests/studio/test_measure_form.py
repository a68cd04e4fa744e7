"""Measuring from the browser: its form, what it may read, its job's page and its result's."""

from __future__ import annotations

import re
import time
from pathlib import Path

import foreign_pictures as fp
import pytest
from foreign_pictures import DOUBLED, MISSING, RIGHT
from small_root import small_version
from studio_client import Client

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.measure.run import measure
from focusdpo.studio.job_forms import order
from focusdpo.studio.run_reading import find_runs, find_tables


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "data-runs"
    folder.mkdir()
    return folder


def filled(**values: str) -> dict[str, str]:
    return {"preset": "pocket", "name": "first", **values}


def test_the_form_becomes_the_command(runs: Path, tmp_path: Path) -> None:
    out = str(runs / "first")
    made = order("measure", filled(check="yes"), root="data", runs=runs)
    assert made.arguments == [
        "-v", "measure", "--out", out, "--pictures", "example", "--preset", "pocket",
        "--set", "check=true", "--no-prefect", "--json",
    ]  # fmt: skip
    assert made.outputs == {"evaluation": out}
    mine, other = runs / "mine", tmp_path / "other"
    (mine / "references").mkdir(parents=True)
    other.mkdir()
    values = filled(pictures="mine", references=str(other), layout="scr")
    made = order("measure", values, root="data", runs=runs, others=[other])
    for words in (["--pictures", str(mine)], ["--references", str(other)], ["--set", "layout=scr"]):
        at = made.arguments.index(words[1])
        assert made.arguments[at - 1 : at + 1] == words


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pictures": "/etc/passwd"}, "Table or folder of pictures: '/etc/passwd' lies in no"),
        ({"pictures": "../x.csv"}, "lies in no folder of this studio"),
        ({"pictures": "link.csv"}, "lies in no folder of this studio"),
        ({"pictures": ".studio/jobs"}, "lies in no folder of this studio"),
        ({"pictures": "s3://bucket/x.csv"}, "there is no"),
        ({"pictures": "gone.csv"}, "there is no"),
        ({"pictures": "a.csv", "references": "/etc"}, "Folder of the subjects: '/etc' lies in no"),
        ({"pictures": "a.csv", "settings": "references=/etc"}, "references: '/etc' lies in no"),
        ({"pictures": "a.csv", "settings": "within=/"}, "within: '/' lies in no"),
        ({"settings": "lite=/tmp"}, "lite: '/tmp' lies in no"),
        ({"name": "taken"}, "is no measurement"),
        ({"layout": "psr"}, "Public benchmark: got 'psr'"),
    ],
)
def test_nothing_is_read_outside_the_studios_folders(
    runs: Path, tmp_path: Path, values: dict[str, str], said: str
) -> None:
    (runs / "taken").mkdir()
    (runs / ".studio" / "jobs").mkdir(parents=True)
    (runs / "a.csv").touch()
    (tmp_path / "x.csv").touch()
    (runs / "link.csv").symlink_to(tmp_path / "x.csv")
    with pytest.raises(UserError, match=re.escape(said)):
        order("measure", filled(**values), root="data", runs=runs)


def client_of(folder: Path) -> Client:
    small_version(folder / "data")
    return Client(folder / "data")


def test_tables_are_offered_and_a_result_is_shown_worst_first(runs: Path, tmp_path: Path) -> None:
    client = client_of(tmp_path)
    shown = {"good": [RIGHT] * 3, "bad": [DOUBLED, RIGHT, MISSING], "third": [MISSING] * 3}
    table = fp.write_rows(runs / "mine", shown)
    for out in ("judged", "alone"):
        measure(fp.request(table, runs / out))
        lines = table.read_text().splitlines()
        table.write_text("".join(f"{line}\n" for line in lines if '"bad"' in line))
    assert find_tables(client.app.state.studio.config) == ["mine/pictures.jsonl"]
    page = client.page("/jobs").text
    assert (
        '<option value="mine/pictures.jsonl">' in page
        and 'name="check" value="yes" checked' in page
    )
    ids = {one.path.name: one.id for one in find_runs(client.app.state.studio.config).evaluations}
    page = client.page(f"/evaluations/{ids['judged']}?metric=failed").text
    for text in ('<th scope="col">good</th>', '<th scope="col">bad</th>', "<b>third</b>"):
        assert text in page
    assert "Paint it" not in page and str(table) in page
    assert "change in bad&#39;s favour" in page or "change in bad's favour" in page
    addresses = re.findall(r'src="(/evaluations/[^"]+)"', page)
    assert any("model%203" in one or "model 3" in one for one in addresses)
    for address in addresses:
        assert client.http.get(address).headers["content-type"].startswith("image/")
    alone = client.page(f"/evaluations/{ids['alone']}?metric=failed").text
    prompts = re.findall(r'<h3 id="[^"]+">a disc and a square (\d)</h3>', alone)
    assert prompts[-1] == "1", "the one without a fault comes last"


@pytest.mark.slow
def test_from_the_form_to_the_result(runs: Path, tmp_path: Path) -> None:
    """The real command on the table that ships, by the embedded judge."""
    client = client_of(tmp_path)
    small = "measure.composites=2\nevaluate.resamples=100"
    answer = client.form("/jobs/start/measure", **filled(check="yes", settings=small))
    assert answer.status_code == 303
    where = answer.headers["location"]
    deadline = time.monotonic() + 600
    while (told := client.get(f"{where}/state").json())["active"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
    assert told["state"] == "done", told["log"]
    assert "24 pictures of 12 scenes; failed subjects: careful 0.0%" in told["summary"]
    done = {one["phase"] for one in told["progress"] if one["done"] == one["total"]}
    assert {"check the judge", "judge"} <= done
    page = client.page(told["page"]).text
    assert "careless" in page and "foreign" in page and "judge is not fit" in told["summary"]
