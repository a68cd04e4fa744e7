"""focus-maps: what the loss looks at, and whether the method's premise holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import JSON, PRESET, ROOT, SET, finish, say, tree
from focusdpo.flows.config import FocusMapsRun
from focusdpo.flows.progress import Bars
from focusdpo.flows.settings import resolve

SHOWN = 20
"""A deep backbone has more places than anyone reads; premise.json has them all."""


def focus_maps(
    root: ROOT,
    out: Annotated[str, typer.Option("--out", help="Folder of the figures and numbers.")],
    version: Annotated[str, typer.Option("--version", help="Dataset version.")] = "latest",
    split: Annotated[
        str | None, typer.Option("--split", help="Which pairs: train (the default) or val.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", help="Folder or address that `train` wrote: shows it beside the base."
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Id of the pair to draw. Default: first with most subjects."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="How many to measure. Default: 48.")
    ] = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Draw the focus maps of a pair over noise levels, and measure on many pairs whether alignment
    rises as noise falls: for the configured features, and for every kind at every block.

    Writes maps.png, maps.safetensors, premise.png and premise.json.
    """
    where = {"root": root, "out": out, "version": version, "split": split, "adapter": adapter}
    run = resolve(FocusMapsRun, tree(preset, set_, **where, pair_id=pair, pairs=pairs))
    from focusdpo.flows.focus.run import focus_on

    with Bars() as watch:
        outcome = focus_on(run, watch)
    for line in table_lines(outcome.premise):
        say(line)
    say(f"figures: {outcome.figure('maps')}, {outcome.figure('premise')}")
    finish(outcome.as_dict(), json)


def table_lines(premise: Mapping[str, Any]) -> Iterator[str]:
    """The configured features, then the base's places on winners, then the best of them."""
    high, low = premise["sigmas"][0], premise["sigmas"][-1]
    subjects = ", ".join(f"{n} with {r}" for r, n in premise["pairs"]["by_subjects"].items())
    yield (
        f"{len(premise['pairs']['ids'])} pairs of split {premise['split']} (by subjects: "
        f"{subjects}). A at sigma {high:g} -> {low:g}; by chance {premise['chance']:.2f}"
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
