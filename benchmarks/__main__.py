"""`python -m benchmarks`: the figures that the project promises, measured on this machine.

For those who work on the project: it lies beside the product, in a checkout, and is in no wheel.
docs/bench.md tells what each figure is and what was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measuring import BenchFigure
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.cli import run_program
from focusdpo.flows.commands.options import JSON, SET, finish, say
from focusdpo.flows.settings import merge, parse_overrides, resolve

BUSY = 0.9
"""Share of the bare forward rate that scoring files should keep."""


def bench(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for what is built; new or empty.")
    ] = Path("runs/bench"),
    prefect: Annotated[
        bool,
        typer.Option("--prefect/--no-prefect", help="Measure with a Prefect server of its own."),
    ] = False,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=3,
            help="Step pairs of the training comparison; 20 where it is not given, 10 with --gpu.",
        ),
    ] = None,
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu",
            help="Instead: training steps of FLUX.1-dev, SDXL and FLUX.2 Klein in full size, with "
            "random weights, on this machine's GPU.",
        ),
    ] = False,
    build: Annotated[
        int | None,
        typer.Option(
            "--build",
            min=1,
            metavar="SCENES",
            help="With --gpu: a build of so many scenes with a preset's checkpoints instead, in "
            "pictures an hour by stage. Needs `--set subjects=FOLDER`, and what `fetch` downloads.",
        ),
    ] = None,
    scoring: Annotated[
        int | None,
        typer.Option(
            "--scoring",
            min=2,
            metavar="PICTURES",
            help="Instead: how fast a scorer (DINO ViT-S/16, random weights) goes through so many "
            "picture files, beside its bare forward pass. Wanted: 0.9 of it, with 2000.",
        ),
    ] = None,
    shards: Annotated[
        bool,
        typer.Option(
            "--shards",
            help="Instead: shards written and read, beside tarfile's speed and webdataset's.",
        ),
    ] = False,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale",
            min=10,
            metavar="SUBJECTS",
            help="Instead: a root of so many subjects gets one more, and a million candidates are "
            "planned. The promise is made for 1000.",
        ),
    ] = None,
    studio: Annotated[
        int | None,
        typer.Option(
            "--studio",
            min=200,
            metavar="PAIRS",
            help="Instead: a root of so many made-up pairs is looked at in the studio: first view "
            "and page turns. The promise is made for 100000, which take about 2 GB.",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="A shipped preset, or the path of a YAML file.")
    ] = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Measure: orchestration overhead, a run in which nothing changed, time and memory of FocusDPO
    steps beside plain DPO steps of 16 pairs.

    Settings are build-dataset's; a smaller world is quicker: `--set world.subjects=8`.

    With --gpu --build N: pictures an hour by stage of a build of N scenes; settings are then
    build-dataset's.

    With --gpu alone: step time, MFU and peak memory of sft, dpo and focus_dpo at 512 px with two
    references, beside a straightforward implementation. Settings are then those of
    docs/gpu_bench.md, as in `--set pairs=[1,2]`; both files in --out are written anew.
    """
    if build is not None:
        if not gpu or prefect:
            raise UserError("--build goes with --gpu, and without --prefect")
        _bench_build(out, preset, set_, build, json)
        return
    if gpu:
        if preset != "pocket" or prefect:
            raise UserError(
                "--gpu builds no dataset without --build: leave --preset and --prefect out"
            )
        _bench_gpu(out, set_, repeats, json)
        return
    if scoring is not None:
        _bench_scoring(scoring, repeats or 1, json)
        return
    if shards:
        from benchmarks.storage import figures as shard_figures

        _finish(shard_figures(out), json)
        return
    if scale is not None:
        from benchmarks.scale import scale_figures

        _finish(scale_figures(out, scale), json)
        return
    if studio is not None:
        from benchmarks.studio_pages import studio_figures

        _finish(studio_figures(out, studio), json)
        return
    from benchmarks.measuring import measure

    figures = measure(out, prefect=prefect, repeats=repeats or 20, preset=preset, overrides=set_)
    _finish(figures, json)


def _finish(figures: Sequence[BenchFigure], as_json: bool) -> None:
    for figure in figures:
        mark = "" if figure.ok is None else ("ok  " if figure.ok else "MISS")
        say(f"{mark:<5}{figure.name:<50}{figure.value:>12.3f} {figure.unit:<6}{figure.wanted}")
    finish({"command": "bench", "figures": [figure.as_dict() for figure in figures]}, as_json)


def _bench_scoring(count: int, repeats: int, as_json: bool) -> None:
    from benchmarks.throughput import bench_scoring
    from focusdpo.flows.checkpoint_suite import device_of

    device = device_of("auto")
    rate = bench_scoring(count=count, device=device, repeats=repeats)
    say(f"{count} files on {device}: {rate.embed:.1f} pictures/s, bare model {rate.bare:.1f}")
    say(f"{'ok' if rate.ratio >= BUSY else 'MISS':<5}of the bare rate {rate.ratio:.3f} (>= {BUSY})")
    figures = {"count": count, "device": device, "embed": rate.embed, "bare": rate.bare}
    finish({"command": "bench", "scoring": figures | {"ratio": rate.ratio}}, as_json)


def _bench_gpu(out: Path, overrides: list[str], repeats: int | None, as_json: bool) -> None:
    from benchmarks.gpu.gpu_config import GpuBenchConfig
    from benchmarks.gpu.step_table import measure_gpu

    given = {} if repeats is None else {"repeats": repeats}
    settings = resolve(GpuBenchConfig, {**given, **parse_overrides(overrides)})
    measured = measure_gpu(out, settings, say)
    say(f"\nwritten: {out / 'gpu_bench.md'} and gpu_bench.json\n")
    for promise in measured.promises():
        say(promise.line)
    finish({"command": "bench", "gpu": measured.as_dict()}, as_json)


def _bench_build(out: Path, preset: str, overrides: list[str], scenes: int, as_json: bool) -> None:
    from benchmarks.gpu.build_rate import measure_build
    from focusdpo.flows.config import BuildRun

    tree = merge({"preset": preset, "root": str(out / "dataset")}, parse_overrides(overrides))
    measured = measure_build(out, resolve(BuildRun, tree), scenes, Path(preset).stem, say)
    say(f"\nwritten: {out / 'gpu_build.md'} and gpu_build.json")
    finish({"command": "bench", "build": measured.as_dict()}, as_json)


def main(arguments: Sequence[str]) -> None:
    """Measure, print and exit as `focusdpo` does."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(bench)
    run_program(program, "python -m benchmarks", arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
