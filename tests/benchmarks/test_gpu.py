"""`python -m benchmarks --gpu`: verdicts, the table and its files, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_bench import SMALL, tiny_bench

from benchmarks.__main__ import main
from benchmarks.gpu.gpu_config import STRAIGHTFORWARD, GpuBenchConfig, Row
from benchmarks.gpu.step_table import COLUMNS, GIB, GpuBench, Promise, measure_gpu

Capture = pytest.CaptureFixture[str]
H100 = {"device": "NVIDIA H100 80GB HBM3", "device_gib": 79.1}
TERA = 10**12


def row(method: str = "focus_dpo", **changes: Any) -> Row:
    """One pair, checkpointing on, 213 TFLOP in half a second."""
    known: dict[str, Any] = {
        "model": "flux",
        "base": "bf16",
        "method": method,
        "pairs": 1,
        "checkpointing": True,
        "memory": "joint",
        "limit_gib": None,
        "seconds": 0.5,
        "to_dpo": 1.0 if method == "dpo" else 1.01,
        "step_flops": 213 * TERA,
        "passes": 2,
        "peak_bytes": 30 * GIB,
        "reserved_bytes": 32 * GIB,
    }
    return Row(**(known | changes))


def failed(method: str, **changes: Any) -> Row:
    nothing = dict.fromkeys(
        ("seconds", "to_dpo", "step_flops", "passes", "peak_bytes", "reserved_bytes")
    )
    return row(method, failure="out of memory in forward pass 1", **nothing, **changes)


def bench(*rows: Row, facts: dict[str, Any] = H100, **settings: Any) -> GpuBench:
    return GpuBench(facts, GpuBenchConfig(**settings), 989.4 * TERA, rows)


def promise(measured: GpuBench, words: str) -> Promise:
    (found,) = [p for p in measured.promises() if words in p.name]
    return found


# Verdicts


def test_all_is_reached() -> None:
    rows = []
    for model, base, gib in (("flux", "bf16", 48), ("flux", "nf4", 24), ("sdxl", "bf16", 24)):
        limited = {"model": model, "base": base, "limit_gib": float(gib)}
        rows += [row("dpo", **limited), row(**limited, reserved_bytes=20 * GIB)]
    rows += [row("dpo"), row(), row(STRAIGHTFORWARD, seconds=0.7, to_dpo=None)]
    found = bench(*rows).promises()
    assert len(found) == 8
    assert {p.verdict for p in found} == {"reached"}, [p.line for p in found]
    measured = bench(*rows)
    assert promise(measured, "MFU").value == pytest.approx(213 / 0.5 / 989.4)
    assert promise(measured, "straightforward").value == pytest.approx(0.5 / 0.7)
    assert promise(measured, "FLUX.1-dev (bf16)").value == 20


@pytest.mark.parametrize(
    "words, rows",
    [
        ("focus_dpo step / dpo", [row("dpo"), row(to_dpo=1.031)]),
        ("maps / peak", [row("dpo"), row(peak_bytes=31 * GIB)]),
        ("passes for", [row("dpo"), row(passes=3)]),
        ("MFU", [row(seconds=0.6)]),
        ("straightforward", [row(), row(STRAIGHTFORWARD, seconds=0.5)]),
        ("(bf16), one pair", [failed("focus_dpo", limit_gib=48.0)]),
        ("SDXL", [failed("focus_dpo", model="sdxl", limit_gib=24.0)]),
    ],
)
def test_what_is_missed(words: str, rows: list[Row]) -> None:
    if words == "(bf16), one pair":
        words = "FLUX.1-dev (bf16)"
    assert promise(bench(*rows), words).verdict == "missed"


def test_the_worst_row_decides_and_is_named() -> None:
    good, bad = [row("dpo"), row()], [row("dpo", pairs=4), row(pairs=4, to_dpo=1.2)]
    found = promise(bench(*good, *bad), "focus_dpo step / dpo")
    assert (found.verdict, found.value) == ("missed", 1.2)
    assert found.note == "worst of 2 rows: pairs 4, checkpointing on, bf16"


def test_the_better_of_checkpointing_on_and_off_has_the_mfu() -> None:
    found = promise(bench(row(seconds=0.7), row(checkpointing=False)), "MFU")
    assert found.verdict == "reached"
    assert "checkpointing off" in found.note


def test_where_the_straightforward_one_runs_out_of_memory_ours_is_faster() -> None:
    found = promise(bench(row(), failed(STRAIGHTFORWARD)), "straightforward")
    assert (found.verdict, found.value) == ("reached", None)
    assert "out of memory" in found.note
    both = bench(failed("focus_dpo"), failed(STRAIGHTFORWARD))
    assert promise(both, "straightforward").verdict == "not judged"


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"rank": 16}, "promised for other rank"),
        ({"image_size": 256, "references": 1}, "promised for other image_size, references"),
        ({"device": "cpu"}, "promised for other device"),
        ({"scale": "tiny"}, "promised for other scale"),
    ],
)
def test_other_sizes_are_not_judged(changes: dict[str, Any], why: str) -> None:
    rows = [row("dpo"), row(to_dpo=9.0), row(limit_gib=48.0)]
    found = bench(*rows, **changes).promises()
    assert {p.verdict for p in found} == {"not judged"}
    assert {p.note for p in found} == {why}
    assert all(p.value is None for p in found)


def test_nothing_is_judged_of_nothing() -> None:
    assert {p.verdict for p in bench().promises()} == {"not judged"}


def test_another_device_has_a_value_but_no_verdict() -> None:
    found = promise(bench(row(), facts={"device": "NVIDIA L40S", "device_gib": 44.5}), "MFU")
    assert found.verdict == "not judged" and found.value is not None
    assert found.note == "this is NVIDIA L40S"


def test_a_small_card_says_nothing_of_a_larger_one() -> None:
    small = {"device": "NVIDIA A10", "device_gib": 22.0}
    found = promise(bench(failed("focus_dpo", limit_gib=48.0), facts=small), "FLUX.1-dev (bf16)")
    assert (found.verdict, found.note) == ("not judged", "the device has 22.0 GiB only")


# Table and files


def test_cells() -> None:
    cells = dict(zip(COLUMNS, bench().cells(row(pairs=2)), strict=True))
    assert cells == {
        "model": "FLUX.1-dev",
        "base": "bf16",
        "pairs": "2",
        "checkpointing": "on",
        "memory": "joint",
        "limit": "-",
        "method": "focus_dpo",
        "step (s)": "0.5",
        "pairs/s": "4",
        "step / dpo": "1.010",
        "MFU": "43.1%",
        "peak (GiB)": "30.00",
        "taken (GiB)": "32.00",
        "passes": "2",
    }


def test_a_failure_stands_in_the_table() -> None:
    cells = bench().cells(failed("dpo", limit_gib=24.0))
    assert cells[5:9] == ("24 GiB", "dpo", "out of memory in forward pass 1", "-")
    assert len(cells) == len(COLUMNS)


def test_no_memory_is_told_where_none_was_measured() -> None:
    unmeasured = replace(row(), peak_bytes=None, reserved_bytes=None)
    unknown = replace(bench(), peak_flops=None)
    assert unknown.cells(unmeasured)[-4:] == ("-", "not measured", "not measured", "2")
    assert "memory not measured" in unknown.line(unmeasured)


def test_every_line_of_the_page_s_tables_is_whole() -> None:
    page = bench(row("dpo"), row(), failed(STRAIGHTFORWARD)).markdown()
    assert page.startswith("# NVIDIA H100 80GB HBM3\n\ndevice_gib 79.1; peak: 989.4 TFLOP/s.\n")
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 8, 2 + 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


@pytest.mark.slow
def test_a_run_on_the_cpu_leaves_both_files(tmp_path: Path) -> None:
    config = tiny_bench(models=("flux",), checkpointing=(False,), sequential=False)
    lines: list[str] = []
    measured = measure_gpu(tmp_path / "new" / "out", config, lines.append)
    told = json.loads((tmp_path / "new" / "out" / "gpu_bench.json").read_text("utf-8"))
    assert [r["method"] for r in told["rows"]] == ["sft", "dpo", "focus_dpo", STRAIGHTFORWARD]
    assert all(r["seconds"] > 0 and r["mfu"] is None for r in told["rows"])
    assert told["settings"] == config.model_dump(mode="json")
    assert told["facts"]["device"] == "cpu" and told["facts"]["torch"] == torch.__version__
    page = (tmp_path / "new" / "out" / "gpu_bench.md").read_text("utf-8")
    assert page == measured.markdown()
    assert len(lines) == 4


@pytest.mark.slow
def test_the_device_s_peak_can_be_given(tmp_path: Path) -> None:
    config = tiny_bench(
        models=("flux",),
        objectives=("sft",),
        checkpointing=(False,),
        sequential=False,
        straightforward=False,
        peak_tflops=0.5,
    )
    measured = measure_gpu(tmp_path, config, lambda _: None)
    (only,) = measured.rows
    assert only.seconds is not None and only.step_flops is not None
    assert measured.mfu(only) == pytest.approx(only.step_flops / only.seconds / 0.5e12)


def test_the_page_in_docs_knows_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu_bench.md").read_text("utf-8")
    rows = [line.split("|")[1:3] for line in page.split("## Settings")[1].splitlines()[5:]]
    told = {name.strip(" `"): value.strip(" `") for name, value in rows}
    assert list(told) == list(GpuBenchConfig.model_fields)
    defaults = GpuBenchConfig().model_dump(mode="json")
    for name in told.keys() - {"peak_tflops"}:
        assert str(yaml.safe_load(told[name])) == str(defaults[name]), name


# The command


def run(arguments: list[str], capsys: Capture) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_at_once(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    code, shown, err = run(["--gpu", "--out", str(out), "--json"], capsys)
    assert code == 2
    assert err.startswith("error: --gpu needs a CUDA device, and torch sees none here")
    assert json.loads(shown.splitlines()[-1])["exit_code"] == 2
    assert not out.exists()


@pytest.mark.parametrize(
    "given, message",
    [
        (["--preset", "other.yaml"], "builds no dataset"),
        (["--prefect"], "builds no dataset"),
        (["--set", "pair=[1]"], "pair: no such field; did you mean 'pairs'?"),
        (["--set", "image_size=500"], "image_size 500 must be a multiple of 32 pixels"),
        (["--set", "device=tpu0"], "device: 'tpu0' is no device"),
    ],
)
def test_wrong_options_are_told(given: list[str], message: str, capsys: Capture) -> None:
    code, _, err = run(["--gpu", *given], capsys)
    assert code == 2
    assert message in err


@pytest.mark.slow
def test_the_command_tells_rows_and_verdicts(tmp_path: Path, capsys: Capture) -> None:
    small = {**SMALL, "models": ["flux"], "objectives": ["dpo"], "checkpointing": [False]}
    small |= {"sequential": False, "pairs": [1], "repeats": 3}
    repeats = small.pop("repeats")
    sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    given = ["--gpu", "--out", str(tmp_path), "--repeats", str(repeats), "--json", *sets]
    code, shown, _ = run(given, capsys)
    assert code == 0
    told = json.loads(shown.splitlines()[-1])["gpu"]
    assert told["settings"]["repeats"] == 3
    assert [r["method"] for r in told["rows"]] == ["dpo", STRAIGHTFORWARD]
    assert shown.count("\nnot judged") == 8
