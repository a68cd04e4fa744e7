"""What a run's settings leave to its data and its machine: `objective.beta: auto` and
`micro_pairs: auto`. Settled once, before the first step, and kept in the run's folder, so that a
resumed run goes on with the same numbers.

Shapes: B pairs, 2B images (winners, then losers), N target tokens.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import add_policy, remove_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.objectives import image_error, token_error
from focusdpo.model.step import autocast
from focusdpo.model.training.batches import PairBatch, PairData
from focusdpo.model.training.config import AUTO_BETA, AUTO_PAIRS, TrainConfig
from focusdpo.model.training.parallel import Processes
from focusdpo.model.training.run_state import resolved_lora
from focusdpo.model.training.steps import Schedule, backward_step
from focusdpo.store.local import make_folder, write_whole

log = logging.getLogger(__name__)

FILE = "settled.json"
PAIRS = 32
"""From whose errors beta is taken."""
SHARE = 1 / 3
"""Of the spread of the base's errors: a policy that moves a pair's errors apart by so much has a
logit of 1. A third gives the embedded world the beta that validation chose there (30)."""
ROOM = 0.92
"""Of a card's memory that a pass may take when its size is tried out: sizes differ a little."""


def settle(
    backbone: Backbone,
    data: Callable[[], PairData],
    config: TrainConfig,
    out_dir: Path,
) -> TrainConfig:
    """The settings with numbers in place of `auto`: those of `out_dir` where a run was begun there,
    else found now. Every process of a run gets the first one's. UserError where not even one pair
    has room."""
    asks_beta = config.objective.beta == AUTO_BETA and config.objective.is_preference
    if not asks_beta and config.micro_pairs != AUTO_PAIRS:
        return config
    device = next(backbone.transformer.parameters()).device
    processes = Processes(device)
    known = _read(out_dir)
    pairs: PairData | None = None
    if asks_beta:
        if "beta" not in known:
            pairs = data()
            known["beta"] = auto_beta(backbone, pairs, config)
        beta = torch.tensor(known["beta"], dtype=torch.float64, device=device)
        processes.copy_first([beta])
        known["beta"] = beta.item()
        log.warning("objective.beta: auto is %g for these pairs", known["beta"])
        objective = config.objective.model_copy(update={"beta": known["beta"]})
        config = config.model_copy(update={"objective": objective})
    if config.micro_pairs == AUTO_PAIRS:
        if "micro_pairs" not in known:
            pairs = pairs or data()
            known["micro_pairs"] = _auto_pairs(backbone, pairs, config, processes)
        log.warning("train.micro_pairs: auto is %d here", known["micro_pairs"])
        config = config.model_copy(update={"micro_pairs": int(known["micro_pairs"])})
    if processes.is_main:
        make_folder(out_dir)
        write_whole(out_dir / FILE, (json.dumps(known, sort_keys=True) + "\n").encode())
    return config


def _read(out_dir: Path) -> dict[str, float]:
    path = out_dir / FILE
    if not path.is_file():
        return {}
    try:
        numbers = {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it: its numbers are found anew, and a run that "
            "was begun with others says so"
        ) from error
    return numbers


@torch.no_grad()
def auto_beta(backbone: Backbone, data: PairData, config: TrainConfig) -> float:
    """beta such that h = beta/2 times `SHARE` of a spread is 1; the spread is the standard
    deviation over pairs of l_w - l_l of the base, at the noise of the run's first steps. To two
    digits, so that rounding of another device does not show. UserError where all pairs are
    alike."""
    device = next(backbone.transformer.parameters()).device
    cast = autocast(device, config.mixed_precision)
    schedule = Schedule(data.groups(), config.batch_pairs, config.seed)
    gaps: list[Tensor] = []
    for step in range(math.ceil(PAIRS / config.batch_pairs)):
        for slot, item in enumerate(schedule.items(step)):
            batch = data.batch([item])
            clean_BNC = torch.cat([batch.win_BNC, batch.lose_BNC])
            noise, sigma_B = (
                tensor.repeat(2, *(1 for _ in tensor.shape[1:]))
                for tensor in draw_noise(
                    clean_BNC,
                    [slot],
                    seed=config.seed,
                    step=step,
                    config=config.noise,
                    slots_in_step=config.batch_pairs,
                )
            )
            noisy_BNC = backbone.add_noise(clean_BNC, noise, sigma_B)
            both = batch.prompts.repeat(2), batch.references.repeat(2)
            with cast():
                output_BNC = backbone.predict(noisy_BNC, sigma_B, *both).output_BNC
            target_BNC = backbone.target(clean_BNC, noise, sigma_B)
            win, lose = image_error(token_error(output_BNC, target_BNC)).double()
            gaps.append(win - lose)
    spread = torch.stack(gaps).std().item() if len(gaps) > 1 else 0.0
    if not spread > 0 or not math.isfinite(spread):
        raise UserError(
            f"objective.beta: auto: the base's errors on {len(gaps)} pairs do not differ "
            f"(spread {spread}); give a number"
        )
    return float(f"{2 / (SHARE * spread):.1e}")


def _auto_pairs(
    backbone: Backbone, data: PairData, config: TrainConfig, processes: Processes
) -> int:
    """The most pairs in a pass that have room on every process's card; all where there is none."""
    local = len(processes.share_of(config.batch_pairs))
    device = next(backbone.transformer.parameters()).device
    if device.type != "cuda":
        return local
    widest = data.groups()[-1]  # of most subjects, so of most references

    def fits(count: int) -> bool:
        batch = data.batch([widest[at % len(widest)] for at in range(count)])
        return not processes.any(not _has_room(backbone, batch, config, device))

    return largest(fits, (size for size in range(local, 0, -1) if local % size == 0))


def largest(fits: Callable[[int], bool], sizes: Iterable[int]) -> int:
    """The first of the sizes, largest first, that fits. UserError where none does."""
    for size in sizes:
        if fits(size):
            return size
    raise UserError(
        "train.micro_pairs: auto: not even one pair has room on this card. What helps: "
        "train.gradient_checkpointing=true, train.memory=sequential, models.backbone.quantise=4bit"
    )


def _has_room(
    backbone: Backbone, batch: PairBatch, config: TrainConfig, device: torch.device
) -> bool:
    """Whether a whole pass, forward and backward, takes at most `ROOM` of the card."""
    transformer = backbone.transformer
    add_policy(transformer, resolved_lora(backbone, config.lora), seed=config.seed)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    noise_BNC, sigma_B = draw_noise(
        batch.win_BNC,
        range(len(batch)),
        seed=config.seed,
        step=0,
        config=config.noise,
        slots_in_step=len(batch),
    )
    torch.cuda.reset_peak_memory_stats(device)
    cast = autocast(device, config.mixed_precision)
    try:
        backward_step(backbone, batch, noise_BNC, sigma_B, config, cast)
        free, whole = torch.cuda.mem_get_info(device)
        taken = whole - free - torch.cuda.memory_reserved(device)
        return taken + torch.cuda.max_memory_allocated(device) <= ROOM * whole
    except torch.OutOfMemoryError:
        return False
    finally:
        remove_policy(transformer)
        if config.gradient_checkpointing:
            transformer.disable_gradient_checkpointing()  # type: ignore[operator]
        gc.collect()
        torch.cuda.empty_cache()
