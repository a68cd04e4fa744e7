"""An anchor that means the same for every beta, in every preset that ships."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from focusdpo.flows.settings import load_preset, preset_names
from focusdpo.model.objectives import PairErrors, preference_loss
from focusdpo.model.training.config import AUTO_BETA, ObjectiveConfig, TrainConfig

PRESETS = preset_names()


def share_of_the_anchor(config: ObjectiveConfig, logit: float) -> float:
    """Of the whole pull on the winner's error, by autograd, where the preference's logit is so."""
    gap = -2 * logit / config.beta
    win = torch.tensor([0.5 + gap], dtype=torch.float64, requires_grad=True)
    rest = torch.tensor([0.5], dtype=torch.float64)

    def pull(settings: ObjectiveConfig) -> float:
        loss = preference_loss(PairErrors(win, rest, rest, rest), settings).value
        return float(torch.autograd.grad(loss, win)[0])

    alone = pull(config.model_copy(update={"anchor": 0.0, "eta": 0.0}))
    return 1 - alone / pull(config)


def is_embedded(name: str) -> bool:
    return bool(load_preset(name)["suite"] == "pocket")


@pytest.mark.parametrize("name", filter(is_embedded, PRESETS))
def test_the_anchor_of_the_embedded_models_leads_from_the_beginning(name: str) -> None:
    """Without one their pictures fall apart (docs/results.md)."""
    objective = TrainConfig.model_validate(load_preset(name)["train"]).objective
    assert 0.5 < share_of_the_anchor(objective, 0.0) < 0.6
    assert share_of_the_anchor(objective, 3.0) > 0.9


@pytest.mark.parametrize("name", [name for name in PRESETS if not is_embedded(name)])
def test_the_anchor_of_photographs_begins_weak_and_leads_once_pairs_are_learned(name: str) -> None:
    objective = TrainConfig.model_validate(load_preset(name)["train"]).objective
    assert 0.05 < share_of_the_anchor(objective, 0.0) < 0.25
    assert 0.5 < share_of_the_anchor(objective, 3.0) < 0.75


@pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("beta", [3.0, 1000.0, 20000.0])
def test_an_anchor_is_that_share_of_the_first_pull_for_every_beta(form: str, beta: float) -> None:
    config = ObjectiveConfig(beta=beta, anchor=0.25, form=form)  # type: ignore[arg-type]
    assert share_of_the_anchor(config, 0.0) == pytest.approx(0.2)


def test_words_stand_for_what_is_settled_later() -> None:
    config = TrainConfig.model_validate({"micro_pairs": "auto", "objective": {"beta": "auto"}})
    assert (config.micro_pairs, config.objective.beta) == (-1, AUTO_BETA)
    with pytest.raises(ValidationError, match="anchor"):
        ObjectiveConfig.model_validate({"beta": "auto", "eta": 1.0})
    with pytest.raises(ValidationError, match="one of them"):
        ObjectiveConfig(anchor=0.1, eta=1.0)


def test_what_helps_at_the_end_of_a_cards_memory_leaves_a_run_the_same() -> None:
    run = TrainConfig(batch_pairs=4)
    helped = {"micro_pairs": 1, "gradient_checkpointing": True, "memory": "sequential"}
    assert run.model_copy(update=helped).identity() == run.identity()
    safe = ObjectiveConfig(safeguard=0.5)
    assert (
        TrainConfig(objective=safe, micro_pairs=1).identity()
        != TrainConfig(objective=safe).identity()
    )
