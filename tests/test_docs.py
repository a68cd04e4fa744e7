"""What README and docs say is so: links lead somewhere, commands, options, settings, files and
modules exist, and the site builds without a warning, from this machine alone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from browsing import needs_browser, page_of, serious
from named_places import absent_imports, absent_places, is_there

from benchmarks.__main__ import bench

ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "docs" / "hooks"
sys.path.append(str(HOOKS))

import python_pages  # noqa: E402
from command_pages import root_command  # noqa: E402
from settings_pages import paths, runs  # noqa: E402

from focusdpo.flows import config  # noqa: E402

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTIONS = {*config.SECTIONS, "alert"}
FILE_ENDINGS = {"html", "json", "py", "md", "yaml", "png", "csv", "log", "jsonl", "prom", "parquet"}
EVENTS = ("focusdpo.dataset.", "focusdpo.adapter.", "focusdpo.task.")
"""Names of events that the flows send; docs/operations.md lists them."""
PLACEHOLDER = re.compile(r"^(\.\.\.|…|[A-Z][A-Z_]*(\.\.\.)?)$")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_lines(text: str) -> Iterator[str]:
    """Logical lines of code blocks: continued ones joined."""
    blocks = [found[3] for found in FENCE.finditer(text)]
    blocks += [found[0] for found in INDENTED.finditer(FENCE.sub("", text))]
    for block in blocks:
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def command_of(line: str) -> list[str] | None:
    """The words after `focusdpo` of a shell line that runs it."""
    plain = re.sub(r"^\s*(\$ )?((export )?\w+=\S+ )*(ray job submit -- )?", "", line)
    found = re.match(r"(?:\.venv/bin/)?focusdpo (.*)", plain)
    if not found:
        return None
    return shlex.split(re.split(r"\s[|>&;]|;\s", found[1])[0], comments=True)


def problem(words: list[str]) -> str | None:
    """What of a command line does not exist, if anything."""
    command: Any = root_command()
    told: list[str] = []
    rest = list(words)
    while hasattr(command, "commands"):
        while rest and rest[0].startswith("-"):
            if bad := _unknown(command, rest.pop(0)):
                return bad
            if rest and rest[0].endswith((".json", ".jsonl")):
                rest.pop(0)
        if not rest or PLACEHOLDER.match(rest[0]):
            return None
        names = rest[0].split("|")  # `subjects add|update|remove|list`
        if missing := [name for name in names if name not in command.commands]:
            return f"no command {' '.join([*told, missing[0]])}"
        told.append(rest.pop(0))
        command = command.commands[names[0]]
    for at, word in enumerate(rest):
        if word.startswith("--") and (bad := _unknown(command, word.split("=")[0])):
            return f"{' '.join(told)}: {bad}"
        if word == "--set" and (bad := _unset(told[0], [*rest, ""][at + 1])):
            return f"{' '.join(told)}: {bad}"
    return None


def _unknown(command: Any, option: str) -> str | None:
    known = {"--help"}.union(*([*one.opts, *one.secondary_opts] for one in command.params))
    return None if option in known or option.startswith("--{") else f"no option {option}"


def _unset(command: str, setting: str) -> str | None:
    field = setting.split("=")[0]
    if command not in runs() or PLACEHOLDER.match(field) or field == "SECTION.FIELD":
        return None
    return None if is_setting(field, [runs()[command]]) else f"no setting {field}"


def is_setting(field: str, models: list[Any]) -> bool:
    """Whether a dotted name is one of these runs', or a key of a mapping in them."""
    known = {path for model in models for path in paths(model)}
    return field in known or field.rpartition(".")[0] in known - SECTIONS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_relative_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (page.parent / target.partition("#")[0]).resolve()
        if not path.exists() and str(path.relative_to(ROOT)) not in made():
            missing.append(target)
    assert missing == []


def made() -> set[str]:
    """Pages that the site makes while it is built."""
    names = ("commands", "settings", *python_pages.PAGES)
    return {
        *(f"docs/reference/{name}.md" for name in names),
        *(f"docs/{name}.md" for name in ("citation", "changelog", "rules", "readme")),
    }


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    lines = [words for line in code_lines(text) if (words := command_of(line)) is not None]
    inline = [" ".join(one.split()) for one in INLINE.findall(FENCE.sub("", text))]
    lines += [words for one in inline if (words := command_of(one)) is not None]
    assert [bad for words in lines if (bad := problem(words))] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_settings_exist(page: Path) -> None:
    wrong = []
    for code in INLINE.findall(FENCE.sub("", page.read_text("utf-8"))):
        found = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)(=.*)?", code)
        if not found or found[1].split(".")[0] not in SECTIONS:
            continue
        if found[1].rpartition(".")[2] not in FILE_ENDINGS:
            wrong += [found[1]] if not is_setting(found[1], list(runs().values())) else []
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_modules_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    assert absent_places(FENCE.sub("", text)) == []
    dotted = re.findall(r"\bfocusdpo(?:\.\w+)+", text)
    assert [name for name in dotted if not name.startswith(EVENTS) and not is_there(name)] == []
    code = [block[3] for block in FENCE.finditer(text) if block[2] == "python"]
    assert [name for block in code for name in absent_imports(block)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_benchmarks_and_their_options_exist(page: Path) -> None:
    """They are no command of `focusdpo`: `python -m benchmarks`, with the options of its own."""
    program = typer.Typer()
    program.command()(bench)
    command: Any = typer.main.get_command(program)
    used = re.findall(r"-m benchmarks ([^`\n#]*)", page.read_text("utf-8"))
    options = [word for words in used for word in re.findall(r"(?<!\S)--[a-z-]+", words)]
    assert [bad for option in options if (bad := _unknown(command, option))] == []
    modules = re.findall(r"-m (benchmarks\.\w+)", page.read_text("utf-8"))
    assert [name for name in modules if not is_there(f"focusdpo.{name}")] == []


def test_the_first_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 60


def test_the_checks_see_what_is_wrong() -> None:
    places = (
        "`store/nothing.py`, `store/keys.py:nothing`, `store/`, `store/artefacts.py:Store.open`"
    )
    assert absent_places(places) == ["store/nothing.py", "store/keys.py:nothing"]
    code = "from focusdpo.store.keys import nothing\nfrom focusdpo.store import keys, nowhere\n"
    assert absent_imports(code) == ["focusdpo.store.keys.nothing", "focusdpo.store.nowhere"]
    assert problem(["trian", "--root", "x"]) == "no command trian"
    assert problem(["train", "--rot", "x"]) == "train: no option --rot"
    assert problem(["subjects", "add|drop", "x"]) == "no command subjects drop"
    wrong = ["train", "--root", "x", "--set", "train.stepz=3"]
    assert problem(wrong) == "train: no setting train.stepz"
    assert problem(["train", "--set", "train.steps=3", "--no-prefect"]) is None
    assert command_of("  $ A=1 .venv/bin/focusdpo gc --root 'a b'  # why") == [
        "gc",
        "--root",
        "a b",
    ]
    assert list(code_lines("```sh\na \\\n  b\n```\n\n    c\n")) == ["a  b", "    c"]


def test_complete_commands_of_the_pages_are_accepted() -> None:
    """Those of the quick start, with all that they need."""
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    lines = [words for line in code_lines(text) if (words := command_of(line)) is not None]
    assert len(lines) >= 5
    for words in lines:
        command = root_command().commands[words[0]]
        with command.make_context(words[0], words[1:]) as context:
            assert context.info_name == words[0]


class Outside(HTMLParser):
    """What a page fetches from other hosts when it is opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        fetched = [values.get("src", "")] + ([values.get("href", "")] if tag == "link" else [])
        self.found += [one for one in fetched if one.startswith(("http:", "https:", "//"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_the_site_is_built_strictly_and_asks_no_other_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert [one for page in pages for one in Outside(page.read_text("utf-8")).found] == []
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles)


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


ALL_TABLES_SCROLL = """[...document.querySelectorAll(".md-typeset table:not([class])")].every(
    (table) => table.closest(".md-typeset__scrollwrap")?.tabIndex === 0)"""
"""The theme's script has put every table into a box, and ours has made the box reachable."""
LOOKED_AT = ("index", "datasets", "objectives", "reference/settings")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_site_in_a_browser(served: str, dark: bool) -> None:
    """axe finds nothing serious, the search finds, and no page asks another host."""
    asked: list[str] = []
    for name in LOOKED_AT:
        with page_of(f"{served}/{name}.html", dark=dark) as page:
            page.on("request", lambda request: asked.append(request.url))
            page.reload(wait_until="networkidle")
            until = time.monotonic() + 20  # by `evaluate`: the page's policy forbids waiting code
            while not page.evaluate(ALL_TABLES_SCROLL) and time.monotonic() < until:
                page.wait_for_timeout(100)
            assert serious(page) == [], name
    with page_of(f"{served}/index.html", dark=dark) as page:
        page.locator("input.md-search__input").first.fill("purge")
        found = page.locator(".md-search-result__link[href*='datasets.html']")
        found.first.wait_for(timeout=20_000)
    assert [url for url in asked if not url.startswith(served)] == []


def test_references_are_whole(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text("utf-8").replace("<wbr>", "")
    # Sections with the fields of one before: said once.
    alike = tuple(
        f"{path}." for path in re.findall(r"<code>([\w.]+)[^<]*</code> has the", settings)
    )
    for model in runs().values():
        missing = [path for path in paths(model) if path not in settings]
        assert [path for path in missing if not path.startswith(alike)] == []
    for name in ("train.objective.beta", "pair.min_drop", "executor.kind", "held_out.split"):
        assert f">{name}<" in settings, name
    commands = (site / "reference" / "commands.html").read_text("utf-8")
    for name, command in root_command().commands.items():
        assert f">focusdpo {name}<" in commands
        assert all(option in commands for one in command.params for option in one.opts)
    store = (site / "reference" / "datasets.html").read_text("utf-8")
    assert "focusdpo.store.artefacts.Store.open" in store and "An artefact is one file" in store


def test_formulas_are_drawn(site: Path) -> None:
    page = (site / "objectives.html").read_text("utf-8")
    assert page.count("<math") > 30 and "arithmatex" not in page
