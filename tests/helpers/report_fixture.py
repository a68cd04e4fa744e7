"""A made-up but plausible report, for tests of the page alone: every section, hostile words."""

from __future__ import annotations

import math

import numpy as np

from focusdpo.reports.evaluation_section import agreement_notes
from focusdpo.reports.metric_texts import choose, judge, metric_info
from focusdpo.reports.thumbnails import heat_map, overlay, picture
from focusdpo.reports.view import (
    AgreementLine,
    Bucket,
    BucketChart,
    Count,
    DatasetPart,
    EvaluationPart,
    Example,
    ExampleFigure,
    Fact,
    FocusGrid,
    FocusRow,
    Histogram,
    Interval,
    Line,
    LineagePart,
    LineChart,
    MetricRow,
    ModelFact,
    PairCard,
    Picture,
    RejectCard,
    ReportData,
    Scatter,
    SubjectScore,
    TrainingPart,
)

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&"
CLASSES = ("teapot", "dog", "backpack", "robot", "cat", "guitar")


def _scene(rng: np.random.Generator, hues: list[int], size: int = 64) -> tuple[np.ndarray, ...]:
    """An image of coloured discs and the mask of each."""
    rows, cols = np.mgrid[:size, :size]
    image = np.empty((size, size, 3), np.uint8)
    image[...] = rng.integers(150, 220, 3) - (rows[..., None] // 3)
    masks = []
    for index, hue in enumerate(hues):
        x = size * (index + 1) / (len(hues) + 1) + rng.integers(-4, 5)
        inside = (cols - x) ** 2 + (rows - 34 - rng.integers(-5, 6)) ** 2 < (
            22 / len(hues) + 4
        ) ** 2
        colour = [127 + 110 * math.cos(math.radians(hue + turn)) for turn in (0, 120, 240)]
        shade = 1.1 - 0.5 * (rows[inside] / size)
        image[inside] = np.clip(np.array(colour) * shade[:, None], 0, 255).astype(np.uint8)
        masks.append(inside)
    return (image, *masks)


def _pair(rng: np.random.Generator, index: int) -> PairCard:
    hues = [int(h) for h in rng.integers(0, 360, 1 + index % 3)]
    win, *masks = _scene(np.random.default_rng(index), hues)
    lose, *_ = _scene(np.random.default_rng(index), [hue + 130 for hue in hues])
    prior = np.any(masks, axis=0)
    lose = np.where(prior[..., None], lose, win)
    names = [CLASSES[(index + i) % len(CLASSES)] for i in range(len(hues))]
    return PairCard(
        id=f"{index:016x}",
        prompt=HOSTILE if index == 1 else f"a {' and a '.join(names)} on a wooden table",
        source="rank" if index % 4 == 3 else "disrupt",
        mode="rank" if index % 4 == 3 else ("all", "subset", "swap")[index % 3],
        win=picture(win, f"winner: {', '.join(names)}"),
        lose=picture(lose, f"loser: {', '.join(names)}"),
        prior=overlay(win, prior, "winner with the repainted region"),
        references=tuple(
            picture(_scene(rng, [hue])[0], f"reference of the {name}")
            for hue, name in zip(hues, names, strict=True)
        ),
        subjects=tuple(
            SubjectScore(
                class_name=name,
                win_identity=0.8 - 0.02 * i,
                lose_identity=0.31 + 0.05 * i,
                win_leakage_margin=0.42,
                lose_leakage_margin=-0.08,
                repainted=i == 0,
            )
            for i, name in enumerate(names)
        ),
        win_clip_t=0.31,
        lose_clip_t=0.30,
        margin=0.2 + 0.01 * index,
        reason="identity falls by 0.49 on the repainted subject; CLIP-T changes by 0.01.",
        record={"kind": "pair", "where": {"shard": "shards/a.tar"}, "pair": {"prompt": HOSTILE}},
    )


def _dataset(rng: np.random.Generator) -> DatasetPart:
    edges = tuple(float(e) for e in np.linspace(-0.2, 1, 25))
    bins = [np.histogram(rng.normal(m, 0.12, 312), edges)[0] for m in (0.72, 0.36)]
    return DatasetPart(
        version="v-20261123-4be1c09a",
        facts=(
            Fact(label="pairs", value="312", note="280 train, 32 val"),
            Fact(label="subjects", value="48"),
            Fact(label="scenes", value="160"),
            Fact(label="shards", value="6", note="9.4 MB"),
        ),
        funnel=(
            Count(label="scenes", count=160),
            Count(label="sampled", count=640, explain="4 seeds each"),
            Count(label="complete", count=431, explain="every subject found exactly once"),
            Count(label="disrupted", count=862),
            Count(label="pairs", count=312),
        ),
        reject_reasons=(
            Count(label="missing subject", count=160, explain="not found in the winner"),
            Count(label="no identity drop", count=121, explain="loser keeps identity"),
            Count(label="meaning changed", count=44),
            Count(label="small margin", count=9),
        ),
        breakdowns=(
            ("By source", (Count(label="disrupt", count=240), Count(label="rank", count=72))),
            ("By mode", tuple(Count(label=m, count=c) for m, c in (("all", 120), ("swap", 88)))),
            ("By subjects", tuple(Count(label=f"{n}", count=100 * n) for n in (1, 2, 3))),
        ),
        histograms=(
            Histogram(
                title="Identity of winners and losers",
                explain="Cosine to the own references, per subject that differs.",
                x_label="identity score",
                edges=edges,
                counts=(
                    ("winner", "winner", tuple(int(c) for c in bins[0])),
                    ("loser", "loser", tuple(int(c) for c in bins[1])),
                ),
            ),
        ),
        pairs=tuple(_pair(rng, index) for index in range(12)),
        pairs_chosen="12 of 312 pairs, evenly spaced by rank of margin within each mode.",
        rejects=tuple(
            RejectCard(
                candidate_id=f"c{index}",
                prompt=HOSTILE if index == 0 else "a dog on grass",
                source="disrupt",
                reason=("missing_subject", "no_identity_drop")[index % 2],
                detail=HOSTILE if index == 0 else "identity 0.71, loser 0.69, needs 0.08",
                image=picture(_scene(rng, [40 * index])[0], "candidate"),
                record={"kind": "reject", "reject": {"detail": HOSTILE}},
            )
            for index in range(6)
        ),
        rejects_chosen="6 of 334 rejects, drawn by a hash of their ids, at most 3 per reason.",
        stages=(("generate", "40", "640", "212.4"), ("score", "40", "1502", "80.9")),
    )


def _focus(rng: np.random.Generator) -> FocusGrid:
    sigmas = (0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.05)
    prior = np.zeros((8, 8))
    prior[2:6, 1:4] = prior[2:6, 5:7] = 1
    rows = []
    fields = [np.clip(prior * (rng.random((8, 8)) > s), 0, 1) for s in sigmas]
    complexity = rng.random((8, 8)) * prior
    maps = {
        "M_prior": ("where the subjects stand", [prior for _ in sigmas]),
        "M'": ("tokens that already match a reference", fields),
        "M_s": ("M_prior where they do not: to be learned", [prior * (1 - f) for f in fields]),
        "M_d": ("detail of the winner's subjects", [complexity for _ in sigmas]),
        "W": ("weight of the loss, mean 1", [0.5 + prior * (2 - f) for f in fields]),
    }
    for symbol, (explain, values) in maps.items():
        high = 2.5 if symbol == "W" else 1.0
        rows.append(
            FocusRow(
                symbol=symbol,
                explain=explain,
                scale=f"0 to {high:g}",
                maps=tuple(
                    heat_map(v, f"{symbol} at sigma {s}", low=0, high=high)
                    for v, s in zip(values, sigmas, strict=True)
                ),
            )
        )
    return FocusGrid(
        explain="Pair 000000000001 of the validation split.",
        sigmas=sigmas,
        context=(_named("winner"), _named("loser"), _named("reference 1")),
        rows=tuple(rows),
    )


def _named(alt: str) -> Picture:
    return picture(_scene(np.random.default_rng(len(alt)), [len(alt) * 30, 200])[0], alt)


def _training(rng: np.random.Generator) -> TrainingPart:
    steps = tuple(float(s) for s in range(0, 300, 2))
    noise = rng.normal(0, 1, (4, len(steps)))

    def curve(index: int, start: float, end: float, spread: float) -> tuple[float, ...]:
        return tuple(
            end + (start - end) * math.exp(-s / 90) + spread * float(n)
            for s, n in zip(steps, noise[index], strict=True)
        )

    buckets = tuple(
        Bucket(start=i / 8, stop=(i + 1) / 8, mean=m, low=m - 0.05, high=m + 0.05, count=90)
        for i, m in enumerate((0.81, 0.78, 0.7, 0.62, 0.5, 0.41, 0.3, 0.22))
    )
    return TrainingPart(
        objective="focus_dpo",
        facts=(
            Fact(label="steps", value="300"),
            Fact(label="pairs a step", value="8"),
            Fact(label="beta", value="500"),
            Fact(label="wall time", value="3 min 12 s"),
        ),
        charts=(
            LineChart(
                title="Loss",
                explain="log 2 is chance: policy equals reference policy.",
                x_label="step",
                lines=(Line(name="loss", x=steps, y=curve(0, 0.69, 0.55, 0.03)),),
                level=math.log(2),
                level_label="log 2",
                smooth=True,
            ),
            LineChart(
                title="Implicit accuracy",
                explain="Share of pairs whose winner the policy prefers.",
                x_label="step",
                lines=(Line(name="accuracy", x=steps, y=curve(1, 0.5, 0.8, 0.08)),),
                level=0.5,
                level_label="chance",
                smooth=True,
            ),
            LineChart(
                title="Error against the reference policy",
                explain="Below zero: the policy fits better than the start weights do.",
                x_label="step",
                lines=(
                    Line(name="winner", x=steps, y=curve(2, 0, -0.004, 0.001), role="winner"),
                    Line(name="loser", x=steps, y=curve(3, 0, 0.003, 0.001), role="loser"),
                ),
                level=0.0,
                smooth=True,
            ),
        ),
        buckets=(
            BucketChart(title="A(t), alignment", explain="Mean overlap.", buckets=buckets),
            BucketChart(title="|M_s| / |M_prior|", explain="Share left to learn.", buckets=buckets),
        ),
        looks=(
            LineChart(
                title="What should rise",
                explain="Less the base's.",
                x_label="step",
                lines=(
                    Line(name="Score", x=(0, 100, 200, 300), y=(0, 0.02, 0.03, 0.01)),
                    Line(name="Identity", x=(0, 100, 200, 300), y=(0, 0.01, 0.02, math.nan)),
                ),
                level=0.0,
                level_label="base",
                dots=True,
                mark=200.0,
                mark_label="adapter",
            ),
        ),
        focus=_focus(rng),
        notes=(),
    )


def _rows() -> tuple[MetricRow, ...]:
    values = {
        "identity": (0.512, 0.041, 0.018),
        "leakage_margin": (0.221, 0.012, 0.03),
        "confusion": (0.182, -0.061, 0.03),
        "missing": (0.091, 0.022, 0.012),
        "duplicate": (0.031, 0.0, 0.01),
    }
    rows = []
    for metric, (base, change, spread) in values.items():
        info = metric_info(metric)
        for index, group in enumerate(("all", "2 subjects", "3 subjects", "held-out classes")):
            wide = spread * (1 + 0.6 * index)
            difference = Interval(mean=change, low=change - wide, high=change + wide)
            rows.append(
                MetricRow(
                    metric=metric,
                    title=info.title,
                    explain=info.explain,
                    unit=info.unit,
                    better=info.better,
                    group=group,
                    scenes=96 // (index + 1),
                    base=Interval(mean=base, low=base - 0.03, high=base + 0.03),
                    adapter=Interval(mean=base + change, low=base + change - 0.03, high=base + 0.1),
                    difference=difference,
                    verdict=judge(difference, info.better, 96 // (index + 1)),
                )
            )
    return tuple(rows)


def _evaluation(rng: np.random.Generator) -> EvaluationPart:
    scores = [(f"s{i:02d}", float(rng.normal(0.04, 0.1))) for i in range(40)]
    change = dict(scores)
    examples = []
    for why, name in choose(scores, extremes=2, randoms=4):
        hues = [int(h) for h in rng.integers(0, 360, 2)]
        examples.append(
            Example(
                why=why,
                scene_id=name,
                prompt="a teapot and a dog on a wooden table",
                references=tuple(picture(_scene(rng, [hue])[0], "reference") for hue in hues),
                base=picture(_scene(rng, [hues[0], hues[0]])[0], "base"),
                adapter=picture(_scene(rng, hues)[0], "adapter"),
                figures=(
                    ExampleFigure(
                        title="Matched identity",
                        unit="cosine",
                        better="higher",
                        base=0.51,
                        adapter=0.51 + change[name],
                    ),
                ),
                base_note="1 of 2 subjects resembles the other's reference",
                record={"kind": "scene", "base": {"hue_error": math.nan}},
            )
        )
    return EvaluationPart(
        protocol="pocket",
        facts=(Fact(label="scenes", value="96"), Fact(label="seeds a scene", value="1")),
        rows=_rows(),
        scatters=(_scatter(rng, change),),
        examples=tuple(examples),
        chosen="By change of matched identity; random ones by a hash of the scene's id.",
        agreement=_agreement(),
        agreement_notes=agreement_notes(_agreement()),
    )


def _agreement() -> tuple[AgreementLine, ...]:
    return tuple(
        AgreementLine(
            title=metric_info("identity").title,
            unit="cosine",
            group="all",
            model=model,
            spearman=spearman,
            count=96,
            scorer=Interval(mean=mean, low=mean - 0.01, high=mean + 0.02),
            judge=Interval(mean=mean - 0.02, low=mean - 0.03, high=mean + 0.01),
            change=model == "adapter - base",
        )
        for model, mean, spearman in (
            ("base", 0.51, 0.44),
            ("adapter", 0.55, None),
            ("adapter - base", 0.02, 0.15),
        )
    )


def _scatter(rng: np.random.Generator, change: dict[str, float]) -> Scatter:
    base = tuple(float(v) for v in rng.uniform(0.2, 0.8, len(change)))
    return Scatter(
        title="Matched identity",
        unit="cosine",
        better="higher",
        base=base,
        adapter=tuple(b + c for b, c in zip(base, change.values(), strict=True)),
        labels=(HOSTILE, *list(change)[1:]),
    )


def make_report() -> ReportData:
    """Every part filled."""
    rng = np.random.default_rng(0)
    return ReportData(
        title="FocusDPO report: v-20261123-4be1c09a",
        what="Preference dataset, FocusDPO training and evaluation on the pocket suite",
        created="2026-11-23 10:40 UTC",
        machine="2 x x86_64, 8 GB",
        software="0.1.0",
        dataset=_dataset(rng),
        training=_training(rng),
        evaluation=_evaluation(rng),
        lineage=LineagePart(
            facts=(Fact(label="seed", value="0"),),
            models=(
                ModelFact(
                    role="generator", name="pocket", fingerprint="ab12", licence="Apache-2.0"
                ),
            ),
            commands=("focusdpo demo --out demo",),
            configs=(("Training configuration", "steps: 300\nname: " + HOSTILE),),
        ),
    )
