"""A run, an adapter, an evaluation given in each other's place: refused by what they are, and
nothing in them is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated import evaluation_folder
from in_process import run

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.provenance import ADAPTER_FOLDER, EVALUATION, TRAINING_RUN, require_kind

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A training run, as far as its names go."""
    folder = tmp_path / "trained"
    (folder / "adapter").mkdir(parents=True)
    for name in ("run.yaml", "run.json", "adapter/adapter.json"):
        (folder / name).write_text("{}")
    (folder / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    return evaluation_folder(tmp_path / "evaluated")


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_called_what_it_is_and_the_one_that_was_meant_named(
    trained: Path, evaluated: Path, tmp_path: Path
) -> None:
    def refusal(folder: Path, wanted: str) -> str:
        with pytest.raises(UserError) as error:
            require_kind(folder, wanted)
        return str(error.value)

    adapter = trained / "adapter"
    assert refusal(trained, ADAPTER_FOLDER) == (
        f"{trained} is a training run, not an adapter; its adapter is {adapter}"
    )
    assert refusal(adapter, TRAINING_RUN) == (
        f"{adapter} is an adapter, not a training run; the run is {trained}"
    )
    assert refusal(evaluated, TRAINING_RUN) == f"{evaluated} is an evaluation, not a training run"
    for folder, kind in ((trained, TRAINING_RUN), (adapter, ADAPTER_FOLDER)):
        require_kind(folder, kind)
    require_kind(tmp_path / "absent", EVALUATION)  # told by who reads it


def test_no_command_takes_one_for_another(
    trained: Path, evaluated: Path, tmp_path: Path, capsys: Capture
) -> None:
    page, out = str(tmp_path / "page.html"), str(tmp_path / "out")
    picture = ["--reference", page, "--class-name", "dog"]
    for command in (
        ["evaluate", "--no-prefect", "--adapter", str(trained), "--out", out],
        ["export", "adapter", "--adapter", str(trained), "--out", out],
        ["generate", *picture, "--adapter", str(trained), "--out", out],
        ["report", "--evaluate", str(trained), "--out", page],
        ["report", "--compare", str(trained), str(evaluated), "--out", page],
        ["report", "--train", str(evaluated), "--out", page],
    ):
        code, _, err = run(command, capsys)
        assert code == 2 and " is a" in err and ", not a" in err, (command, err)
        assert not Path(page).exists() and not Path(out).exists()


def test_a_command_overwrites_no_other_commands_folder(
    trained: Path, evaluated: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapter = ["--adapter", str(trained / "adapter")]
    before = bytes_in(trained), bytes_in(evaluated)
    code, _, err = run(["evaluate", "--no-prefect", *adapter, "--out", str(trained)], capsys)
    assert code == 2 and f"--out {trained} is a training run and stays as it is" in err
    assert (bytes_in(trained), bytes_in(evaluated)) == before
