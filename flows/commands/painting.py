"""Commands that paint or look at what a model sees: generate, demo-app, focus-maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.flows.commands.options import Incomplete, fetched, require_here, say
from focusdpo.flows.config import Adapter, FocusMapsRun, GenerateRun, NoiseLevelsRun, shared
from focusdpo.flows.console import Bars, working
from focusdpo.flows.settings import Option

if TYPE_CHECKING:
    from focusdpo.flows.generate.inference import Generator

SHOWN = 20
"""A deep backbone has more places than anyone reads; premise.json has them all."""


def noise_levels(run: NoiseLevelsRun) -> dict[str, Any]:
    """Tell at which noise level it is decided who becomes whom: candidates of a dataset that failed
    at a subject, and right ones, are painted on from each level, and what comes of them is looked
    at.

    A preference about who is who can act above the level that is told (train.noise)."""
    from focusdpo.flows.levels.run import measure_levels, table_lines

    with Bars() as watch:
        outcome = measure_levels(run, watch)
    for line in table_lines(outcome.rows):
        say(line)
    if outcome.decided is None:
        say("decided at none of these levels: the origin tells as much at the first as at the last")
    else:
        say("decided between sigma {:.3f} and {:.3f}".format(*outcome.decided))
    say(f"table and pictures: {outcome.out}")
    return outcome.as_dict()


class PaintRun(GenerateRun):
    """`generate`: one picture, a sheet, or a CSV of orders."""

    out: Annotated[Path, Option("--out")] = Field(
        description="the PNG to write; with --batch the folder of results"
    )
    reference: Annotated[tuple[Path, ...], Option("--reference")] = Field(
        (), description="a picture of a subject; repeat for up to three"
    )
    class_name: Annotated[tuple[str, ...], Option("--class-name")] = Field(
        (), description="what it is; one per reference, in order"
    )
    prompt: Annotated[str | None, Option("--prompt")] = Field(
        None, description="what to paint; none: the subjects on the suite's first background"
    )
    adapter: Adapter = None
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, le=2**31 - 1, description="the noise")
    count: Annotated[int, Option("--count")] = Field(
        1, ge=1, le=64, description="pictures, whose seeds --seed decides"
    )
    seeds: Annotated[str | None, Option("--seeds")] = Field(
        None, description="these very seeds, as in 0,4-6, instead of --seed, --count"
    )
    columns: Annotated[int | None, Option("--columns")] = Field(
        None, ge=1, le=64, description="of the contact sheet"
    )
    each: Annotated[bool, Option("--each")] = Field(
        False, description="a file per seed, NAME-SEED.png, instead of a sheet"
    )
    batch: Annotated[Path | None, Option("--batch", metavar="CSV")] = Field(
        None,
        description="paint every row of a file (docs/inference.md); what is there stays",
    )
    compare: Annotated[bool, Option("--compare")] = Field(
        False,
        description="paint with the base beside the adapter and tell what the judge says of both; "
        "--out is then a new folder",
    )
    again: Annotated[Path | None, Option("--again", metavar="PNG")] = Field(
        None, description="paint that picture once more, to the same bytes"
    )


def generate(run: PaintRun) -> Mapping[str, Any]:
    """Paint subjects from reference pictures, with or without an adapter.

    Several seeds give a contact sheet. The PNG tells how it was made: --again makes it once more.
    """
    from focusdpo.flows.generate.inference import Generator

    _check(run)
    require_here(run.out)
    if run.again is not None:
        return _again(run, run.again)
    generator = Generator(GenerateRun.model_validate(shared(run, GenerateRun)), run.adapter)
    if run.batch is not None:
        return _batch(run.batch, generator, run.out)
    if len(run.reference) != len(run.class_name):
        raise UserError(
            f"{len(run.reference)} --reference and {len(run.class_name)} --class-name: give one "
            "class name per reference"
        )
    if run.compare:
        return {"command": "generate", **_compare(run, generator)}
    return {"command": "generate", **_paint(run, generator)}


def _compare(run: PaintRun, adapted: Generator) -> dict[str, Any]:
    from focusdpo.evaluation.protocols import MODELS
    from focusdpo.flows.generate.compared import compare
    from focusdpo.flows.generate.inference import Generator
    from focusdpo.flows.generate.side_by_side import SideBySide

    if run.adapter is None:
        raise UserError("--compare: needs --adapter; without one there is the base alone")
    subjects = list(zip(run.reference, run.class_name, strict=True))
    with working("loading the generator, painting and judging"):
        both = SideBySide(Generator(adapted.run), adapted)
        made = compare(both, run.prompt, subjects, _seeds(run), run.out)
    say(f"{run.out}: {made.prompt}")
    for model in MODELS:
        for picture in made.sides[model]:
            identity, margin = _figure(picture.identity), _figure(picture.leakage_margin)
            say(f"{picture.file:<16} identity {identity}, leakage margin {margin}: {picture.words}")
    return {"out": str(run.out), **made.model_dump(mode="json")}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _paint(run: PaintRun, generator: Generator) -> dict[str, Any]:
    from focusdpo.flows.generate.inference import sheet

    subjects, seeds = list(zip(run.reference, run.class_name, strict=True)), _seeds(run)
    with working("painting"):
        painted = generator(run.prompt, subjects, seeds)
        if run.each:
            names = [
                run.out.with_stem(f"{run.out.stem}-{picture.about.seeds[0]}") for picture in painted
            ]
        else:
            names, painted = [run.out], [sheet(painted, run.columns)]
        for name, picture in zip(names, painted, strict=True):
            picture.save(name)
    for name in names:
        say(f"{name}: {painted[0].about.prompt}")
    about = painted[0].about.model_dump(mode="json") | {"seeds": list(seeds)}
    return {"out": str(names[0]), "files": [str(name) for name in names], **about}


def _again(run: PaintRun, picture: Path) -> Mapping[str, Any]:
    from focusdpo.flows.generate.inference import again
    from focusdpo.sharing.marks import unsigned

    with working("painting once more"):
        made = again(picture, run.reference, run.adapter)
        same = made.png() == unsigned(picture.read_bytes())
        made.save(run.out)
    say(f"{run.out}: {'the same bytes' if same else 'not the same bytes'} as {picture}")
    summary = {"command": "generate", "out": str(run.out), "again": str(picture), "same": same}
    return summary if same else Incomplete(summary)


def _batch(path: Path, generator: Generator, out: Path) -> Mapping[str, Any]:
    from focusdpo.flows.generate.batch_jobs import read_jobs, run_jobs

    jobs = read_jobs(path, generator)
    with Bars() as watch:
        result = run_jobs(jobs, generator, out, lambda at, of: watch("paint", at, of, {}))
    say(f"{out}: {len(result.painted)} painted, {len(result.skipped)} there before")
    for row, why in result.failed.items():
        say(f"row {row}: {why}")
    summary = {"command": "generate", "out": str(out), **asdict(result)}
    return Incomplete(summary) if result.failed else summary


def _seeds(run: PaintRun) -> list[int]:
    from focusdpo.data_schemas.scenes import candidate_seed
    from focusdpo.flows.generate.batch_jobs import parse_seeds

    if run.seeds is None:
        return [run.seed, *(candidate_seed(run.seed, index) for index in range(1, run.count))]
    try:
        return list(parse_seeds(run.seeds))
    except UserError as error:
        raise UserError(f"--seeds {run.seeds[:80]}: {error}") from error


def _check(run: PaintRun) -> None:
    if run.batch is not None and run.again is not None:
        raise UserError("--batch and --again: give one of them")
    named = [
        name
        for name, value in (
            ("--reference", run.reference if run.batch else ()),
            ("--class-name", run.class_name),
            ("--prompt", run.prompt),
        )
        if value
    ]
    if (run.batch or run.again) and named:
        source = "the CSV" if run.batch else "the picture"
        raise UserError(f"{', '.join(named)}: {source} tells that already; leave it out")
    other = {"--batch": run.batch, "--again": run.again, "--each": run.each}
    if run.compare and any(other.values()):
        named = [name for name, value in other.items() if value]
        raise UserError(f"--compare and {', '.join(named)}: give one of them")


class DemoAppRun(GenerateRun):
    """`demo-app`: base and adapter side by side in a browser."""

    adapter: Adapter = None
    host: Annotated[str, Option("--host")] = Field("127.0.0.1", description="address to listen at")
    port: Annotated[int, Option("--port")] = Field(7860, ge=1, le=65535, description="port")


def demo_app(run: DemoAppRun) -> None:
    """Upload subjects in a browser and see base and FocusDPO side by side, with the leakage
    numbers. Needs `pip install 'focusdpo[demo]'`."""
    from focusdpo.flows.generate.demo_app import DemoAppConfig, serve

    say(f"http://{run.host}:{run.port}/")
    base = GenerateRun.model_validate(shared(run, GenerateRun))
    adapter = fetched(None if run.adapter is None else Path(run.adapter))
    serve(DemoAppConfig(base, adapter, host=run.host, port=run.port))


def focus_maps(run: FocusMapsRun) -> Mapping[str, Any]:
    """Draw the focus maps of a pair over noise levels, and measure on many pairs whether alignment
    rises as noise falls: for the configured features, and for every kind at every block.

    Writes maps.png, maps.safetensors, premise.png and premise.json.
    """
    from focusdpo.flows.focus.run import focus_on

    with Bars() as watch:
        outcome = focus_on(run, watch)
    for line in table_lines(outcome.premise):
        say(line)
    say(f"figures: {outcome.figure('maps')}, {outcome.figure('premise')}")
    return outcome.as_dict()


def table_lines(premise: Mapping[str, Any]) -> Iterator[str]:
    """The configured features, then the base's places on winners, then the best of them."""
    high, low = premise["sigmas"][0], premise["sigmas"][-1]
    subjects = ", ".join(f"{n} with {r}" for r, n in premise["pairs"]["by_subjects"].items())
    yield (
        f"{counted(len(premise['pairs']['ids']), 'pair')} of split {premise['split']} (by "
        f"subjects: {subjects}). A at sigma {high:g} -> {low:g}; by chance {premise['chance']:.2f}"
    )
    level = f"rise [{100 * premise['settings']['premise']['level']:g} %]"
    yield (
        f"{'':<8} {'':<7} {'features':<24} {'A high':>6} {'A low':>6} {level:>22} "
        f"{'rank corr':>9} {'M_s high':>8} {'M_s low':>8} {'confused':>8}"
    )
    yield from map(_line, premise["configured"])
    places = [r for r in premise["table"] if (r["phase"], r["branch"]) == ("base", "winner")]
    if len(places) > SHOWN:
        places = sorted(places, key=lambda row: -(row["rise"] or 0))[:SHOWN]
    yield from map(_line, places)
    for words, key in (("largest rise", "rise"), ("largest A at low noise", "low_noise")):
        best = premise["best"][key]
        a = best["alignment"]["mean"]
        yield f"{words}: {best['kind']} at {best['blocks']}, A {a[0]:.2f} -> {a[-1]:.2f}"


def _line(row: Mapping[str, Any]) -> str:
    a, share = row["alignment"]["mean"], row["structure_share"]["mean"]
    rise = f"{row['rise']:+.2f} [{row['rise_low']:+.2f}, {row['rise_high']:+.2f}]"
    confused = row["confusion"]["mean"][-1]
    place = f"{row['kind']} {row['blocks']}"
    return (
        f"{row['phase']:<8} {row['branch']:<7} {place:<24} {a[0]:>6.2f} {a[-1]:>6.2f} {rise:>22} "
        f"{row['spearman']:>9.2f} {share[0]:>8.2f} {share[-1]:>8.2f} "
        + (f"{'-':>8}" if confused is None else f"{confused:>8.2f}")
    )
