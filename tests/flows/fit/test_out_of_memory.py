"""The end of a card's memory: exit code 2, what helps, and no partition that is given up for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from focusdpo.flows import cli
from focusdpo.flows.build.builder import Builder
from focusdpo.flows.commands.options import Parsed
from focusdpo.flows.config import BuildRun, TrainRun
from focusdpo.flows.fit.out_of_memory import out_of_memory, what_helps

FULL = "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 23.6 GiB"


def train_run(tmp_path: Path, **train: Any) -> TrainRun:
    return TrainRun(
        preset="flux-uno",
        root=str(tmp_path / "root"),
        out=str(tmp_path / "out"),
        train=train,  # type: ignore[arg-type]
    )


def test_it_ends_with_code_2_and_three_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(tmp_path, gradient_checkpointing=False, micro_pairs=2)

    def job(run: TrainRun) -> dict[str, Any]:
        raise torch.OutOfMemoryError(FULL)

    def program(given: list[str], *, prog_name: str, obj: list[Any]) -> None:
        obj.append(Parsed(job, {"run": run}, False))

    with pytest.raises(SystemExit) as ended:
        cli.run_program(program, "focusdpo", ["train"])  # type: ignore[arg-type]
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("--set ") == 3
    for setting in ("train.gradient_checkpointing=true", "train.memory=sequential"):
        assert setting in told
    assert "train.micro_pairs=1" in told and "goes on from there" in told
    assert "Traceback" not in told


def test_what_is_set_already_is_not_advised(tmp_path: Path) -> None:
    advice = list(what_helps(train_run(tmp_path, memory="sequential")))
    assert advice == ["models.backbone.offload=true", "models.backbone.quantise=4bit"]
    build = BuildRun(preset="sdxl-ip-adapter", root=str(tmp_path))
    assert next(iter(what_helps(build))) == "models.batch=2"


def test_it_is_known_by_its_type_and_its_words() -> None:
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    wrapped = RuntimeError("stage failed")
    wrapped.__cause__ = torch.OutOfMemoryError("x")
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("shapes do not fit"))


def test_a_build_stops_instead_of_giving_up_partition_after_partition() -> None:
    tried: list[str] = []

    class Full(Builder):
        def __init__(self) -> None:
            self.run = BuildRun(root="nowhere")

        def _run_unit(self, stage: str, partition: str, wait: bool) -> Any:
            tried.append(partition)
            raise torch.OutOfMemoryError(FULL)

    with pytest.raises(torch.OutOfMemoryError):
        Full().run_chunk("generate", ["a", "b"], lambda *args: None)
    assert tried == ["a"]
