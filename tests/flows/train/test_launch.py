"""The shipped accelerate configurations: the train command in two processes, really launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from s3_server import s3_server
from safetensors.torch import load_file
from small_root import small_version

from focusdpo import flows
from focusdpo.flows.config import TrainRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.train import run
from focusdpo.store.outputs import local

CONFIGS = Path(flows.__file__).with_name("accelerate")
SHARES = "the base lies in shares over 2 processes"
WEIGHTS = "adapter/pytorch_lora_weights.safetensors"
SETTINGS = {
    "steps": 3, "batch_pairs": 2, "save_every": 2, "mixed_precision": "no", "warmup": 1,
    "source": "disrupt",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs or more to train on."""
    folder = tmp_path_factory.mktemp("data") / "root"
    small_version(folder, scenes=6)
    return folder


@pytest.fixture(scope="module")
def single(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("single")
    given = {"preset": "pocket", "root": str(root), "out": str(out), "train": SETTINGS}
    run.train(resolve(TrainRun, given))
    return out


def launch(
    config: str, root: Path, out: Path | str, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(CONFIGS / config), "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "focusdpo.flows.cli"]
    command += ["-v", "train", "--root", str(root), "--out", str(out), "--json"]
    for name, value in SETTINGS.items():
        command += ["--set", f"train.{name}={value}"]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, *more],
        env=environment,
        check=False,
        timeout=550,
        capture_output=True,
        text=True,
    )


def said_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a run that ended well says with --json; the first process alone speaks."""
    assert done.returncode == 0, done.stderr[-6000:]
    (said,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(said)


def same_weights(run: Path, single: Path) -> None:
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (run, single))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_with_shares_of_the_base_learn_what_one_learns(
    root: Path, single: Path, tmp_path: Path
) -> None:
    done = launch("fsdp2.yaml", root, tmp_path / "run")
    assert said_of(done)["steps"] == 3
    assert done.stdout.count("adapter ") == 1 and SHARES in done.stderr
    same_weights(tmp_path / "run", single)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_accelerates(path: Path) -> None:
    """accelerate refuses unknown keys of a configuration."""
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(path))
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.distributed_type == tree["distributed_type"]
    assert config.num_processes == 2
    assert config.mixed_precision == "no"


@pytest.mark.slow
def test_two_processes_go_on_from_what_one_machine_sent(
    root: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They learn what one learns. The first process fetches and sends; the other waits for it and
    reads the same folder."""
    with s3_server() as server:
        server.make_bucket("launched")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for machine, steps in (("first", "2"), ("second", "3")):
            monkeypatch.setenv("FOCUSDPO_OUTPUTS_DIR", str(tmp_path / machine))
            more = ("--set", f"train.steps={steps}")
            done = launch("ddp.yaml", root, "s3://launched/run", *more)
            said = said_of(done)
            assert SHARES not in done.stderr
        assert (said["resumed_from"], said["adapter"]) == (2, "s3://launched/run/adapter")
        same_weights(local("s3://launched/run"), single)
