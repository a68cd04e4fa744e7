"""`focus-maps` without a command line: a dataset version -> figures of maps and of the premise."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.shards import IndexRow, ShardSample
from focusdpo.flows.config import FocusMapsRun
from focusdpo.flows.focus import focus_figures
from focusdpo.flows.wiring import build_part
from focusdpo.model.adapter import load_adapter, reference_policy, remove_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.focus_config import PremiseConfig
from focusdpo.model.focus_levels import (
    BRANCHES,
    METRICS,
    Arrays,
    Premise,
    Values,
    about_pair,
    bootstrap_band,
    maps_over_sigmas,
    measure_premise,
    noisy_images,
    pair_noise,
    rise_of,
    spread,
)
from focusdpo.model.training.batches import PairBatch, encode_pairs
from focusdpo.model.training.monitor import mean_present
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.outputs import local
from focusdpo.store.provenance import ADAPTER_FOLDER, require_kind
from focusdpo.store.versions import DatasetVersion

PHASES = ("base", "adapter")
STORED = {"base": "start", "adapter": "end"}
"""As training names the maps that it leaves."""


@dataclass(frozen=True, kw_only=True)
class FocusOutcome:
    """What a run left in `out`."""

    out: str
    version: str
    split: str
    pair: str
    """The pair that was drawn."""
    premise: dict[str, Any]
    """As in premise.json."""

    def figure(self, name: str) -> str:
        """Path of a figure: maps or premise."""
        return str(Path(self.out) / f"{name}.png")

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: the files, and the numbers of the short table."""
        best = {
            of: {name: row[name] for name in ("kind", "blocks", "rise", "spearman")}
            for of, row in self.premise["best"].items()
        }
        return {
            "command": "focus-maps",
            "out": self.out,
            "version": self.version,
            "split": self.split,
            "pair": self.pair,
            "figures": [self.figure("maps"), self.figure("premise")],
            "pairs": len(self.premise["pairs"]["ids"]),
            "chance": self.premise["chance"],
            "configured": [ends(row) for row in self.premise["configured"]],
            "best": best,
        }


def focus_on(run: FocusMapsRun, watch: Watch = quiet) -> FocusOutcome:
    """Draw one pair's maps and measure the premise; overwrites what is in `run.out`.

    UserError for an unknown pair, a split without pairs, a damaged shard, a foreign adapter.
    """
    with reading(run.root, run.version, "a look at focus maps") as version:
        return _focus_on(run, version, watch)


def _focus_on(run: FocusMapsRun, version: DatasetVersion, watch: Watch) -> FocusOutcome:
    rows = chosen_rows(version, run)
    shown = pair_row(version, run)
    if run.adapter is not None:  # before models load
        require_kind(local(run.adapter), ADAPTER_FOLDER)
    backbone = build_part(run.family, "backbone")
    digest = _put_adapter(backbone, run.adapter)
    try:
        make_folder(Path(run.out))
        watch("draw maps", 0, 1, {})
        _draw_maps(run, backbone, version.read(shown))
        watch("draw maps", 1, 1, {})
        premise = _premise(run, backbone, version, rows, watch) | {"adapter": digest}
    finally:
        remove_policy(backbone.transformer)
    text = json.dumps(premise, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(Path(run.out) / "premise.json", text.encode())
    write_whole(Path(run.out) / "premise.png", focus_figures.premise_figure(premise))
    return FocusOutcome(
        out=run.out, version=version.id, split=run.split, pair=shown.pair_id, premise=premise
    )


def _put_adapter(backbone: Backbone, folder: str | None) -> str | None:
    """The digest of the adapter's weights, once it is on the backbone."""
    remove_policy(backbone.transformer)
    return None if folder is None else load_adapter(backbone, local(folder)).weights_digest


def _phase(backbone: Backbone, phase: str) -> Any:
    """Inside, the backbone is the base, or has the adapter on."""
    return reference_policy(backbone.transformer) if phase == "base" else nullcontext()


def _phases(run: FocusMapsRun) -> tuple[str, ...]:
    return PHASES if run.adapter else PHASES[:1]


def chosen_rows(version: DatasetVersion, run: FocusMapsRun) -> list[IndexRow]:
    """`run.pairs` pairs of the split, spread over numbers of subjects; the same ones each time."""
    groups: dict[int, list[IndexRow]] = defaultdict(list)
    for row in sorted(version.rows_of(run.split), key=lambda row: row.pair_id):
        groups[row.num_subjects].append(row)
    if not groups:
        splits = sorted({row.split for row in version.rows})
        raise UserError(
            f"{run.root}: version {version.id} has no pair in split '{run.split}'; it has pairs in "
            f"{', '.join(splits) or 'none'}. Choose another --split, or build from more subjects"
        )
    return spread(groups, run.pairs)


def pair_row(version: DatasetVersion, run: FocusMapsRun) -> IndexRow:
    """The pair that is drawn: as asked for, of any split, or the split's first by id among those
    with most subjects."""
    if run.pair_id is None:
        return min(version.rows_of(run.split), key=lambda row: (-row.num_subjects, row.pair_id))
    by_id = {row.pair_id: row for row in version.rows}
    if run.pair_id not in by_id:
        near = difflib.get_close_matches(run.pair_id, by_id, n=3, cutoff=0.0)
        raise UserError(
            f"--pair {run.pair_id}: version {version.id} of {run.root} has no such pair among its "
            f"{len(by_id)}; near ones: {', '.join(near)}. Ids are in `focusdpo inspect` and in the "
            "report"
        )
    return by_id[run.pair_id]


def maps_of(run: FocusMapsRun, sample: ShardSample) -> tuple[Arrays, dict[str, Any]]:
    """One pair's maps and noisy pictures, and what it is, without writing anything. `run.root` and
    `run.out` do not matter. UserError for a foreign adapter."""
    backbone = build_part(run.family, "backbone")
    _put_adapter(backbone, run.adapter)
    try:
        return _pair_maps(run, backbone, sample)
    finally:
        remove_policy(backbone.transformer)


def _pair_maps(
    run: FocusMapsRun, backbone: Backbone, sample: ShardSample
) -> tuple[Arrays, dict[str, Any]]:
    batch = encode_pairs(backbone, [sample], focus=run.train.focus)
    arrays: Arrays = {}
    for phase in _phases(run):
        with _phase(backbone, phase):
            maps = maps_over_sigmas(
                backbone, batch, run.premise.sigmas, run.train.focus, seed=run.train.seed
            )
        for name, array in maps.items():
            arrays[f"{STORED[phase]}.{name}" if "." in name else name] = array
    # The noise of `maps_over_sigmas`: the pictures are what the maps were read from.
    noise_BNC = pair_noise(batch, run.train.seed)
    noisy_VSHW3 = noisy_images(backbone, batch, run.premise.sigmas, noise_BNC)
    pictures, info = about_pair(sample)
    arrays |= pictures | {"win_noisy": noisy_VSHW3[0], "lose_noisy": noisy_VSHW3[1]}
    info["source"] = f"{sample.pair.source}, {sample.pair.mode}"
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, info


def _draw_maps(run: FocusMapsRun, backbone: Backbone, sample: ShardSample) -> None:
    """maps.safetensors, in the manner of training's focus maps, and maps.png."""
    from safetensors.numpy import save

    arrays, info = _pair_maps(run, backbone, sample)
    write_whole(Path(run.out) / "maps.safetensors", save(arrays, {"info": json.dumps(info)}))
    features = " at ".join(_features(run, backbone))
    figure = focus_figures.maps_figure(arrays, info, features, run.train.focus.tau)
    write_whole(Path(run.out) / "maps.png", figure)


def _features(run: FocusMapsRun, backbone: Any) -> tuple[str, str]:
    """Kind and blocks of the configured features, in words."""
    features = run.train.focus.features
    blocks = features.blocks or getattr(backbone, "default_blocks", ())
    return features.kind, "+".join(blocks) or "default"


def _batches(
    run: FocusMapsRun, backbone: Backbone, version: DatasetVersion, rows: Sequence[IndexRow]
) -> list[PairBatch]:
    """Rows of one number of subjects after another, at most `premise.batch_pairs` in a batch."""
    size, focus = run.premise.batch_pairs, run.train.focus
    batches = []
    for _, group in groupby(rows, key=lambda row: row.num_subjects):
        samples = [version.read(row) for row in group]
        batches += [
            encode_pairs(backbone, samples[at : at + size], focus=focus)
            for at in range(0, len(samples), size)
        ]
    return batches


def _premise(
    run: FocusMapsRun,
    backbone: Backbone,
    version: DatasetVersion,
    rows: Sequence[IndexRow],
    watch: Watch,
) -> dict[str, Any]:
    """What premise.json holds."""
    batches = _batches(run, backbone, version, rows)
    subjects_P = [row.num_subjects for row in rows]
    configured, grouped, table = [], [], []
    for phase in _phases(run):
        with _phase(backbone, phase):
            measured = measure_premise(
                backbone,
                batches,
                run.train.focus,
                run.premise,
                seed=run.train.seed,
                progress=watch,
                phase=f"measure {phase}",
            )
        features = _features(run, backbone)
        rows_of = premise_rows(phase, measured, subjects_P, features, run.premise)
        configured += rows_of[0]
        grouped += rows_of[1]
        table += rows_of[2]
    return {
        "version": version.id,
        "split": run.split,
        "base": backbone.fingerprint,
        "pairs": {
            "ids": [row.pair_id for row in rows],
            "by_subjects": {str(n): count for n, count in sorted(Counter(subjects_P).items())},
        },
        "sigmas": list(run.premise.sigmas),
        "settings": {
            "focus": run.train.focus.model_dump(mode="json"),
            "seed": run.train.seed,
            "premise": run.premise.model_dump(mode="json"),
        },
        "chance": configured[0]["chance"][-1],
        "configured": configured,
        "by_subjects": grouped,
        "table": table,
        "best": best_places(table),
    }


Row = dict[str, Any]
CURVES = ("alignment", "structure_share", "confusion")


def premise_rows(
    phase: str,
    measured: Premise,
    subjects_P: Sequence[int],
    features: tuple[str, str],
    config: PremiseConfig,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the configured features, of those by number of subjects, and of every place; each
    for winners and losers. `features` names the configured ones: kind, blocks."""
    number_P = np.asarray(subjects_P)
    configured, grouped, table = [], [], []
    for branch in range(len(BRANCHES)):
        head = {"phase": phase, "branch": BRANCHES[branch]}
        configured_head = {**head, "kind": features[0], "blocks": features[1]}
        configured.append(configured_head | _summary(measured.configured, branch, config))
        for number in sorted(set(subjects_P)):
            part = {name: v[number_P == number] for name, v in measured.configured.items()}
            grouped.append(configured_head | {"subjects": number} | _summary(part, branch, config))
        for (kind, block), values in measured.places.items():
            place = {**head, "kind": kind, "blocks": block}
            table.append(place | _summary(values, branch, config))
    return configured, grouped, table


def _summary(values: Values, branch: int, config: PremiseConfig) -> Row:
    """Bands of the metrics over sigma, and the rise of A."""
    row: Row = {}
    for name in METRICS:
        values_PS = values[name][:, :, branch]
        if name not in CURVES:  # levels to compare with
            row[name] = [number(mean_present(values_P)) for values_P in values_PS.T]
        else:
            band = bootstrap_band(values_PS, resamples=config.resamples, level=config.level)
            ends = {"mean": band.mean, "low": band.low, "high": band.high}
            row[name] = {end: numbers(v) for end, v in ends.items()} | {"pairs": band.pairs}
    change = rise_of(
        values["alignment"][:, :, branch],
        config.sigmas,
        resamples=config.resamples,
        level=config.level,
    )
    rise = change.rise
    figures = {"rise": rise.mean[0], "rise_low": rise.low[0], "rise_high": rise.high[0]}
    figures |= {"spearman": change.spearman, "peak_sigma": change.peak_sigma}
    return row | {name: number(value) for name, value in figures.items()}


def best_places(table: Sequence[Row]) -> dict[str, Row]:
    """Of the base's places on winners: the largest rise of A, and the largest A at the lowest
    sigma. The first of equals."""
    places = [row for row in table if (row["phase"], row["branch"]) == ("base", "winner")]
    return {
        "rise": max(places, key=lambda row: row["rise"]),
        "low_noise": max(places, key=lambda row: row["alignment"]["mean"][-1]),
    }


def ends(row: Row) -> Row:
    """A row's A at the highest and lowest sigma, and how it rises."""
    a = row["alignment"]["mean"]
    names = ("phase", "branch", "kind", "blocks", "rise", "rise_low", "rise_high", "spearman")
    return {name: row[name] for name in names} | {"high": a[0], "low": a[-1]}


def number(value: float) -> float | None:
    """Six decimals; None for NaN, which JSON has no word for."""
    return None if math.isnan(value) else round(float(value), 6)


def numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Each of them."""
    return [number(float(value)) for value in values]
