"""The command that a report names makes the very run that it tells of."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from focusdpo.flows.ablation.config import AblationConfig
from focusdpo.flows.ablation.result import command_of
from focusdpo.flows.config import AblateRun
from focusdpo.flows.settings import merge, parse_overrides


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["ablation.seeds=5", "ablation.sources=[rank]"],
        ["ablation.choices=[\"M' inside M_prior\", 'gate: always']", "train.objective.eta=0.5"],
        ["train.objective.safeguard=null", "held_out.split=val"],
    ],
)
@pytest.mark.parametrize("given", [{}, {"root": "my data", "version": "abc"}])
def test_a_command_reads_back_as_its_run(sets: list[str], given: dict[str, str]) -> None:
    tree = {"preset": "pocket", "out": "runs/x", **given, **parse_overrides(sets)}
    run = AblateRun.model_validate(tree)
    words = shlex.split(command_of(run))
    assert words[:2] == ["focusdpo", "ablate"]
    options = list(zip(words[2::2], words[3::2], strict=True))
    told = {name.removeprefix("--"): value for name, value in options if name != "--set"}
    overrides = parse_overrides([value for name, value in options if name == "--set"])
    assert AblateRun.model_validate(merge(told, overrides)) == run


@given_by(steps=st.integers(1, 500), looks=st.integers(1, 20))
def test_the_last_look_falls_on_the_last_step(steps: int, looks: int) -> None:
    """A trial is judged by its last look: that must see what was trained."""
    every = AblationConfig(steps=steps, looks=looks).look_every
    assert steps % every == 0
    assert 1 <= steps // every <= looks


def test_as_many_looks_as_were_asked_for_where_they_divide_the_steps() -> None:
    assert AblationConfig(steps=200, looks=2).look_every == 100
    assert AblationConfig(steps=5, looks=2).look_every == 5
