"""The demo app: driven in a browser on the pocket suite, fed with what it must refuse; the Space's
files agree with the package."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browsing import needs_browser, page_of, serious
from PIL import Image
from playwright.sync_api import Page, expect
from processes import free_ports
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.prompts import MOST_SUBJECTS
from focusdpo.flows.generate.demo_app import (
    MAX_PICTURES,
    MAX_PROMPT,
    DemoAppConfig,
    Handlers,
    _policy,
    build,
    licence_text,
    numbers_table,
)
from focusdpo.flows.generate.inference import read_about
from focusdpo.flows.generate.side_by_side import SideBySide, rows

ROOT = Path(__file__).parents[3]
SPACE = ROOT / "space"
HOSTILE = "<img src=x onerror=alert(1)>"


class Told(Exception):
    """Stands for gradio's own error."""


@pytest.fixture
def handlers(toy: Toy, tmp_path: Path) -> Handlers:
    (tmp_path / "shown").mkdir()
    return Handlers(SideBySide.of("pocket", None), tmp_path / "shown", Told)


def order(toy: Toy, *more: object, **changed: object) -> list[object]:
    """What the page sends: files, words, prompt, seed, count."""
    given = {
        "files": [str(toy.subjects / "red" / "0.png"), None, None],
        "words": ["disc", None, None],
        "rest": ["a disc on grey", 3, 2],
    } | changed
    return [*given["files"], *given["words"], *given["rest"]]  # type: ignore[misc]


def test_an_order_becomes_pictures_that_tell_how_they_were_made(
    handlers: Handlers, toy: Toy
) -> None:
    base, adapted, table = handlers.paint(*order(toy))
    assert [caption for _, caption in base] == ["seed 3", "seed 4"] and adapted == []
    about = read_about(base[1][0])
    assert about.seeds == (4,) and about.prompt == "a disc on grey"
    assert about.references[0].file == "0.png", "no path of the server goes along"
    for label in ("Matched identity", "Leakage margin", "Confusion rate", "Duplicate rate"):
        assert label in table


def test_a_subject_that_the_prompt_does_not_name_is_told(handlers: Handlers, toy: Toy) -> None:
    _, _, table = handlers.paint(*order(toy, rest=["a square on <b>grey</b>", 3, 1]))
    assert "<p>the disc is not in the prompt" in table and "<b>" not in table
    _, _, table = handlers.paint(*order(toy))
    assert "not in the prompt" not in table


def bomb(path: Path) -> None:
    """A PNG whose head says 30,000 x 30,000 pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000), 9)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def svg(path: Path) -> None:
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')


def page(path: Path) -> None:
    path.write_text("<html><script>alert(1)</script>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    sink = io.BytesIO()
    Image.radial_gradient("L").save(sink, format="PNG")
    path.write_bytes(sink.getvalue()[:-200])


def nothing(path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "900 megapixels|megapixels"),
        (svg, "not an image that can be read"),
        (page, "not an image that can be read"),
        (empty, "the file is empty"),
        (cut, "damaged or truncated"),
        (nothing, "nothing is visible"),
    ],
)
def test_uploads_that_are_no_pictures(
    handlers: Handlers, toy: Toy, tmp_path: Path, make, message: str
) -> None:
    """By their bytes, whatever their names say; the message is escaped and tells no path."""
    path = tmp_path / "secret-place" / f"{HOSTILE.replace('/', '')}.png"
    path.parent.mkdir()
    make(path)
    for ask in (
        lambda: handlers.paint(*order(toy, files=[str(path), None, None])),
        lambda: handlers.view(1, str(path), "disc"),
    ):
        with pytest.raises(Told, match=message) as told:
            ask()
        assert "<" not in str(told.value) and "secret-place" not in str(told.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"words": [None] * 3}, "subject 1: say what it is"),
        ({"words": ["disc", "square", None]}, "subject 2: give a picture of the square"),
        ({"files": [None] * 3, "words": [None] * 3}, "at least one subject"),
        ({"words": [HOSTILE, None, None]}, "the generator does not know it"),
        ({"rest": ["x" * 10_000, 0, 1]}, f"10000 characters, at most {MAX_PROMPT}"),
        ({"rest": ["a\x00b", 0, 1]}, "control character"),
        ({"rest": ["a", 0, MAX_PICTURES + 1]}, f"pictures: 1 to {MAX_PICTURES}"),
        ({"rest": ["a", 0, None]}, f"pictures: 1 to {MAX_PICTURES}"),
        ({"rest": ["a", -1, 1]}, "each from 0 to"),
    ],
)
def test_orders_that_cannot_be_painted(
    handlers: Handlers, toy: Toy, changed: dict, message: str
) -> None:
    with pytest.raises(Told, match=re.escape(message)) as told:
        handlers.paint(*order(toy, **changed))
    assert "<" not in str(told.value)


def test_old_pictures_go(handlers: Handlers, toy: Toy) -> None:
    (one, _), *_ = handlers.paint(*order(toy))[0]
    os.utime(one, (time.time() - 3600,) * 2)
    handlers.paint(*order(toy))
    assert not Path(one).exists() and len(list(handlers.folder.iterdir())) == 3


def test_words_of_others_are_escaped() -> None:
    assert "<img" not in numbers_table([HOSTILE], [(HOSTILE, HOSTILE, [HOSTILE])])
    with pytest.raises(UserError, match="absent or damaged"):
        licence_text("pocket", Path("/nonexistent"))


def test_a_metric_without_meaning_is_a_dash(toy: Toy) -> None:
    """One subject alone has no leakage."""
    sides = SideBySide.of("pocket", None).paint(
        "a disc on grey", [(toy.subjects / "red" / "0.png", "disc")], [0]
    )
    values = {label: told for label, _, told in rows(sides)}
    assert values["Leakage margin"] == values["Confusion rate"] == ["-"]
    assert values["Matched identity"] != ["-"]


@pytest.mark.slow
def test_the_app_is_built_with_its_limits(toy: Toy) -> None:
    blocks, folder = build(DemoAppConfig())
    with folder:
        assert not blocks.analytics_enabled
        files = [one for one in blocks.blocks.values() if type(one).__name__ == "File"]
        assert len(files) == MOST_SUBJECTS
        (prompt,) = [one for one in blocks.blocks.values() if type(one).__name__ == "Textbox"]
        assert prompt.max_length == MAX_PROMPT


HERE = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    ("at", "headers", "status"),
    [
        (None, HERE, 200),
        (None, {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        (None, {"host": "evil.example"}, 421),
        (None, {"host": "192.168.1.5:7860"}, 421),
        (None, {"host": "["}, 400),
        (None, HERE | {"origin": "http://evil.example"}, 403),
        (None, HERE | {"origin": "http://127.0.0.1:9999"}, 403),
        (None, HERE | {"origin": "null"}, 403),
        ("0.0.0.0", {"host": "192.168.1.5:7860"}, 200),
        ("0.0.0.0", {"host": "evil.example"}, 421),
        ("0.0.0.0", {"host": "me-focus.hf.space", "origin": "https://me-focus.hf.space"}, 200),
        ("0.0.0.0", {"host": "10.0.0.7:7860", "origin": "https://me-focus.hf.space"}, 200),
    ],
)
def test_foreign_hosts_and_origins_are_refused(
    monkeypatch: pytest.MonkeyPatch, at: str | None, headers: dict[str, str], status: int
) -> None:
    if at:
        monkeypatch.setenv("SPACE_HOST", "me-focus.hf.space")
    app = Starlette(
        routes=[Route("/", lambda _: PlainTextResponse("the app"), methods=["GET", "POST"])],
        middleware=[_policy(at)],
    )
    answer = TestClient(app).post("/", headers=headers)
    assert answer.status_code == status and (answer.text == "the app") == (status == 200)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")


def test_the_spaces_files_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert about["sdk"] == "gradio" and about["app_file"] == "app.py"
    assert (SPACE / about["app_file"]).is_file()
    assert about["license"] == project["license"].lower()
    assert len(about["short_description"]) <= 60
    (wanted,) = project["optional-dependencies"]["demo"]
    name, least = wanted.split(">=")
    version = tuple(map(int, about["sdk_version"].split(".")))
    assert name == "gradio" and version >= tuple(map(int, least.split(".")))
    least_python = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, about["python_version"].split("."))) >= tuple(
        map(int, least_python.split("."))
    )
    lines = (SPACE / "requirements.txt").read_text().split("\n")
    assert lines == [f"{project['name']}[demo]=={project['version']}", ""]
    assert f"focusdpo-{project['version']}-py3-none-any.whl" in (SPACE / "README.md").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """space/app.py as a Space runs it, with the adapter beside it."""
    folder = tmp_path_factory.mktemp("space")
    (port,) = free_ports(1)
    environment = {
        "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "NO_PROXY": "*",
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py")],
            env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            for _ in range(600):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    with opener.open(url, timeout=5) as answer:
                        policy = answer.headers["Content-Security-Policy"]
                        assert policy.startswith("default-src 'self'")
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)
        assert "share" not in (folder / "log").read_text(), "Gradio's word on public links"


def choose(shown: Page, at: int, file: Path, word: str) -> None:
    shown.locator(f"#file-{at} input[type=file]").set_input_files(file)
    box = shown.locator(f"#word-{at} input")
    box.click()
    box.fill(word)
    box.press("Enter")


@pytest.mark.slow
@needs_browser
def test_a_visitor_paints_and_is_told_what_is_wrong(address: str, tmp_path: Path) -> None:
    from focusdpo.pocket.world.world_subjects import WorldConfig, export

    export(tmp_path / "mine", WorldConfig(subjects=2, references=1, seed=5))
    files = sorted((tmp_path / "mine").glob("*/00.png"))
    words = [one.parent.name.rpartition("-")[0].replace("-", " ") for one in files]
    with page_of(address) as shown:
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        expect(shown.locator("#paint")).to_be_visible(timeout=60_000)
        for at, (file, word) in enumerate(zip(files, words, strict=True), start=1):
            choose(shown, at, file, word)
            expect(shown.locator(f"#view-{at} img")).to_be_visible(timeout=60_000)
        shown.locator("#prompt textarea, #prompt input").fill(f"a {words[0]} {HOSTILE} on snow")
        shown.locator("#paint").click()
        expect(shown.locator("#numbers table")).to_be_visible(timeout=240_000)
        for name in ("base", "adapted"):
            expect(shown.locator(f"#{name} img")).to_have_count(2, timeout=60_000)
        heads = shown.locator("#numbers thead th").all_inner_texts()
        assert heads == ["metric", "base", "FocusDPO"]
        sources = [
            shown.locator(f"#{name} img").first.get_attribute("src") for name in ("base", "adapted")
        ]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pictures = [opener.open(one, timeout=30).read() for one in sources]
        assert pictures[0] != pictures[1]
        (tmp_path / "base.png").write_bytes(pictures[0])
        about = read_about(tmp_path / "base.png")
        assert about.class_names == tuple(words) and about.adapter is None
        assert HOSTILE in about.prompt
        assert serious(shown) == []
        svg(tmp_path / "trick.png")
        shown.get_by_label("Clear").first.click()
        choose(shown, 1, tmp_path / "trick.png", words[0])
        expect(shown.get_by_text("not an image that can be read").first).to_be_visible(
            timeout=60_000
        )
        assert not [one for one in asked if not one.startswith((address, "data:", "blob:"))]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "status"), [(10_000, 200), (11_000_000, 413)])
def test_large_files_are_refused_on_their_way(address: str, size: int, status: int) -> None:
    """Before they are whole on the server's disk."""
    mark = "b0undary"
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="../../x.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + bytes(size) + f"\r\n--{mark}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}gradio_api/upload",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={mark}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            found = answer.status
            (path,) = json.load(answer)
            assert Path(path).name == "x.png" and ".." not in path
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("gradio"), "pip install -e '.[dev]'"
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'focusdpo\[demo\]'"):
        build(DemoAppConfig())
