"""Several processes: the reference policy is the base, gradients and runs are those of one process.

Two processes are started once for all of this file; what they do is in helpers/two_processes.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from tiny_backbone import tiny_backbone
from torch import Tensor
from two_processes import PAIRS, SETTINGS, WAYS, output_of, pairs, policy_backbone, run

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import policy_parameters
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.parallel import (
    Processes,
    Sharding,
    block_classes,
    shard_base,
    sharding_of,
)
from focusdpo.model.training.steps import backward_step
from focusdpo.store.samples import Sample

WEIGHTS = "adapter/pytorch_lora_weights.safetensors"
EVERY_WAY = [(w, c, m) for w in WAYS for c in (False, True) for m in ("joint", "sequential")]


@pytest.fixture(scope="module")
def two(pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have left."""
    out = tmp_path_factory.mktemp("two")
    script = Path(two_processes.__file__)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command = [sys.executable, *launch, str(out), str(pair_samples[0].store.root)]
    environment = dict(os.environ) | {"PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, check=False, timeout=550, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return out


@pytest.fixture(scope="module")
def found(two: Path) -> dict[str, Tensor]:
    return load_file(two / "found.safetensors")


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """The same in one process, all pairs at once; the reference is a model without any adapter."""
    given = pairs(range(PAIRS))
    base, backbone = tiny_backbone(), policy_backbone()
    base.transformer.double()
    with torch.no_grad():
        outputs = {"reference": output_of(base, given), "policy": output_of(backbone, given)}
    backward_step(backbone, *given, TrainConfig.model_validate(SETTINGS))
    parameters = policy_parameters(backbone.transformer).values()
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    held = torch.tensor(sum(p.numel() for p in backbone.transformer.parameters()))
    policy = torch.tensor(sum(p.numel() for p in parameters))
    return {**outputs, "gradient": gradient, "held": held, "lora": policy}


@pytest.mark.parametrize(("way", "checkpointing", "memory"), EVERY_WAY)
@pytest.mark.slow
def test_reference_and_gradient_are_those_of_one_process(
    found: dict[str, Tensor],
    alone: dict[str, Tensor],
    way: str,
    checkpointing: bool,
    memory: str,
) -> None:
    ours = {
        name: found[f"{way}.{checkpointing}.{memory}.{name}"]
        for name in ("reference", "policy", "gradient")
    }
    assert (alone["policy"] - alone["reference"]).abs().max() > 0.01
    for name, value in ours.items():
        scale = alone[name].abs().max()
        torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-10 * float(scale))


def test_shares_of_the_base(found: dict[str, Tensor], alone: dict[str, Tensor]) -> None:
    """Sharded, each process holds about half of the base, and all of the LoRA."""
    assert found["ddp.False.joint.held"] == alone["held"]
    base = (alone["held"] - alone["lora"]).item()
    share = (found["shard.False.joint.held"] - alone["lora"]).item()
    assert 0.5 * base <= share < 0.52 * base


@pytest.fixture(scope="module")
def single(pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single")
    run(pair_samples, out)
    return out


def rows(folder: Path) -> list[dict[str, Any]]:
    table = pq.read_table(folder / "steps.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in table]


@pytest.mark.parametrize("name", ["plain", "shard", "sequential", "changed"])
def test_a_run_follows_the_course_of_one_process(two: Path, single: Path, name: str) -> None:
    """changed: two steps whole and joint, two in shares and sequential, the last two as before."""
    for ours, theirs in zip(rows(two / name), rows(single), strict=True):
        for column, value in theirs.items():
            # A logit is beta times a difference of errors that are nearly equal here.
            close = 5e-5 if column == "logit" else 1e-5
            assert ours[column] == pytest.approx(value, rel=2e-3, abs=close, nan_ok=True), column
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (two / name, single))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5)


def test_a_sharded_run_goes_on_to_the_bit(two: Path) -> None:
    names = (WEIGHTS, "adapter/adapter.json", "focus.safetensors", "config.json")
    for name in names:
        assert (two / "resumed" / name).read_bytes() == (two / "shard" / name).read_bytes(), name
    assert repr(rows(two / "resumed")) == repr(rows(two / "shard"))


def test_pairs_are_encoded_with_a_sharded_base_too(two: Path) -> None:
    """Patch quality reads the base's features, batch by batch."""
    assert len(rows(two / "patches")) == 6


ACCELERATE = {
    "WORLD_SIZE": "2",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}
DEEPSPEED = {
    "WORLD_SIZE": "2",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
}


def test_what_sharding_means_under_a_launcher() -> None:
    assert sharding_of("auto", {}) is None
    assert sharding_of("auto", {"WORLD_SIZE": "2"}) is None
    assert sharding_of("full", {"WORLD_SIZE": "2"}) == Sharding()
    assert sharding_of("none", ACCELERATE) is None
    assert sharding_of("auto", ACCELERATE) == Sharding((), True)
    chosen = {"FSDP_TRANSFORMER_CLS_TO_WRAP": "One, Two", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    assert sharding_of("auto", ACCELERATE | chosen) == Sharding(("One", "Two"), False)
    assert sharding_of("auto", DEEPSPEED) == Sharding()
    assert sharding_of("auto", DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}) is None


@pytest.mark.parametrize(
    ("shard", "environ", "said"),
    [
        ("full", {}, "there is one. Start several"),
        ("auto", ACCELERATE | {"WORLD_SIZE": "1"}, "there is one. Start several"),
        ("auto", ACCELERATE | {"FSDP_VERSION": "1"}, "fsdp_version: 1; write 2"),
        ("auto", ACCELERATE | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "in the first process"),
        ("auto", ACCELERATE | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true"),
        (
            "none",
            ACCELERATE | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "train.gradient_checkpointing",
        ),
        ("auto", DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init: true"),
        (
            "auto",
            DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            "offload_optimizer_device: cpu",
        ),
    ],
)
def test_settings_of_a_launcher_that_would_be_ignored(
    shard: str, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sharding_of(shard, environ)


def test_blocks_to_gather(backbone: FluxBackbone) -> None:
    names = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    assert block_classes(backbone.transformer) == names
    assert block_classes(backbone.transformer, names[:1]) == names[:1]
    with pytest.raises(UserError, match="has no block of class Blok; correct"):
        block_classes(backbone.transformer, ["Blok"])
    with pytest.raises(UserError, match=r"Linear has no block of class \(none is named\)"):
        block_classes(torch.nn.Linear(2, 2))


def test_a_quantised_base_is_refused(backbone: FluxBackbone) -> None:
    layer = backbone.transformer.proj_out
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=r"proj_out.weight is torch.uint8; a quantised base"):
        shard_base(backbone.transformer, (), Sharding())


def test_one_process_alone() -> None:
    processes = Processes(torch.device("cpu"))
    assert (processes.num, processes.index, processes.is_main) == (1, 0, True)
    assert processes.share_of(5) == range(5)
    assert processes.mean(0.1) == 0.1
    processes.require_agreement({"anything": 1})
    value = torch.tensor([0.3])
    processes.average([value])
    assert torch.equal(value, torch.tensor([0.3]))


def test_pairs_that_do_not_divide_are_refused(two: Path) -> None:
    assert (two / "refused").read_text() == (
        "train.batch_pairs 3 must be a multiple of the number of processes, 2"
    )


def test_where_and_how_a_run_computes_is_not_its_identity() -> None:
    """A run that met the end of memory goes on in another manner; older runs go on as they are."""
    config = TrainConfig()
    for change in ({"memory": "sequential"}, {"shard": "full"}):
        assert config.model_copy(update=change).identity() == config.identity()
    assert config.model_copy(update={"seed": 1}).identity() != config.identity()
