"""Section 3 of the report from a training run's folder: facts, curves, looks at validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.tables import arrow_table
from focusdpo.evaluation.folder import read_json, read_object
from focusdpo.reports.metric_texts import in_sentence, metric_info, time_of
from focusdpo.reports.thumbnails import picture, read_focus
from focusdpo.reports.view import (
    Bucket,
    BucketChart,
    Fact,
    Line,
    LineChart,
    Picture,
    Role,
    TrainingPart,
    facts,
)
from focusdpo.store.keys import require_whole
from focusdpo.store.provenance import TRAINING_RUN, require_kind

_GAINS = ("score", "identity", "leakage_margin")
_HARMS = ("confusion", "duplicate", "missing")
_ROLES: tuple[Role, ...] = ("adapter", "base", "loser", "plain")


def look_charts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """Metrics of every look less the base's, with the step that the adapter holds; nothing where
    training did not look."""
    metric = _settings(config).get("metric", "score")
    gains = tuple(name for name in dict.fromkeys((metric, *_GAINS)) if name not in _PAIRS)
    painted = any("identity" in row for row in _rows(run))
    score = "identity + leakage margin" if painted else "how far the held-out loss has fallen"
    panels = (
        ("What should rise", f"Less the base's. Score: {score}.", gains),
        (
            "What should not rise",
            "Shares of subjects or scenes, less the base's.",
            [name for name in _HARMS if name not in gains],
        ),
        (
            "Copy-paste guard",
            "Likeness to the nearest reference in outline and pixels, less the base's. A rise "
            "without a rise of identity means copied pictures.",
            ("copy_paste",),
        ),
    )
    charts = [chart for panel in panels if (chart := _look_chart(run, *panel)) is not None]
    return (*charts, *_pair_charts(run))


_PAIRS: dict[str, tuple[str, str, float, str]] = {
    "held_out_loss": (
        "Held-out loss",
        "Of pairs that training does not see, over the same noise at every look. It should fall; "
        "where it rises while the training loss falls, pairs are learned by heart.",
        math.log(2),
        "log 2",
    ),
    "held_out_accuracy": (
        "Held-out accuracy",
        "Share of unseen pairs whose winner the policy favours more than the reference policy.",
        0.5,
        "chance",
    ),
}
"""Metric -> title, what it shows, a level and its name."""


def _pair_charts(run: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """What looks found on pairs of the validation split."""
    charts, step = [], run.get("adapter_step")
    for name, (title, explain, level, label) in _PAIRS.items():
        points = [(row["step"], row[name]) for row in _rows(run) if name in row]
        if points:
            x, y = zip(*points, strict=True)
            charts.append(
                LineChart(
                    title=title,
                    explain=explain,
                    x_label="step",
                    lines=(Line(name=title, x=x, y=y, role="adapter"),),
                    level=level,
                    level_label=label,
                    dots=True,
                    mark=None if step is None else float(step),
                    mark_label="adapter",
                )
            )
    return tuple(charts)


SAMPLES, LOOKS = "samples", "looks.json"
"""Of a running training: its sheets of sample pictures, and what its looks found."""
SHEETS = 4
"""Sheets of sample pictures in a report: from the first to the last."""


def sheet_files(train_dir: Path) -> list[Path]:
    """Sheets of sample pictures, in the order of their steps: plain files, no links."""
    sheets = (train_dir / SAMPLES).glob("step-*.png")
    return sorted(file for file in sheets if file.is_file() and not file.is_symlink())


def sheets_of(train_dir: Path) -> tuple[Picture, ...]:
    """Sample pictures that a run painted, base beside policy; evenly over it where it has many."""
    files = sheet_files(train_dir)
    if len(files) > SHEETS:
        files = [files[round(at * (len(files) - 1) / (SHEETS - 1))] for at in range(SHEETS)]
    return tuple(_sheet(file) for file in files)


def _sheet(file: Path) -> Picture:
    step = int(file.stem.rpartition("-")[2])
    try:
        with Image.open(file) as image:
            return picture(image, f"Samples after step {step}", largest=1280)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it") from error


def _look_chart(
    run: Mapping[str, Any], title: str, explain: str, names: Sequence[str]
) -> LineChart | None:
    pairs = zip(names, _ROLES, strict=False)
    lines = [line for pair in pairs if (line := _line(_rows(run), *pair)) is not None]
    if not lines:
        return None
    step = run.get("adapter_step")
    return LineChart(
        title=title,
        explain=explain,
        x_label="step",
        lines=tuple(lines),
        level=0.0,
        level_label="base",
        dots=True,
        mark=None if step is None else float(step),
        mark_label="adapter",
    )


def _line(rows: Sequence[Mapping[str, float]], name: str, role: Role) -> Line | None:
    points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    if not points:
        return None
    # A fresh adapter is the base.
    steps, values = zip((0.0, 0.0), *points, strict=True)
    return Line(name=_title(name), x=steps, y=values, role=role)


def look_facts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Whose weights the adapter holds, and whether training ended early."""
    rows, looks = _rows(run), _settings(config)
    if not rows:
        return ()
    best = looks.get("keep") == "best"
    metric = in_sentence(_title(looks.get("metric", "score")))
    why = f"best of {len(rows)} looks by {metric}" if best else "the last step"
    return facts(
        ("looks at validation", len(rows)),
        ("adapter of step", run.get("adapter_step", "?"), why),
        ("stopped early", "yes" if run.get("stopped") else "no"),
    )


def look_notes(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence where validation ended the run."""
    if not run.get("stopped"):
        return ()
    patience = _settings(config).get("patience")
    last = f"the last {patience} looks were" if patience and patience > 1 else "the last look was"
    wanted = config.get("steps")
    of = f" of {wanted}" if wanted else ""
    return (
        f"Validation ended training at step {run.get('steps', '?')}{of}: {last} no better "
        "than one before.",
    )


def _rows(run: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return list(run.get("validation") or ())


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("validation") or {}


def _title(name: str) -> str:
    if name in _PAIRS:
        return _PAIRS[name][0]
    return "Score" if name == "score" else metric_info(name).title


POINTS = 400
"""Curves of longer runs are means over so many equal spans of steps."""

Columns = Mapping[str, NDArray[np.float64]]


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """x and y as they are, or as means over `POINTS` equal spans; NaN where a span has no y."""
    if len(x) > POINTS:
        spans = np.array_split(np.arange(len(x)), POINTS)
        x = np.array([x[span].mean() for span in spans])
        y = np.array([_mean(y[span]) for span in spans])
    return tuple(float(v) for v in x), tuple(float(v) for v in y)


def _mean(values: NDArray[np.float64]) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else math.nan


_CURVES: tuple[tuple[str, str, tuple[tuple[str, str, Role], ...]], ...] = (
    (
        "Loss",
        "Dashed: log 2, the loss of a policy equal to the reference policy.",
        (("loss", "loss", "adapter"),),
    ),
    (
        "Implicit accuracy",
        "Share of pairs whose winner the policy favours more than the reference policy does.",
        (("implicit_accuracy", "accuracy", "adapter"),),
    ),
    (
        "What is left of a pair's gradient",
        "sigmoid(\N{MINUS SIGN}logit), mean over pairs: 1/2 at the start, 0 when a pair is "
        "learned and teaches nothing more. Dashed: where training warns (guards.saturation).",
        (("pair_gradient", "pair gradient", "adapter"),),
    ),
    (
        "SDPO's scale on the loser's gradient",
        "1: the loser is pushed away at full strength; 0: not at all, since that would raise "
        "the winner's error.",
        (("safeguard", "scale", "adapter"),),
    ),
    (
        "Error against the reference policy",
        "Winner: e_w minus e_w of the reference policy; loser alike, unweighted. Below zero "
        "the policy fits that image better. Healthy: the winner does not rise.",
        (("win_gap", "winner", "winner"), ("lose_gap", "loser", "loser")),
    ),
    (
        "Where the weighted error lies",
        "Shares of W e: subject tokens still to be learned (M_s), those already matched, "
        "background.",
        (
            ("share_structure", "M_s", "winner"),
            ("share_matched", "matched", "base"),
            ("share_background", "background", "loser"),
        ),
    ),
    (
        "Token confusion",
        "Share of a subject's tokens that resemble another subject's reference most "
        "(scenes of two or three).",
        (("token_confusion", "confusion", "adapter"),),
    ),
    (
        "Distance from the base",
        "The KL term: mean squared difference of the predictions of policy and reference policy, "
        "on winners (train.kl).",
        (("kl", "distance", "adapter"),),
    ),
    ("Gradient norm", "Before clipping.", (("grad_norm", "gradient norm", "adapter"),)),
)
"""Title, what it shows, and its lines: column, name, role."""


def curve_charts(steps: Columns, config: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """What changed over steps; curves that this objective has none of are left out."""
    saturation = config.get("guards", {}).get("saturation")
    levels = {
        "Loss": (math.log(2) if _present(steps, "logit") else None, "log 2"),
        "Implicit accuracy": (0.5, "chance"),
        "What is left of a pair's gradient": (
            saturation,
            "" if saturation is None else "saturated",
        ),
        "Error against the reference policy": (0.0, ""),
    }
    charts = (_chart(steps, *curve, *levels.get(curve[0], (None, ""))) for curve in _CURVES)
    return tuple(chart for chart in charts if chart is not None)


def _present(steps: Columns, name: str) -> bool:
    return name in steps and bool(np.isfinite(steps[name]).any())


def _chart(
    steps: Columns,
    title: str,
    explain: str,
    columns: Sequence[tuple[str, str, Role]],
    level: float | None,
    level_label: str,
) -> LineChart | None:
    lines = [
        Line(name=name, x=x, y=y, role=role)
        for column, name, role in columns
        if _present(steps, column)
        for x, y in [thin(steps["step"], steps[column])]
    ]
    if not lines:
        return None
    return LineChart(
        title=title,
        explain=explain,
        x_label="step",
        lines=tuple(lines),
        level=level,
        level_label=level_label,
        smooth=True,
    )


_BUCKETS = (
    (
        "alignment",
        "A(t): alignment",
        "How much of each subject's own place its reference finds by features, mean over steps.",
    ),
    (
        "structure_share",
        "|M_s| / |M_prior|",
        "Share of the subject region that the features do not match yet, so that the loss looks "
        "there. It should fall towards clean images.",
    ),
    ("implicit_accuracy", "Implicit accuracy", "By noise level, over the whole run."),
    (
        "pair_gradient",
        "What is left of a pair's gradient",
        "sigmoid(\N{MINUS SIGN}logit): 1/2 at the start, 0 when a pair is learned.",
    ),
    ("win_gap", "e_w against the reference policy", "Winner's error, policy minus reference."),
    ("lose_gap", "e_l against the reference policy", "Loser's error, policy minus reference."),
    (
        "safeguard",
        "SDPO's scale on the loser's gradient",
        "1: pushed away at full strength; 0: not at all.",
    ),
)


def bucket_charts(rows: Columns) -> tuple[BucketChart, ...]:
    """Means over the whole run by tenth of sigma."""
    charts = []
    for column, title, explain in _BUCKETS:
        if _present(rows, column):
            buckets = _buckets(rows, column)
            charts.append(BucketChart(title=title, explain=explain, buckets=buckets))
    return tuple(charts)


def _buckets(rows: Columns, column: str) -> tuple[Bucket, ...]:
    """Weighted means over all steps with normal intervals of the mean."""
    out = []
    for bucket in np.unique(rows["bucket"]):
        inside = (rows["bucket"] == bucket) & np.isfinite(rows[column]) & (rows["count"] > 0)
        if not inside.any():
            continue
        values, counts = rows[column][inside], rows["count"][inside]
        mean = float(np.average(values, weights=counts))
        spread = math.sqrt(float(np.average((values - mean) ** 2, weights=counts)))
        half = 1.96 * spread / math.sqrt(max(1, int(inside.sum()) - 1))
        start, stop = (float(rows[name][inside][0]) for name in ("sigma_low", "sigma_high"))
        out.append(
            Bucket(
                start=start,
                stop=stop,
                mean=mean,
                low=mean - half,
                high=mean + half,
                count=int(counts.sum()),
            )
        )
    return tuple(out)


AGAIN = "let `focusdpo train` end in this folder first"
PARTS = ("config.json", "steps.parquet", "buckets.parquet", "focus.safetensors")


def read_run(train_dir: Path) -> dict[str, Any]:
    """run.json of a finished training run. Raises UserError where there is none."""
    require_kind(train_dir, TRAINING_RUN)
    return read_object(train_dir / "run.json", AGAIN)


def collect_training(train_dir: Path) -> TrainingPart:
    """Curves, buckets of sigma and focus maps of one run."""
    run = read_run(train_dir)
    require_whole(train_dir, run, AGAIN, PARTS)
    config = read_json(train_dir / "config.json", AGAIN, default={})
    steps = _read_table(train_dir / "steps.parquet")
    buckets = _read_table(train_dir / "buckets.parquet")
    return TrainingPart(
        objective=str(run.get("objective", "unknown")),
        facts=(*_facts(run, config), *look_facts(run, config)),
        charts=curve_charts(steps, config) if steps else (),
        looks=look_charts(run, config),
        buckets=bucket_charts(buckets) if buckets else (),
        focus=read_focus(train_dir / "focus.safetensors"),
        notes=(*_notes(steps), *look_notes(run, config)),
        sheets=sheets_of(train_dir),
    )


def _read_table(path: Path) -> Columns:
    """Numeric columns of a Parquet file; {} when it is missing."""
    return read_columns([path]) if path.is_file() else {}


def read_columns(paths: Sequence[Path]) -> Columns:
    """Numeric columns of a table in one or more Parquet files, joined; {} of none. A file that was
    taken away meanwhile is left out. UserError for a damaged one."""
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            tables.append(arrow_table(path.read_bytes()))
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); train again") from error
    if not tables:
        return {}
    whole = pa.concat_tables(tables, promote_options="default")
    return {
        field.name: whole[field.name].to_numpy(zero_copy_only=False).astype(np.float64)
        for field in whole.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }


def _facts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Fact, ...]:
    settings = (
        ("pairs a step", config, "batch_pairs"),
        ("peak learning rate", config, "lr"),
        ("beta", config.get("objective", {}), "beta"),
        ("LoRA rank", config.get("lora", {}), "rank"),
        ("seed", run, "seed"),
    )
    values = [(label, source.get(name)) for label, source, name in settings]
    machine = sorted((run.get("machine") or {}).items())
    return facts(
        ("steps", run.get("steps", "?")),
        ("training pairs", run.get("pairs")),
        ("time in steps", time_of(run)),
        *((label, f"{v:g}" if isinstance(v, float) else v) for label, v in values),
        ("dataset version", run.get("dataset_version") or None),
        ("trained on", ", ".join(f"{name} {value}" for name, value in machine) or None),
    )


def _notes(steps: Columns) -> tuple[str, ...]:
    skipped = int(np.nansum(steps.get("skipped", np.zeros(1))))
    if not skipped:
        return ()
    were = "step was" if skipped == 1 else "steps were"
    return (f"{skipped} {were} skipped: the gradient was far above the usual (guards.spike).",)
