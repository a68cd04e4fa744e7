"""Section 5 of the report: what made the numbers, and how to get them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.folder import read_json
from focusdpo.pipeline.stage import roles_in
from focusdpo.reports.view import Fact, LineagePart, ModelFact, facts
from focusdpo.store.keys import BESIDE
from focusdpo.store.provenance import Family, checkpoint_of, licence_of

AGAIN = "run it again"
UNSTATED = "see the model's own card"
_PART: dict[str, str] = {"base": "backbone", "adapter": "backbone"}


def collect_lineage(
    *,
    root: Path | None,
    version: str,
    train_dir: Path | None,
    evaluate_dir: Path | None,
    commands: Sequence[str],
) -> LineagePart:
    """Configurations as they were resolved, versions, models with fingerprints and licences."""
    about: list[Fact] = []
    models: list[ModelFact] = []
    configs: list[tuple[str, str]] = []
    if root is not None:
        manifest = _manifest(root, version)
        about += _dataset_facts(manifest)
        models += stage_models(manifest, family_of(manifest.get("config") or {}))
        configs.append(("Dataset configuration", _text(manifest.get("config"))))
        configs.append(("Packages of the build", _text(manifest.get("packages"))))
    for title, folder in (("Training", train_dir), ("Evaluation", evaluate_dir)):
        if folder is None:
            continue
        run = read_json(folder / "run.json", AGAIN)
        about += facts(
            *(
                (f"{title.lower()}: {name.replace('_', ' ')}", run.get(name))
                for name in ("seed", "dataset_version", "adapter")
                if run.get(name) != ""
            )
        )
        models += _run_models(title, run, family_of(_settings(folder)))
        configs += [
            (f"{title} configuration ({name})", read_text(folder / name))
            for name in ("config.yaml", "config.json")
            if (folder / name).is_file()
        ]
        shown = {name: value for name, value in run.items() if name != BESIDE}
        configs.append((f"{title} run", _text(shown)))
    return LineagePart(
        facts=tuple(about), models=tuple(models), commands=tuple(commands), configs=tuple(configs)
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    """A run's resolved configuration."""
    for name in ("run.yaml", "config.yaml"):
        if (folder / name).is_file():
            config = yaml.safe_load((folder / name).read_text("utf-8"))
            if isinstance(config, dict) and "suite" in config:
                return config
    return {}


def family_of(config: Mapping[str, Any]) -> Family:
    """Whose weights a resolved configuration names."""
    if config.get("suite") == "checkpoints":
        return dict(config["models"])
    return "pocket"


def _name(family: Family, role: str) -> str:
    """What to call a part's weights."""
    if isinstance(family, str):
        return family
    return str(checkpoint_of(family, role).get("kind", role))


def _manifest(root: Path, version: str) -> Mapping[str, Any]:
    from focusdpo.store.versions import open_version

    return open_version(root, version).manifest


def _dataset_facts(manifest: Mapping[str, Any]) -> tuple[Fact, ...]:
    seeds = manifest.get("seeds") or {}
    licences = sorted(
        {str(subject.get("licence") or "not stated") for subject in manifest.get("subjects") or []}
    )
    return facts(
        *((f"seed: {name}", value) for name, value in seeds.items()),
        ("schema version", manifest.get("schema_version", "?")),
        ("licences of the subjects", ", ".join(licences) or "none"),
    )


def stage_models(manifest: Mapping[str, Any], family: Family) -> list[ModelFact]:
    """One row per stage and role, from the versions that the stages recorded."""
    models = []
    adapter = ((manifest.get("config") or {}).get("generate") or {}).get("adapter")
    for stage, entry in (manifest.get("stages") or {}).items():
        fingerprints = str((entry.get("versions") or {}).get("model") or "")
        roles = roles_in(stage, fingerprints)
        names = fingerprints.split("+") if fingerprints else []
        if len(names) != len(roles):
            roles = tuple(f"model {i + 1}" for i in range(len(names)))
        for role, fingerprint in zip(roles, names, strict=True):
            models.append(
                ModelFact(
                    role=f"{stage}: {role}",
                    name=_name(family, role)
                    + (f" with the adapter {adapter}" if adapter and role == "generator" else ""),
                    fingerprint=fingerprint,
                    licence=licence_of(family, role) or UNSTATED,
                )
            )
    return models


def _run_models(title: str, run: Mapping[str, Any], family: Family) -> list[ModelFact]:
    fingerprints = dict(run.get("fingerprints") or {})
    identity = run.get("identity")
    # A training run's identity names its base; an evaluation's is one digest.
    if isinstance(identity, dict) and identity.get("base"):
        fingerprints.setdefault("base", identity["base"])
    return [
        ModelFact(
            role=f"{title.lower()}: {role}",
            name="LoRA of this run" if role == "adapter" else _name(family, part),
            fingerprint=str(fingerprint),
            licence=licence_of(family, part) or UNSTATED,
        )
        for role, fingerprint in fingerprints.items()
        for part in [_PART.get(str(role), str(role))]
    ]


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def read_text(path: Path) -> str:
    """A text file; bytes that are no UTF-8 are shown as replacement signs."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
