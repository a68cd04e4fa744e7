"""What each of two processes does for tests/model/training/test_parallel.py; started by torchrun:

    torchrun --nproc_per_node 2 two_processes.py OUT SHARD...

The first process writes what it found to OUT/found.safetensors, and training runs below OUT.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tiny_runs
import torch
from exact import to_double
from pair_samples import make_sample, write_pairs
from policy_step import give_policy
from safetensors.torch import save_file
from tiny_backbone import tiny_backbone
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import policy_parameters, reference_policy
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.training.batches import PairBatch, encode_pairs
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.parallel import Processes, Sharding, shard_base
from focusdpo.model.training.run import train
from focusdpo.model.training.steps import backward_step
from focusdpo.store.samples import Sample

PAIRS = 4
SETTINGS: dict[str, Any] = {
    "objective": {"name": "focus_dpo", "beta": 30.0, "eta": 0.1},
    "mixed_precision": "no",
}
WAYS = ("plain", "ddp", "shard")
RUN = tiny_runs.SETTINGS | {
    "steps": 6,
    "micro_pairs": 1,
    "warmup": 2,
    "save_every": 3,
    "tensorboard": False,
    "validation": {"every": 2, "keep": "best", "metric": "value"},
}


def policy_backbone() -> FluxBackbone:
    """In float64, with a LoRA that changes something; everywhere the same."""
    backbone = tiny_backbone()
    give_policy(backbone)
    backbone.transformer.double()
    return backbone


def pairs(slots: range) -> tuple[PairBatch, Tensor, Tensor]:
    """The pairs, noise and noise levels of some slots of one step, in float64."""
    batch = encode_pairs(tiny_backbone(), [make_sample(slot, 2) for slot in slots])
    noise, sigma = draw_noise(batch.win_BNC, slots, seed=0, step=0, config=TrainConfig().noise)
    return to_double(batch), noise.double(), sigma.double()


def output_of(backbone: FluxBackbone, given: tuple[PairBatch, Tensor, Tensor]) -> Tensor:
    batch, noise_BNC, sigma_B = given
    noisy_BNC = backbone.add_noise(batch.win_BNC, noise_BNC, sigma_B)
    return backbone.predict(noisy_BNC, sigma_B, batch.prompts, batch.references).output_BNC


def measure(way: str, checkpointing: bool, memory: str) -> dict[str, Tensor]:
    """Outputs of both policies on this process's pairs, and the gradient over all."""
    processes = Processes(torch.device("cpu"))
    backbone = policy_backbone()
    given = pairs(processes.share_of(PAIRS))
    parameters = policy_parameters(backbone.transformer)
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    if way == "ddp":
        backbone.transformer = DistributedDataParallel(backbone.transformer)
    elif way == "shard":
        shard_base(backbone.transformer, parameters.values(), Sharding())
    trained = [name for name, p in backbone.transformer.named_parameters() if p.requires_grad]
    with torch.no_grad():
        policy = output_of(backbone, given)
        with reference_policy(backbone.transformer):
            reference = output_of(backbone, given)
    config = TrainConfig.model_validate(SETTINGS | {"memory": memory})
    backward_step(backbone, *given, config, nullcontext)
    grads = [parameter.grad for parameter in parameters.values()]
    if way != "ddp":
        processes.average(grads)
    with torch.no_grad(), reference_policy(backbone.transformer):
        after = output_of(backbone, given)
    assert torch.equal(after, reference)
    assert trained == [n for n, p in backbone.transformer.named_parameters() if p.requires_grad]
    local = sum(getattr(p, "_local_tensor", p).numel() for p in backbone.transformer.parameters())
    return {
        "policy": together(policy),
        "reference": together(reference),
        "gradient": torch.cat([grad.flatten() for grad in grads]),
        "held": torch.tensor(local),
    }


def together(mine: Tensor) -> Tensor:
    """Both processes' rows, in order."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


def run(samples: list[Sample], out: Path, **changes: Any) -> None:
    """A training run on a fresh backbone, whose validation runs the model too."""
    backbone = tiny_backbone()
    given = validation_input()

    @torch.no_grad()
    def validate() -> dict[str, float]:
        return {"value": output_of(backbone, given).square().mean().item()}

    config = TrainConfig.model_validate(RUN | changes)
    train(backbone, samples, config, out, validate=validate if config.validation.every else None)


def validation_input() -> tuple[PairBatch, Tensor, Tensor]:
    batch = encode_pairs(tiny_backbone(), [make_sample(9, 1)])
    return batch, torch.zeros_like(batch.win_BNC), torch.tensor([0.5])


def main(out: Path, samples: list[Sample]) -> None:
    dist.init_process_group("gloo")
    found = {}
    refused = "nothing"
    try:
        Processes(torch.device("cpu")).share_of(3)
    except UserError as error:
        refused = str(error)
    for way in WAYS:
        for checkpointing in (False, True):
            for memory in ("joint", "sequential"):
                values = measure(way, checkpointing, memory)
                found |= {f"{way}.{checkpointing}.{memory}.{k}": v for k, v in values.items()}
    run(samples, out / "plain")
    run(samples, out / "shard", shard="full")
    run(samples, out / "resumed", shard="full", steps=4)
    run(samples, out / "resumed", shard="full")
    run(samples, out / "sequential", shard="full", memory="sequential", gradient_checkpointing=True)
    run(samples, out / "changed", steps=2)
    run(samples, out / "changed", steps=4, shard="full", memory="sequential")
    run(samples, out / "changed")
    patches = {"name": "patch_dpo", "beta": 100.0}
    looks = {"every": 0}
    run(samples, out / "patches", shard="full", objective=patches, cache_mib=0, validation=looks)
    if dist.get_rank() == 0:
        (out / "refused").write_text(refused)
        save_file(
            {name: value.contiguous() for name, value in found.items()}, out / "found.safetensors"
        )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), write_pairs(Path(sys.argv[2])))
