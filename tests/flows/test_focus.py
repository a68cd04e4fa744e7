"""focus-maps from the command line, on a backbone of a few thousand random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from small_root import small_version
from tiny_backbone import tiny_backbone

from focusdpo.flows.cli import main
from focusdpo.flows.focus import focus_figures
from focusdpo.flows.focus import run as focusing
from focusdpo.model.adapter import (
    AdapterCard,
    LoraConfig,
    add_policy,
    policy_parameters,
    remove_policy,
    save_adapter,
)
from focusdpo.store.versions import DatasetVersion

Capture = pytest.CaptureFixture[str]
FEW = ("--pairs", "3", "--set", "premise.sigmas=[0.1, 0.9]", "--set", "premise.resamples=20")
FILES = ("maps.png", "maps.safetensors", "premise.json", "premise.png")


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetVersion:
    monkeypatch.setattr(focusing, "build_part", lambda suite, role: tiny_backbone())
    return small_version(tmp_path / "root", scenes=6, size=64)


def run(arguments: list[str], capsys: Capture) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def command(tmp_path: Path, version: DatasetVersion, out: str, *more: str) -> list[str]:
    split = version.rows[0].split
    where = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / out), "--split", split]
    return ["focus-maps", *where, *FEW, *more]


def put_adapter(folder: Path, seed: int = 0) -> Path:
    """An adapter that changes something, made for `tiny_backbone(seed)`."""
    backbone = tiny_backbone(seed)
    lora = LoraConfig(rank=2, alpha=2, targets=("to_q", "to_k"))
    add_policy(backbone.transformer, lora, seed=0)
    weights = {n: p.data + 0.5 for n, p in policy_parameters(backbone.transformer).items()}
    card = AdapterCard(
        lora=lora,
        base_fingerprint=backbone.fingerprint,
        dataset_version="v",
        objective="focus_dpo",
        step=1,
    )
    save_adapter(folder, backbone.transformer, card, weights)
    remove_policy(backbone.transformer)
    return folder


def test_writes_everything_and_the_same_again(
    tmp_path: Path, version: DatasetVersion, capsys: Capture
) -> None:
    code, out, _ = run(command(tmp_path, version, "one", "--json"), capsys)
    assert code == 0
    line = json.loads(out.rstrip("\n").rpartition("\n")[2])
    assert line["command"] == "focus-maps" and line["version"] == version.id
    assert {one["phase"] for one in line["configured"]} == {"base"}
    assert "largest rise:" in out
    run(command(tmp_path, version, "two"), capsys)
    one, two = tmp_path / "one", tmp_path / "two"
    assert sorted(path.name for path in one.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    premise = json.loads((one / "premise.json").read_text())
    assert premise["sigmas"] == [0.9, 0.1]
    # 4 kinds at 2 blocks, winners and losers
    assert len(premise["table"]) == 16 and len(premise["configured"]) == 2
    rows = [row for row in version.rows if row.split == premise["split"]]
    assert len(premise["pairs"]["ids"]) == min(3, len(rows))
    best = premise["best"]["rise"]
    assert best["rise"] == max(r["rise"] for r in premise["table"] if r["branch"] == "winner")
    assert_each_plot_shows_something(premise)


def assert_each_plot_shows_something(premise: dict[str, Any]) -> None:
    """Without pairs of several subjects, too: then the fourth says why it has no lines."""
    for pairs in (3, 0):
        for row in premise["configured"]:
            row["confusion"]["pairs"] = pairs
        figure = Figure()
        focus_figures._draw_curves(figure, figure.add_gridspec(1, 4), premise)
        texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
        assert [bool(axes.lines) for axes in figure.axes] == [True, True, True, pairs > 0]
        assert any(focus_figures.ALONE in text for text in texts[3]) == (pairs == 0)


def test_an_adapter_is_shown_beside_the_base(
    tmp_path: Path, version: DatasetVersion, capsys: Capture
) -> None:
    from safetensors.numpy import load_file

    adapter = put_adapter(tmp_path / "adapter")
    run(command(tmp_path, version, "base"), capsys)
    code, out, _ = run(command(tmp_path, version, "both", "--adapter", str(adapter)), capsys)
    assert code == 0 and "adapter  winner" in out
    base, both = (load_file(tmp_path / name / "maps.safetensors") for name in ("base", "both"))
    np.testing.assert_array_equal(both["start.win.similarity"], base["start.win.similarity"])
    assert np.abs(both["end.win.similarity"] - both["start.win.similarity"]).max() > 1e-4
    premise = json.loads((tmp_path / "both" / "premise.json").read_text())
    alone = json.loads((tmp_path / "base" / "premise.json").read_text())
    assert premise["adapter"] and alone["adapter"] is None
    assert [r for r in premise["table"] if r["phase"] == "base"] == alone["table"]


def test_an_adapter_for_another_base_is_refused(
    tmp_path: Path, version: DatasetVersion, capsys: Capture
) -> None:
    adapter = put_adapter(tmp_path / "adapter", seed=1)
    code, _, err = run(command(tmp_path, version, "out", "--adapter", str(adapter)), capsys)
    assert code == 2 and "trained on base" in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_pair_names_near_ones(
    tmp_path: Path, version: DatasetVersion, capsys: Capture
) -> None:
    code, _, err = run(command(tmp_path, version, "out", "--pair", "piar3"), capsys)
    assert code == 2 and "--pair piar3" in err and "near ones: pair3" in err
    code, out, _ = run(command(tmp_path, version, "out", "--pair", "pair3", "--json"), capsys)
    assert code == 0 and json.loads(out.splitlines()[-1])["pair"] == "pair3"


def test_settings_are_checked(tmp_path: Path, version: DatasetVersion, capsys: Capture) -> None:
    wrong = ["--set", "train.focus.kapa=2"]
    code, _, err = run(command(tmp_path, version, "out", *wrong), capsys)
    assert code == 2 and "did you mean 'kappa'" in err
    code, _, _ = run(
        command(tmp_path, version, "out", "--set", "train.focus.features.kind=queries"), capsys
    )
    premise = json.loads((tmp_path / "out" / "premise.json").read_text())
    assert code == 0 and premise["configured"][0]["kind"] == "queries"


def test_a_split_without_pairs_is_told(
    tmp_path: Path, version: DatasetVersion, capsys: Capture
) -> None:
    there = {row.split for row in version.rows}
    assert len(there) == 1, "the dataset of these tests has one split"
    other = "val" if there == {"train"} else "train"
    code, _, err = run([*command(tmp_path, version, "out"), "--split", other], capsys)
    assert code == 2 and f"no pair in split '{other}'" in err
