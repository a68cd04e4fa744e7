"""What a terminal shows: trouble of the system in a line, and nothing lost when it cannot show."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from in_process import run
from toy_root import TOY_CLI, Toy
from unprivileged import unprivileged

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.cli import run_program
from focusdpo.flows.commands.options import command
from focusdpo.flows.doctor import dataset_check
from focusdpo.store.versions import open_version

Capture = pytest.CaptureFixture[str]


def refused(arguments: list[str], path: Path | str, capsys: Capture) -> str:
    """The one line that a command ends in, which names the path."""
    code, _, err = run(arguments, capsys)
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("error: ") and str(path) in lines[0], err
    return lines[0]


@pytest.mark.usefixtures("built")
def test_a_file_where_a_folder_should_be(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    root = ["--root", str(toy.root)]
    for arguments in (
        ["train", *root, "--out", str(blocked / "run"), "--no-prefect"],
        ["train", *root, "--out", str(blocked), "--no-prefect"],
        ["report", *root, "--out", str(blocked / "report.html")],
        ["review", "export", *root, "--out", str(blocked / "reviews.jsonl")],
        ["export", "dataset", *root, "--out", str(blocked / "export"), "--allow-unlicensed"],
        ["dataset", "versions", "--root", str(blocked / "root")],
        [*toy.arguments[:2], str(blocked / "root"), *toy.arguments[3:]],
    ):
        line = refused(arguments, blocked, capsys)
        assert "folder" in line
    assert blocked.read_text() == "in the way"


@pytest.mark.usefixtures("built")
def test_what_another_user_keeps_to_himself(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    mine, adapter = tmp_path / "mine", tmp_path / "adapter"
    mine.mkdir(mode=0o700)
    adapter.mkdir(mode=0o700)
    root, page = ["--root", str(toy.root)], str(tmp_path / "r.html")
    painted = ["--reference", str(toy.subjects / "red" / "0.png"), "--class-name", "disc"]
    with unprivileged(tmp_path / "file"):
        for arguments, path in (
            (["train", *root, "--out", str(mine / "run"), "--no-prefect"], mine),
            (["train", *root, "--out", str(mine), "--no-prefect"], mine),
            (["report", "--train", str(adapter), "--out", page], adapter),
            (["report", *root, "--out", str(mine / "r.html")], mine),
            (["export", "adapter", "--adapter", str(adapter), "--out", "made"], adapter),
            (["generate", *painted, "--out", str(adapter / "a.png")], adapter),
        ):
            assert "permi" in refused(arguments, path, capsys).lower()
        shared = dataset_check(str(toy.root))
    assert shared.ok and "it can be read alone: train and evaluate from it" in shared.told
    assert "Errno" not in shared.told
    (toy.root / "versions").chmod(0o700)
    with unprivileged(tmp_path / "file"):
        for arguments in (
            ["dataset", "versions", *root],
            ["inspect", str(toy.root)],
            ["report", *root, "--out", page],
            ["train", *root, "--out", str(mine / "run"), "--no-prefect"],
        ):
            assert "permi" in refused(arguments, toy.root / "versions", capsys)


def test_an_error_of_the_system_without_a_path_is_ours() -> None:
    program = typer.Typer()

    @program.command()
    @command
    def broken(kind: Annotated[int, typer.Option()]) -> None:
        raise OSError(kind, os.strerror(kind))

    with pytest.raises(OSError, match="Connection reset"):
        run_program(program, "broken", ["--kind", str(errno.ECONNRESET)])
    with pytest.raises(SystemExit) as full:
        run_program(program, "broken", ["--kind", str(errno.ENOSPC)])
    assert full.value.code == 2


ABSENT = {
    "train": ["train", "--root", "absent", "--out", "made"],
    "version": ["train", "--root", "{root}", "--version", "0123", "--out", "made"],
    "retrain": ["retrain", "--root", "made", "--out", "made2", "--subjects", "absent"],
    "ablate": ["ablate", "--root", "absent", "--out", "made"],
    "build": ["build-dataset", "--root", "made", "--subjects", "absent"],
    "plan": ["build-dataset", "--root", "made", "--subjects", "absent", "--plan"],
    "demo": ["demo", "--out", "made", "--subjects", "absent"],
}


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", ABSENT)
def test_what_does_not_exist_is_refused_before_anything_is_made(
    name: str, toy: Toy, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [part.format(root=toy.root) for part in ABSENT[name]]
    line = refused([*arguments, "--prefect"], "0123" if name == "version" else "absent", capsys)
    assert any(remedy in line for remedy in ("run `", "folder", "there are"))
    assert sorted(tmp_path.rglob("*")) == before


def shell(line: str, toy: Toy, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of a shell, in which $RUN is the command line."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={**os.environ, "RUN": shlex.join(TOY_CLI), **environment},
        cwd=toy.root.parent,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "end",
    [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full", "2>&1 | true", "2>&1 | head -c1"],
)
@pytest.mark.slow
def test_a_run_goes_on_where_nobody_reads(end: str, toy: Toy) -> None:
    ended = shell(f"eval $RUN {shlex.join(toy.arguments)} {end}", toy)
    assert ended.returncode == 0, ended.stderr
    assert open_version(toy.root).samples("train")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.slow
def test_names_that_a_terminal_cannot_show(encoding: str, toy: Toy, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9-\xff-\xe7\x8c\xab-\x1b[2J\x07")
    toy.subjects.rename(strange)
    for folder, code in ((strange, 0), (strange / "none", 2)):
        ended = subprocess.run(
            [*TOY_CLI, *toy.arguments[:4], str(folder), *toy.arguments[5:]],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=300,
            check=False,
        )
        told = ended.stdout + ended.stderr
        assert ended.returncode == code, told
        assert b"\x1b" not in told and b"\x07" not in told and b"Traceback" not in told
    assert b"\\x1b[2J" in told


@pytest.mark.usefixtures("built")
def test_versions_by_the_beginning_of_their_id(toy: Toy, capsys: Capture) -> None:
    first = open_version(toy.root).id
    run([*toy.arguments, "--set", "generate.candidates=4"], capsys)
    second = open_version(toy.root).id
    assert open_version(toy.root, first[:5]).id == first
    code, out, _ = run(["dataset", "list", "--root", str(toy.root)], capsys)
    assert code == 0 and first in out and second in out and "  2 shards " in out
    diff = ["dataset", "diff", "--root", str(toy.root), "--json"]
    shortened = run([*diff, first[:5], second[:6]], capsys)
    assert shortened == run([*diff, first, second], capsys) and shortened[0] == 0
    with pytest.raises(UserError, match="no such version"):
        open_version(toy.root, first[:3])
    clone = toy.root / "versions" / f"{first[:4]}{'0' * 12}"
    shutil.copytree(toy.root / "versions" / first, clone)
    with pytest.raises(UserError, match=f"'{first[:4]}' may be any of .*{clone.name}"):
        open_version(toy.root, first[:4])


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that lies in a folder, with its time."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def test_a_plan_writes_nothing(toy: Toy, toy_made: Path, capsys: Capture) -> None:
    """Not even a root, or the individuals of the world; and it tells what the build does."""
    before = state(toy.root.parent)
    code, fresh, _ = run([*toy.arguments, "--plan"], capsys)
    assert code == 0 and "to compute: compose 6" in fresh
    code, _, err = run(["build-dataset", "--root", str(toy.root), "--plan"], capsys)
    assert code == 2 and "subjects is usable" in err, "the toy suite has no word for them"
    assert state(toy.root.parent) == before
    shutil.copytree(toy_made, toy.root)
    toy.add(yellow=("square", 60.0))
    before = state(toy.root.parent)
    code, more, _ = run([*toy.arguments, "--plan"], capsys)
    assert code == 0 and "yellow" in more
    assert state(toy.root.parent) == before
    assert run(toy.arguments, capsys)[1].splitlines()[0] == more.splitlines()[0]


def test_a_plan_that_leaves_subjects_out_has_code_3(toy: Toy, capsys: Capture) -> None:
    (toy.subjects / "red" / "0.png").write_bytes(b"")
    (toy.subjects / "red" / "1.png").write_bytes(b"")
    code, out, _ = run([*toy.arguments, "--plan"], capsys)
    assert code == 3 and "left out: red" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_cannot_be_written(toy: Toy, capsys: Capture) -> None:
    toy.root.mkdir(mode=0o500)
    code, _, err = run(toy.arguments, capsys)
    assert code == 2 and str(toy.root) in err


LOADING = """
import sys, threading, types, torch
from focusdpo.flows import cli, wiring

computes = threading.Event()

def build(*args, **kwargs):
    rows = torch.randn(512, 512)
    while True:
        computes.set()
        rows = torch.tanh(rows @ rows)

sys.modules["endless"] = types.SimpleNamespace(build=build, fingerprint=lambda *_: "endless")
wiring.SUITES["pocket"] = "endless"
wiring.Parts("pocket").load_beside(["generator"])
computes.wait()
sys.argv = ["focusdpo", "inspect", "nowhere"]
cli.main()
"""


@pytest.mark.slow
def test_an_error_while_models_load_beside_ends_with_its_line_and_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2, ended
    assert ended.stderr.splitlines()[-1].startswith("error: nowhere")
