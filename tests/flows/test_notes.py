"""What a command says while it works: something at once, one line for each kind of note, nothing of
libraries in between."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import run
from PIL import Image
from toy_root import TOY_CLI, Toy

from focusdpo.flows.build.sources import notes_by_kind
from focusdpo.flows.cli import JOBS
from focusdpo.flows.console import WAITING, Notes, waiting
from focusdpo.flows.program import COMMANDS
from focusdpo.model.objective_registry import OBJECTIVES
from focusdpo.pipeline.subjects.ingest import Problem

Capture = pytest.CaptureFixture[str]
HELD = """
import select, sys
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == "focusdpo.flows.program":
            select.select([sys.stdin], [], [], 60)
sys.meta_path.insert(0, Held())
from focusdpo.flows.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["train", "generate"], ids=["a job", "another"])
def test_a_command_says_that_it_has_begun_before_it_is_imported(command: str) -> None:
    assert ("train" in JOBS, "generate" in JOBS) == (True, False)
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, command, "--nonsense"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == f"{command} ...\n"
    assert process.poll() is None, "its imports are held until now"
    process.communicate("go on\n")
    assert process.returncode == 2


def test_a_fast_command_says_its_own_words_alone(toy: Toy) -> None:
    ended = subprocess.run([*TOY_CLI, "--version"], capture_output=True, text=True, check=True)
    assert not ended.stderr


@pytest.fixture
def notes() -> Iterator[Notes]:
    """The log of a command line, of loggers that other tests do not have."""
    made = Notes()
    loggers = [logging.getLogger(name) for name in ("focusdpo.x", "library", "py.warnings")]
    for logger in loggers:
        logger.addHandler(made)
        logger.propagate = False
    yield made
    for logger in loggers:
        logger.removeHandler(made)
        logger.propagate = True


def test_one_line_for_each_kind_of_note(notes: Notes, capsys: Capture) -> None:
    log = logging.getLogger("focusdpo.x")
    for at in range(12):
        log.warning("picture %d has no alpha", at)
        log.warning("%s: %s", "root", "few pairs" if at % 2 else "steps")
    log.error("something else")
    notes.close()
    assert capsys.readouterr().err.splitlines() == [
        "warning: picture 0 has no alpha",
        "warning: root: steps",
        "warning: root: few pairs",
        "error: something else",
        "11 more like this: picture 0 has no alpha (-v tells each)",
    ]


def test_libraries_warn_in_vain_and_fail_aloud(notes: Notes, capsys: Capture) -> None:
    logging.getLogger("library").warning("torch_dtype is deprecated")
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("the image processor will be fast in v9", stacklevel=1)
    logging.captureWarnings(False)
    logging.getLogger("library").error("out of memory")
    assert capsys.readouterr().err == "error: out of memory\n"


def test_what_is_waited_for_is_said_when_it_takes_longer(capsys: Capture) -> None:
    handler = Notes()
    WAITING.addHandler(handler)
    WAITING.setLevel(logging.INFO)
    with waiting("loading the judge"):
        assert not capsys.readouterr().err
        time.sleep(1)
    with waiting("loading the captioner"):
        pass
    time.sleep(0.7)
    WAITING.removeHandler(handler)
    WAITING.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == "loading the judge ...\n"


def test_notes_on_subjects_are_gathered_by_their_kind() -> None:
    notes = [
        *(("a", "0.jpg: the whole picture counts"), ("b", "1.jpg: the whole picture counts")),
        ("c", "300 pictures, the first 16 are used"),
        ("d", "40 pictures, the first 16 are used"),
        ("d", "x.heic: ignored, of another kind"),
    ]  # fmt: skip
    problems = [Problem(subject=name, message=text, fatal=False) for name, text in notes]
    assert list(notes_by_kind(problems)) == [
        "subject 'a': 0.jpg: the whole picture counts (also of 1 other subject: b)",
        "subject 'c': 300 pictures, the first 16 are used (also of 1 other subject: d)",
        "subject 'd': x.heic: ignored, of another kind",
    ]


def test_what_a_build_leaves_out_is_said_once(toy: Toy) -> None:
    (toy.subjects / "empty").mkdir()
    for name in ("red", "blue"):
        (toy.subjects / name / "notes.txt").write_text("x")
        Image.new("RGB", (9, 9)).save(toy.subjects / name / "small.tiff")
    ended = subprocess.run([*TOY_CLI, *toy.arguments], capture_output=True, text=True, timeout=300)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 3, said
    assert said.count("empty") == 1 + said.count(str(Path("subjects/empty"))), said
    assert "Traceback" not in said


def test_help_is_for_people(capsys: Capture) -> None:
    """No type of Python's in it; and `train` names every objective."""
    for words in COMMANDS:
        code, out, _ = run([*words.split(), "--help"], capsys)
        assert code == 0 and "typing." not in out and "Annotated" not in out, words
        if words == "train":
            assert [name for name in OBJECTIVES if f"{name}:" not in out] == []
