"""Where the processes of `num_processes` compute, and what a machine has no room for."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_build import prepare
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import cli
from focusdpo.flows.commands.options import Parsed
from focusdpo.flows.config import BuildRun
from focusdpo.flows.fit import supply
from focusdpo.flows.fit.demand import Demand
from focusdpo.flows.fit.lost_card import card_is_lost
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.processes import worker_pool
from focusdpo.flows.processes.slots import Slot, available_cores, slots_of
from focusdpo.flows.processes.worker_pool import WorkerPool
from focusdpo.flows.settings import resolve


def checkpoints(device: str) -> ModelsConfig:
    run = resolve(BuildRun, {"root": "data", "preset": "flux-uno", "models": {"device": device}})
    assert run.models is not None
    return run.models


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5f")


def test_a_card_for_each_process(two_cards: None) -> None:
    auto = checkpoints("auto")
    assert [slot.card for slot in slots_of(2, auto)] == ["3", "GPU-5f"]
    assert [slot.card for slot in slots_of(0, auto)] == ["3", "GPU-5f"]
    assert [slot.card for slot in slots_of(1, auto)] == ["3"]
    with pytest.raises(UserError, match=r"num_processes=3.*2 are visible here \(3, GPU-5f\)"):
        slots_of(3, auto)
    with pytest.raises(UserError, match=r"models.device=cuda:1 names one card"):
        slots_of(2, checkpoints("cuda:1"))


def test_any_number_on_cores_with_a_part_of_them(two_cards: None) -> None:
    for family in ("pocket", checkpoints("cpu")):
        slots = slots_of(3, family)
        assert [slot.card for slot in slots] == [None] * 3
        threads = max(1, available_cores() // 3)
        assert {slot.variables["OMP_NUM_THREADS"] for slot in slots} == {str(threads)}
    assert len(slots_of(0, "pocket")) == 1


def test_under_a_launcher_or_ray_it_is_refused(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = resolve(BuildRun, toy.tree(num_processes=2, executor={"kind": "ray"}))
    with pytest.raises(UserError, match=r"num_processes=2 with executor.kind=ray"):
        prepare(run)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="a launcher has started 4 processes already"):
        slots_of(2, "pocket")


def test_main_memory_is_shared_and_cards_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    demand = Demand("build-dataset", "stage generate", {"backbone": 20 * gib}, host=30 * gib)
    machine = supply.Machine("cuda", 24 * gib, 24 * gib, 64 * gib, 64 * gib, 100 * gib)
    monkeypatch.setattr(supply, "demand_of", lambda *_: demand)
    monkeypatch.setattr(supply, "this_machine", lambda _: machine)
    supply.require_fit("build-dataset", checkpoints("auto"), processes=2)
    with pytest.raises(UserError, match=r"with num_processes=3, 90.0 GiB of main memory"):
        supply.require_fit("build-dataset", checkpoints("auto"), processes=3)


def test_what_leaves_a_process_without_its_card() -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert card_is_lost(lost) and card_is_lost(torch.AcceleratorError("device gone"))
    wrapped = RuntimeError("stage generate")
    wrapped.__cause__ = lost
    assert card_is_lost(wrapped)
    assert not card_is_lost(torch.OutOfMemoryError("CUDA out of memory"))
    assert not card_is_lost(RuntimeError("CUDA error: out of memory"))
    assert not card_is_lost(RuntimeError("the model choked")) and not card_is_lost(None)


def test_a_lost_card_ends_a_command_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> dict[str, Any]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def program(given: list[str], *, prog_name: str, obj: list[Any]) -> None:
        obj.append(Parsed(job, {}, False))

    with pytest.raises(SystemExit) as ended:
        cli.run_program(program, "focusdpo", ["evaluate"])  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in told
    assert "the card computes no more" in told and "CUDA_VISIBLE_DEVICES" in told


def test_a_process_without_its_card_does_not_fall_back_on_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_pool, "DEATHS", 1)
    work: Any = SimpleNamespace(each=list)
    ghost: WorkerPool[Any] = WorkerPool([Slot("card 7", "7")], operator.attrgetter, ("each",))
    with pytest.raises(UserError, match=r"no process is left.*torch sees no card 7"):
        list(ghost.results([work]))
    ghost.close()
