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
    runs = [run_of(manifest["config"]) for manifest in (old, new)]
    then, now = (run.model_dump(mode="json") if run else {} for run in runs)
    if not then or not now:  # made by another version of focusdpo: compared as they were written
        then, now = old["config"], new["config"]
    for name in dict.fromkeys([*SECTIONS, *STAGES]):
        yield from (
            f"setting {change}" for change in differences(name, then.get(name), now.get(name))
        )


def run_of(config: Mapping[str, Any]) -> BuildRun | None:
    """The run that a manifest records; None when this focusdpo cannot read it."""
    try:
        # Every field is recorded, so the preset's name adds nothing; its file may be gone.
        return BuildRun.model_validate({**config, "preset": "pocket"})
    except (UserError, ValidationError):
        return None


def _code_and_models(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for stage in STAGES:
        then, now = (
            manifest["stages"].get(stage, {}).get("versions", {}) for manifest in (old, new)
        )
        yield from code_changes(stage, then, now)


def code_changes(stage: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """What differs between two records of the code and the models of a stage."""
    if then.get("code") != now.get("code"):
        yield f"code of {stage}: version {then.get('code')} -> {now.get('code')}"
    if then.get("model") != now.get("model"):
        before, after = (roles_in(stage, record.get("model") or "") for record in (then, now))
        yield f"model of {stage} ({', '.join(after if len(after) > len(before) else before)})"


def lines(diff: DatasetDiff) -> Iterator[str]:
    """A diff for people."""
    yield f"{diff.a} -> {diff.b}" + (": the same pairs" if diff.is_empty else "")
    for kind, names in diff.subjects.items():
        if names:
            yield f"subjects {kind}: {', '.join(names)}"
    counts = ", ".join(f"{count} {kind}" for kind, count in diff.pairs.items())
    yield f"pairs: {counts}"
    for sign, reasons in (("+", diff.added), ("-", diff.removed)):
        for reason, count in reasons.items():
            yield f"  {sign}{count}  {reason}"
    for name, values in (("by source", diff.by_source), ("by split", diff.by_split)):
        yield f"{name}: " + ", ".join(f"{value} {a} -> {b}" for value, (a, b) in values.items())
    yield f"yield: {diff.yields[0]:.1%} -> {diff.yields[1]:.1%}"
    for reason, (a, b) in diff.rejects.items():
        if a != b:
            yield f"  rejected, {reason}: {a} -> {b}"
    yield (
        f"shards: {len(diff.shards_new)} new, {len(diff.shards_gone)} no longer used; "
        f"{size(diff.bytes[0])} -> {size(diff.bytes[1])}"
    )
    yield from (f"  new  {name}" for name in diff.shards_new)
    yield f"model computation behind it: {diff.seconds[0]:.1f} s -> {diff.seconds[1]:.1f} s"
    yield from (f"purged from {note}" for note in diff.purged)


def as_dict(diff: DatasetDiff) -> dict[str, Any]:
    """For `--json`."""
    return {**asdict(diff), "empty": diff.is_empty}


def size(count: float) -> str:
    """Bytes in words: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
