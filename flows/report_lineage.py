"""Section 5 of the report: what made the numbers, and how to get them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from focusdpo.flows.report_files import read_json, read_text
from focusdpo.flows.report_view import Fact, LineagePart, ModelFact

LICENCES = {"pocket": "Apache-2.0, trained on renders of MIT-licensed 3D emoji"}
"""Of a suite's weights."""
AGAIN = "run it again"


def collect_lineage(
    *,
    root: Path | None,
    version: str,
    train_dir: Path | None,
    evaluate_dir: Path | None,
    commands: Sequence[str],
) -> LineagePart:
    """Configurations as they were resolved, versions, models with fingerprints and licences."""
    facts: list[Fact] = []
    models: list[ModelFact] = []
    configs: list[tuple[str, str]] = []
    suite = "pocket"
    if root is not None:
        manifest = _manifest(root, version)
        suite = str((manifest.get("config") or {}).get("suite", suite))
        facts += _dataset_facts(manifest)
        models += _stage_models(manifest, suite)
        configs.append(("Dataset configuration", _text(manifest.get("config"))))
        configs.append(("Packages of the build", _text(manifest.get("packages"))))
    for title, folder in (("Training", train_dir), ("Evaluation", evaluate_dir)):
        if folder is None:
            continue
        run = read_json(folder / "run.json", AGAIN)
        facts += _run_facts(title, run)
        models += _run_models(title, run, suite)
        configs += [
            (f"{title} configuration ({name})", read_text(folder / name))
            for name in ("config.yaml", "config.json")
            if (folder / name).is_file()
        ]
        configs.append((f"{title} run", _text(run)))
    return LineagePart(
        facts=tuple(facts), models=tuple(models), commands=tuple(commands), configs=tuple(configs)
    )


def _manifest(root: Path, version: str) -> Mapping[str, Any]:
    from focusdpo.pipeline.versions import open_version

    return open_version(root, version).manifest


def _dataset_facts(manifest: Mapping[str, Any]) -> list[Fact]:
    seeds = manifest.get("seeds") or {}
    facts = [Fact(label=f"seed: {name}", value=str(value)) for name, value in seeds.items()]
    facts.append(Fact(label="schema version", value=str(manifest.get("schema_version", "?"))))
    licences = sorted(
        {str(one.get("licence") or "not stated") for one in manifest.get("subjects") or []}
    )
    return [*facts, Fact(label="licences of the subjects", value=", ".join(licences) or "none")]


def _stage_models(manifest: Mapping[str, Any], suite: str) -> list[ModelFact]:
    """One row per stage and role, from the versions that the stages recorded."""
    from focusdpo.flows.stages import STAGES

    models = []
    for stage, entry in (manifest.get("stages") or {}).items():
        fingerprints = str((entry.get("versions") or {}).get("model") or "")
        roles = STAGES[stage].roles if stage in STAGES else ()
        names = fingerprints.split("+") if fingerprints else []
        if len(names) != len(roles):
            roles = tuple(f"model {i + 1}" for i in range(len(names)))
        for role, fingerprint in zip(roles, names, strict=True):
            models.append(
                ModelFact(
                    role=f"{stage}: {role}",
                    name=suite,
                    fingerprint=fingerprint,
                    licence=LICENCES.get(suite, "see the model's own card"),
                )
            )
    return models


def _run_models(title: str, run: Mapping[str, Any], suite: str) -> list[ModelFact]:
    fingerprints = dict(run.get("fingerprints") or {})
    identity = run.get("identity")
    # A training run's identity names its base; an evaluation's is one digest.
    if isinstance(identity, dict) and identity.get("base"):
        fingerprints.setdefault("base", identity["base"])
    return [
        ModelFact(
            role=f"{title.lower()}: {role}",
            name="LoRA of this run" if role == "adapter" else suite,
            fingerprint=str(fingerprint),
            licence=LICENCES.get(suite, "see the model's own card"),
        )
        for role, fingerprint in fingerprints.items()
    ]


def _run_facts(title: str, run: Mapping[str, Any]) -> list[Fact]:
    facts = []
    for name in ("seed", "dataset_version", "adapter"):
        if run.get(name) not in (None, ""):
            label = f"{title.lower()}: {name.replace('_', ' ')}"
            facts.append(Fact(label=label, value=str(run[name])))
    return facts


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
