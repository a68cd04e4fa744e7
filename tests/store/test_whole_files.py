"""Files of runs: written whole by one function, and damage to them noticed by one."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_disk import no_file_beyond

from focusdpo.data_schemas.environment import me
from focusdpo.data_schemas.errors import Full, UserError
from focusdpo.store.keys import BESIDE, changed, digests_in, require_whole, sealed, unsealed
from focusdpo.store.local import make_folder, sweep_parts, write_whole

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "store": "the one place",
    "benchmarks": "figures, not runs",
    "pocket": "weights and pictures of the embedded world, made by their recipes",
    "sharing": "a whole folder, renamed when it is done",
    "model/training/checkpoint.py": "a whole folder, renamed when it is done",
    "model/training/encoded.py": "a copy that is kept: a full disk ends the keeping, not the run",
    "pipeline/subjects/registered_folders.py": "a folder that is made for the purpose",
    "studio/drafts.py": "an upload that has come whole, and a temporary folder",
    "studio/pages/several_page.py": "uploads on their way into a draft",
}
"""Where files may be written or renamed otherwise, and why."""


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    target.write_bytes(b"old")
    with no_file_beyond(10), pytest.raises(Full, match="run.json: cannot be written.*Free some"):
        write_whole(target, bytes(100))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_folder_that_was_taken_away_is_said_and_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone/run.json: cannot be written.*was taken away; run"):
        write_whole(tmp_path / "gone" / "run.json", b"new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="below, a file; choose another folder"):
        make_folder(tmp_path / "file" / "below")


def test_what_a_dead_process_began_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    host, pid, _ = me().split("~")
    below = tmp_path / "images"
    below.mkdir()
    dead, alive = (
        below / f".a.png.{host}~{one}~0.part" for one in (f"{pid}~1", me()[len(host) + 1 :])
    )
    other = below / ".mine.part"
    for path in (dead, alive, other):
        path.touch()
    sweep_parts(tmp_path)
    assert sorted(below.iterdir()) == sorted([alive, other])


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_in_a_sealed_file_is_noticed_or_changes_nothing(place: int, bit: int) -> None:
    values = {
        "kind": "run",
        "steps": 8,
        "final": {"loss": 0.25},
        "notes": ["ä"],
        BESIDE: {"a": "0f"},
    }
    data = bytearray(sealed(values))
    data[place % len(data)] ^= 1 << bit
    try:
        read = unsealed(bytes(data))
    except ValueError:
        return
    read = {name: one for name, one in read.items() if name in values}
    assert read == values  # white space, or the name of the seal itself


def test_what_is_beside_a_sealed_file_is_noticed_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("a.parquet", "adapter/b.json"):
        (tmp_path / name).write_bytes(name.encode())
    told = {BESIDE: digests_in(tmp_path, ["a.parquet", "adapter/b.json", "never"])}
    assert changed(tmp_path, told) == []
    (tmp_path / "a.parquet").write_bytes(b"a.parquex")
    (tmp_path / "adapter/b.json").unlink()
    assert changed(tmp_path, told) == ["a.parquet", "adapter/b.json"]
    with pytest.raises(UserError, match=r"b.json: damaged \(missing\); train again"):
        require_whole(tmp_path, told, "train again", ["adapter/b.json"])
    require_whole(tmp_path, told, "train again", ["never"])
    # What was written before there were checksums is taken as it is; a name leads nowhere outside.
    assert changed(tmp_path, {"steps": 8}) == []
    assert changed(tmp_path, {BESIDE: {"../x": "0f"}}) == ["../x"]


def test_the_seal_of_a_file_of_before_is_not_asked_for() -> None:
    assert unsealed(json.dumps({"a": 1}).encode()) == {"a": 1}


def test_final_files_are_written_by_one_function() -> None:
    found = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("tests/", "build/", ".")) or any(
            name == place or name.startswith(f"{place}/") for place in ELSEWHERE
        ):
            continue
        found += [f"{name}:{line}" for line in _other_writes(ast.parse(path.read_text("utf-8")))]
    assert found == []


def _other_writes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of = node.func.attr, node.func.value
        module = of.id if isinstance(of, ast.Name) else ""
        renames = name in ("replace", "rename") and len(node.args) == 1 and not node.keywords
        if (
            name in ("write_text", "write_bytes")
            or renames
            or (module, name) in {("os", "replace"), ("os", "rename"), ("shutil", "move")}
        ):
            yield node.lineno


def test_another_way_to_write_would_be_seen() -> None:
    text = "path.write_text('x')\ntemp.replace(path)\n'a'.replace('a', 'b')\nos.replace(a, b)\n"
    assert list(_other_writes(ast.parse(text))) == [1, 2, 4]
