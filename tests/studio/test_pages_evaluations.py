"""Evaluations in the studio: leaderboard, worst scenes first, and pictures of its folder alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from studio_client import Client
from studio_runs import SCENES, make_evaluation

from focusdpo.data_schemas.images import encode_png
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.studio.run_reading import find_runs


def client_of(folder: Path) -> Client:
    return Client(folder / "root", folder / "runs")


def ids_of(client: Client) -> dict[str, str]:
    found = find_runs(client.app.state.studio.config)
    return {one.path.name: one.id for one in found.evaluations}


def test_the_leaderboard_puts_the_best_adapter_first(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "runs/weak", gain=0.01)
    strong = EvaluationFolder(make_evaluation(tmp_path / "runs/strong", gain=0.2))
    client = client_of(tmp_path)
    page = client.page("/evaluations").text
    names = re.findall(r'<a href="/evaluations/\w+\?metric=identity">runs/(\w+)</a>', page)
    assert names == ["strong", "weak"]
    wanted = ("identity", "all", "adapter")
    row = next(r for r in strong.rows if (r.metric, r.group, r.model) == wanted)
    assert f"{row.mean:.3f}" in page and f"[{row.low:.3f}, {row.high:.3f}]" in page
    assert "verdict better" in page
    assert "verdict undecided" in page
    assert client.page("/evaluations?metric=luck").status_code == 400
    assert "None of these measured it" in client.page("/evaluations?metric=hue_error").text


def test_scenes_come_worst_first_beside_those_of_others(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "runs/one")
    make_evaluation(tmp_path / "runs/two", gain=0.1)
    client = client_of(tmp_path)
    ids = ids_of(client)
    page = client.page(f"/evaluations/{ids['one']}?with={ids['two']}").text
    order = re.findall(r'id="scene-(scene\d\d)"', page)
    assert order[0] == "scene00" and order[1:4] == ["scene01", "scene02", "scene03"]
    assert page.count("<b>runs/two</b>") == len(order) == 12
    best = client.page(f"/evaluations/{ids['one']}?order=best").text
    assert re.findall(r'id="scene-(scene\d\d)"', best)[0] == f"scene{SCENES - 1:02d}"
    for address in re.findall(r'src="(/evaluations/[^"]+)"', page):
        assert client.http.get(address).headers["content-type"].startswith("image/")


@pytest.mark.parametrize("name", ["../../secret.png", "{secret}", "images/link.png", "images"])
def test_a_record_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    import numpy as np

    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(np.zeros((32, 32, 3), np.uint8)))
    out = make_evaluation(tmp_path / "runs/one", image=name.format(secret=secret))
    (out / "images/link.png").symlink_to(secret)
    client = client_of(tmp_path)
    answer = client.page(f"/evaluations/{ids_of(client)['one']}/pictures/scene00/adapter")
    assert answer.status_code in (400, 404)
    assert "gone" in answer.text or "which is outside" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_a_file_that_is_no_picture_is_not_served(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "runs/one")
    (out / "images/adapter/scene00-0.png").write_text("<svg onload=alert(1)>")
    client = client_of(tmp_path)
    answer = client.page(f"/evaluations/{ids_of(client)['one']}/pictures/scene00/adapter")
    assert answer.status_code == 404 and "onload=alert(1)>" not in answer.text


def test_a_damaged_evaluation_says_so(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "runs/one")
    (out / "rows.json").write_text("[{")
    client = client_of(tmp_path)
    answer = client.page("/evaluations")
    assert answer.status_code == 400 and "rows.json: cannot be read" in answer.text
