"""A small made-up ablation, its pictures, and ways to change single contrasts of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.ablations import (
    BASE,
    Ablation,
    Agreement,
    Arm,
    ArmRow,
    Contrast,
    CurvePoint,
    Reading,
    SearchPoint,
)
from focusdpo.data_schemas.images import encode_png
from focusdpo.evaluation.metrics import METRICS

OBJECTIVES = {
    "sft": "SFT",
    "dpo": "DPO",
    "dpo_prior": "DPO in M_prior",
    "focus_s": "FocusDPO, M_s alone",
    "focus_d": "FocusDPO, M_d alone",
    "focus_dpo": "FocusDPO, M_s and M_d",
    "patch_dpo": "PatchDPO, with reference policy",
    "patch_released": "PatchDPO, as released",
}
SOURCES = ("disrupt", "rank", "both")
GROUPS = ("all", "1 subject", "2 subjects", "3 subjects", "same class", "held-out classes")
SCENES = {"all": 80, "1 subject": 16, "2 subjects": 48, "3 subjects": 16}
BEST = "focus_dpo/both"
GAINS = {
    "sft": 0.006,
    "dpo": 0.014,
    "dpo_prior": 0.018,
    "focus_s": 0.021,
    "focus_d": 0.017,
    "focus_dpo": 0.031,
    "patch_dpo": 0.012,
    "patch_released": 0.002,
}
"""Difference to the base on identity with pairs of both sources."""


def gain(arm: Arm, metric: str) -> float:
    """What an arm gains on a metric."""
    if arm.name == BASE:
        return 0.0
    value = GAINS[arm.objective] - {"disrupt": 0.004, "rank": 0.006, "both": 0.0}[arm.source]
    return value * (1.0 if metric in ("identity", "leakage_margin", "copy_paste") else -0.3)


def make_arms() -> tuple[Arm, ...]:
    """The base and every objective on every source."""
    base = Arm(name=BASE, objective=BASE, label="base", source="", settings={})
    trained = [
        Arm(
            name=f"{objective}/{source}",
            objective=objective,
            label=label,
            source=source,
            settings={"train.lr": "0.0004", "train.objective.beta": "2000"},
        )
        for source in SOURCES
        for objective, label in OBJECTIVES.items()
    ]
    return (base, *trained)


def contrast(
    a: str, b: str, metric: str, group: str, mean: float, half: float = 0.008, family: str = "base"
) -> Contrast:
    """A contrast whose own interval reaches `half` to each side, and the family's 1.5 times it."""
    return Contrast(
        a=a,
        b=b,
        metric=metric,
        group=group,
        mean=mean,
        low=mean - half,
        high=mean + half,
        family_low=mean - 1.5 * half,
        family_high=mean + 1.5 * half,
        p_family=0.012 if abs(mean) > 1.5 * half else 0.31,
        scenes=64 if metric == "leakage_margin" else SCENES.get(group, 20),
        family=family,
    )


def make_ablation() -> Ablation:
    """FocusDPO with both maps is best and beats base, SFT and PatchDPO, but not DPO for sure."""
    arms = make_arms()
    return Ablation(
        protocol="pocket",
        dataset_version="v-4f2a90c1",
        pairs={"disrupt": 640, "rank": 410, "both": 1050},
        steps=300,
        batch_pairs=8,
        seeds=(0, 1, 2),
        scenes=80,
        validation_scenes=48,
        arms=arms,
        best=BEST,
        search=_search(),
        curves=_curves(),
        rows=_rows(arms),
        contrasts=_contrasts(arms),
        agreement=_agreement(arms),
        readings=_readings(),
        metrics_better={name: metric.better for name, metric in METRICS.items()},
        seconds=14230.0,
        wall_seconds=7300.0,
        workers=2,
        machine={"processor": "Some CPU", "cores": "2", "memory_gib": "8", "python": "3.11.9"},
        command="focusdpo ablate --root data --out runs/ablation",
        pictures={BASE: "base/images/base"}
        | {arm.name: f"arms/{arm.name}/images" for arm in arms if arm.name != BASE},
    )


def _readings() -> tuple[Reading, ...]:
    """One that is worse for sure, one undecided."""
    return tuple(
        Reading(
            name=name,
            settings={"focus.w_low": "0"},
            metric=metric,
            mean=mean,
            low=mean - 0.004,
            high=mean + 0.004,
            family_low=mean - 0.01,
            family_high=mean + 0.01,
            scenes=96,
        )
        for name, mean in (("M' weighs nothing", -0.02), ("gate: always", 0.003))
        for metric in ("identity", "leakage_margin")
    )


def _search() -> tuple[SearchPoint, ...]:
    points = []
    for objective in OBJECTIVES:
        for rank, beta in enumerate(("500", "2000", "8000")):
            score = GAINS[objective] - 0.004 * abs(rank - 1)
            points.append(
                SearchPoint(
                    objective=objective,
                    settings={"train.objective.beta": beta, "train.lr": "0.0004"},
                    score=2 * score,
                    identity=score,
                    leakage_margin=score,
                    winner_rise=math.nan if objective == "sft" else 0.02 * rank,
                    chosen=rank == 1,
                )
            )
    return tuple(points)


def _curves() -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(objective=name, step=step, metric=metric, value=top * (1 - 0.985**step))
        for name, top in GAINS.items()
        for metric in ("identity", "leakage_margin")
        for step in range(0, 301, 50)
    )


def _rows(arms: tuple[Arm, ...]) -> tuple[ArmRow, ...]:
    rows = []
    for arm in arms:
        for metric in METRICS:
            for place, group in enumerate(GROUPS):
                lone = group == "1 subject" and metric in ("leakage_margin", "confusion")
                mean = 0.8 - 0.05 * place + gain(arm, metric)
                rows.append(
                    ArmRow(
                        arm=arm.name,
                        metric=metric,
                        group=group,
                        mean=math.nan if lone else mean,
                        seed_std=math.nan if arm.name == BASE else 0.003,
                        seeds=1 if arm.name == BASE else 3,
                        scenes=SCENES.get(group, 20),
                    )
                )
    return tuple(rows)


def _contrasts(arms: tuple[Arm, ...]) -> tuple[Contrast, ...]:
    made = []
    for arm in arms[1:]:
        for metric in METRICS:
            made += [
                contrast(arm.name, BASE, metric, group, gain(arm, metric), family=_family(metric))
                for group in GROUPS
                if not (group == "1 subject" and metric == "leakage_margin")
            ]
            if _family(metric) == "guards" or arm.objective != "focus_dpo":
                continue
            made += [
                contrast(
                    arm.name,
                    other.name,
                    metric,
                    "all",
                    gain(arm, metric) - gain(other, metric),
                    half=0.012 if family == "main" else 0.01,
                    family=family,
                )
                for family in ("main", arm.source)
                for other in arms[1:]
                if other.source == arm.source and other.name != arm.name
            ]
    return tuple(made)


def _family(metric: str) -> str:
    return "base" if metric in ("identity", "leakage_margin") else "guards"


def _agreement(arms: tuple[Arm, ...]) -> tuple[Agreement, ...]:
    return tuple(
        Agreement(
            arm=arm.name,
            metric=metric,
            spearman=0.71,
            pictures=160,
            scorer_difference=math.nan if arm.name == BASE else 0.04,
            judge_difference=math.nan if arm.name == BASE else 0.03,
        )
        for arm in arms
        if arm.source in ("", "both")
        for metric in ("identity", "leakage_margin")
    )


def with_contrast(
    ablation: Ablation, a: str, b: str, metric: str, low: float, high: float
) -> Ablation:
    """The same with another interval (own and family's) of one contrast over all scenes."""
    changed = tuple(
        dataclasses.replace(
            one, mean=(low + high) / 2, low=low, high=high, family_low=low, family_high=high
        )
        if (one.a, one.b, one.metric, one.group) == (a, b, metric, "all")
        else one
        for one in ablation.contrasts
    )
    return dataclasses.replace(ablation, contrasts=changed)


def write_pictures(folder: Path, ablation: Ablation, scenes: int = 12) -> None:
    """References, `subjects.json` and a picture per arm and scene; 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    subjects, prompts = {}, {}
    for number in range(scenes):
        scene = f"{number:016x}"[::-1]
        words = ("duck", "teapot", "house")[: number % 3 + 1]
        prompts[scene] = f"a {' and a '.join(words)} on grass"
        for place, word in enumerate(words):
            name = f"{scene[:8]}-{place}-{word}"
            file = f"references/{name}/0.png"
            _picture(folder / "base" / file, rng)
            subjects[name] = {"class_name": word, "held_out_class": False, "pictures": [file]}
        for below in ablation.pictures.values():
            _picture(folder / below / f"{scene}-0.png", rng)
    text = json.dumps({"subjects": subjects, "prompts": prompts})
    (folder / "base" / "subjects.json").write_text(text, encoding="utf-8")


def _picture(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    path.write_bytes(encode_png(np.kron(colours, np.ones((8, 8, 1), np.uint8))))
