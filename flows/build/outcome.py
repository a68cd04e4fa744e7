"""What a build did and brought: its result, `metrics.prom` in the root for a monitor, and a rule
that tells when the yield drops.

The file is in Prometheus' text format: node_exporter's textfile collector reads it where a link in
its folder points there. A build that made a version also leaves `build.json` beside the version's
manifest: the past that the rule looks back at.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.flows.build.config import YieldAlertConfig
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import sealed, unsealed
from focusdpo.store.manifests import BUILD, partitions_of, read_manifest

log = logging.getLogger(__name__)

FILE = "metrics.prom"


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did."""

    root: str
    version: str
    new: bool
    """Whether a version was published; False when nothing had changed."""
    pairs: int
    partitions: int
    new_shards: list[str]
    """Shards that the version has and its parent has not."""
    made: dict[str, int]
    """Stage -> partitions computed now."""
    failed: list[str]
    problems: list[str]
    rejects: dict[str, int]
    model_seconds: float
    load_seconds: float
    start_seconds: float
    """Until the first stage began: reading subjects, planning, and the start of Prefect where it is
    used, beside which models are loaded."""
    wall_seconds: float
    notes: tuple[str, ...] = ()
    """Of pictures that are nearly one."""
    alerts: tuple[str, ...] = ()
    """What somebody should look at; the build itself is whole."""

    @property
    def whole(self) -> bool:
        """Nothing was left out."""
        return not self.failed and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "build-dataset", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What the new partitions of a version brought."""

    version: str
    parent: str | None
    pairs: int
    rejects: dict[str, int]
    partitions: int
    stage_seconds: dict[str, float]
    """Model computation of the whole version, by stage."""
    notes: list[str] = field(default_factory=list)
    """What the build told of pictures that are nearly one."""

    @property
    def share(self) -> float | None:
        """The yield: pairs of all that was judged; None where nothing was."""
        judged = self.pairs + sum(self.rejects.values())
        return self.pairs / judged if judged else None


def record(result: BuildResult, alert: YieldAlertConfig) -> BuildResult:
    """The result with its alerts: write the metrics of a build that has ended, and look whether its
    yield dropped.

    Call it once per build; the exit code is none of its business.
    """
    store = Store.open(result.root, create=False)
    brought = _kept(store, result.version)
    first = brought is None
    brought = brought or brought_by(store, result.version)
    alerts: tuple[str, ...] = ()
    if result.new or first:
        message = dropped(brought, list(_past(store, brought.parent, alert.builds)), alert)
        alerts = () if message is None else (message,)
        kept = replace(brought, notes=[*result.notes])
        store.files.write(f"versions/{brought.version}/{BUILD}", sealed(asdict(kept)))
    for line in alerts:
        log.warning("%s: %s", result.root, line)
    store.files.write(FILE, metrics(result, brought, bool(alerts)))
    return replace(result, alerts=alerts)


def brought_by(store: Store, version: str) -> Brought:
    """What a version has that its parent has not: partitions that are new or were made anew."""
    manifest = read_manifest(store, version)
    parent = manifest.get("parent")
    there = parent is not None and store.files.exists(f"versions/{parent}/manifest.json")
    known = {partition.key for partition in partitions_of(store, str(parent))} if there else set()
    new = [partition for partition in partitions_of(store, version) if partition.key not in known]
    rejects: Counter[str] = Counter()
    for partition in new:
        rejects.update(partition.rejects)
    return Brought(
        version=version,
        parent=str(parent) if there else None,
        pairs=sum(partition.pairs for partition in new),
        rejects=dict(sorted(rejects.items())),
        partitions=len(new),
        stage_seconds={
            name: float(entry["seconds"]) for name, entry in manifest.get("stages", {}).items()
        },
    )


def dropped(brought: Brought, past: Iterable[float], alert: YieldAlertConfig) -> str | None:
    """Why a build's yield deserves a look; None when it is as usual, or the past is too short."""
    before = list(past)
    share = brought.share
    if share is None or len(before) < alert.least:
        return None
    usual = statistics.median(before)
    if share >= alert.share * usual:
        return None
    most = max(brought.rejects.items(), key=lambda item: item[1], default=("none", 0))
    return (
        f"yield dropped to {share:.3f} of what was judged ({counted(brought.pairs, 'pair')} from "
        f"{brought.partitions} new partitions), below {alert.share:g} of {usual:.3f}, the median "
        f"of {len(before)} builds before; most were rejected because of {most[0]} ({most[1]})"
    )


def _past(store: Store, version: str | None, limit: int) -> Iterator[float]:
    """Yields of the builds before, newest first, along the versions' parents."""
    left = limit
    while version is not None and left:
        brought = _kept(store, version)
        if brought is None:
            return  # a version from before there were metrics
        if brought.share is not None:
            yield brought.share
            left -= 1
        version = brought.parent


def _kept(store: Store, version: str) -> Brought | None:
    """What a build left beside its version; None when it left nothing."""
    path = f"versions/{version}/{BUILD}"
    try:
        return Brought(**unsealed(store.files.read(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        where = f"{store.root}/{path}"
        raise UserError(f"{where}: damaged ({error}); remove it, it is made anew") from error


def told(store: Store, version: str) -> list[str]:
    """What the last build that had anything to tell said of pictures that are nearly one: a build
    without new subjects does not look at them again."""
    earlier: str | None = version
    while earlier is not None:
        brought = _kept(store, earlier)
        if brought is None or brought.notes:
            return [] if brought is None else list(brought.notes)
        earlier = brought.parent
    return []


def metrics(result: BuildResult, brought: Brought, alerted: bool) -> bytes:
    """The content of `metrics.prom`."""
    registry = CollectorRegistry()

    def gauge(name: str, meaning: str, values: Mapping[str, float], label: str = "") -> None:
        if not values:
            return
        names = ["root", label] if label else ["root"]
        made = Gauge(f"focusdpo_{name}", meaning, names, registry=registry)
        for value_of, value in values.items():
            made.labels(result.root, *([value_of] if label else [])).set(value)

    def single(name: str, meaning: str, value: float) -> None:
        gauge(name, meaning, {"": value})

    single("pairs", "Pairs of the newest dataset version.", result.pairs)
    gauge("rejects", "Rejects of the newest version by reason.", result.rejects, "reason")
    single("partitions", "Partitions that the last build looked at.", result.partitions)
    gauge("partitions_made", "Partitions that the last build computed.", result.made, "stage")
    single("failed", "Partitions that failed in the last build.", len(result.failed))
    single("left_out", "Subjects that the last build left out.", len(result.problems))
    if brought.share is not None:
        single("yield", "Pairs of all that was judged, in new partitions.", brought.share)
    single("yield_dropped", "1 when the last build's yield was alarming.", alerted)
    seconds = brought.stage_seconds
    gauge("stage_seconds", "Model computation behind the newest version.", seconds, "stage")
    single("build_model_seconds", "Model computation of the last build.", result.model_seconds)
    single("build_wall_seconds", "Duration of the last build.", result.wall_seconds)
    single("build_timestamp_seconds", "When the last build ended.", round(time.time(), 3))
    return generate_latest(registry)
