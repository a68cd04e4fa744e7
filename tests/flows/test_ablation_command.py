"""The command that a report names makes the very run that it tells of."""

from __future__ import annotations

import shlex

import pytest

from focusdpo.flows.ablation_result import command_of
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
