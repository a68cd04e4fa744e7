"""`focusdpo dataset`: versions, what changed between two, as texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.pipeline.dataset_diff import DatasetDiff, diff, differences
from focusdpo.pipeline.stage import roles_in
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import full_id, latest_id, versions_of

SECTIONS = ("compose", "complexity", "shard")
"""Sections of the settings that decide about pairs and samples beside those of the stages."""


def versions(root: str) -> list[dict[str, Any]]:
    """All versions, the newest last."""
    store = Store.open(root, create=False)
    latest = latest_id(store)
    return [
        {
            "id": version["id"],
            "created": version["created"],
            "parent": version["parent"],
            "latest": version["id"] == latest,
            "pairs": version["pairs"]["total"],
            "subjects": len(version["subjects"]),
            "shards": len(version["shards"]),
            "bytes": sum(shard["bytes"] for shard in version["shards"]),
            "purged": [note["when"] for note in version.get("purged", [])],
        }
        for version in versions_of(store)
    ]


def difference(root: str, a: str, b: str) -> DatasetDiff:
    """What changed from version `a` to `b` of a root."""
    store = Store.open(root, create=False)
    return diff(store, full_id(store, a), full_id(store, b), changed_causes)


def changed_causes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[str]:
    """Settings, code and models that differ between two manifests."""
    return list(dict.fromkeys([*_settings(old, new), *_code_and_models(old, new)]))


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    runs = [run_of(one["config"]) for one in (old, new)]
    then, now = (run.model_dump(mode="json") if run else {} for run in runs)
    if not then or not now:  # made by another version of focusdpo: compared as they were written
        then, now = old["config"], new["config"]
    for name in dict.fromkeys([*SECTIONS, *STAGES]):
        yield from (f"setting {one}" for one in differences(name, then.get(name), now.get(name)))


def run_of(config: Mapping[str, Any]) -> BuildRun | None:
    """The run that a manifest records; None when this focusdpo cannot read it."""
    try:
        # Every field is recorded, so the preset's name adds nothing; its file may be gone.
        return BuildRun.model_validate({**config, "preset": "pocket"})
    except (UserError, ValidationError):
        return None


def _code_and_models(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for stage in STAGES:
        then, now = (one["stages"].get(stage, {}).get("versions", {}) for one in (old, new))
        yield from code_changes(stage, then, now)


def code_changes(stage: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """What differs between two records of the code and the models of a stage."""
    if then.get("code") != now.get("code"):
        yield f"code of {stage}: version {then.get('code')} -> {now.get('code')}"
    if then.get("model") != now.get("model"):
        before, after = (roles_in(stage, one.get("model") or "") for one in (then, now))
        yield f"model of {stage} ({', '.join(after if len(after) > len(before) else before)})"


def lines(told: DatasetDiff) -> Iterator[str]:
    """A diff for people."""
    yield f"{told.a} -> {told.b}" + (": the same pairs" if told.is_empty else "")
    for kind, names in told.subjects.items():
        if names:
            yield f"subjects {kind}: {', '.join(names)}"
    counts = ", ".join(f"{count} {kind}" for kind, count in told.pairs.items())
    yield f"pairs: {counts}"
    for sign, reasons in (("+", told.added), ("-", told.removed)):
        for reason, count in reasons.items():
            yield f"  {sign}{count}  {reason}"
    for name, values in (("by source", told.by_source), ("by split", told.by_split)):
        yield f"{name}: " + ", ".join(f"{one} {a} -> {b}" for one, (a, b) in values.items())
    yield f"yield: {told.yields[0]:.1%} -> {told.yields[1]:.1%}"
    for reason, (a, b) in told.rejects.items():
        if a != b:
            yield f"  rejected, {reason}: {a} -> {b}"
    yield (
        f"shards: {len(told.shards_new)} new, {len(told.shards_gone)} no longer used; "
        f"{size(told.bytes[0])} -> {size(told.bytes[1])}"
    )
    yield from (f"  new  {name}" for name in told.shards_new)
    yield f"model computation behind it: {told.seconds[0]:.1f} s -> {told.seconds[1]:.1f} s"
    yield from (f"purged from {note}" for note in told.purged)


def as_dict(told: DatasetDiff) -> dict[str, Any]:
    """For `--json`."""
    return {**asdict(told), "empty": told.is_empty}


def size(count: float) -> str:
    """Bytes in words: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
