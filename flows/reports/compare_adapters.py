"""Two adapters that were evaluated on the same scenes from the same noise: paired differences, and
the scenes where they differ most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.reports.compare_view import AdapterChange, Side
from focusdpo.flows.reports.evaluation import Folder, metric_rows, pair_up, read_folder
from focusdpo.flows.reports.metrics import Headline, headline
from focusdpo.flows.reports.view import EvaluationPart, Fact

if TYPE_CHECKING:
    from focusdpo.data_schemas.evaluations import EvalScene
    from focusdpo.pipeline.evaluate import EvaluateConfig

PAINTED_BY = ("protocol", "data", "held_out", "own_scenes", "dreambench", "evaluate", "suite")
"""Settings that decide which scenes are painted, from which noise, and how they are measured."""


def compare_adapters(a: Path, b: Path) -> tuple[AdapterChange, tuple[Side, Side], Headline]:
    """Adapter of evaluation `b` against that of `a`. Raises UserError where they were not painted
    from the same scenes by the same settings."""
    from focusdpo.pipeline.compare import rows

    folders = read_folder(a), read_folder(b)
    settings = _settings(a), _settings(b)
    _refuse_others(a, b, folders, settings)
    ours, theirs = (_of_adapter(one) for one in folders)
    try:
        table = rows(ours, theirs, _bootstrap(settings[1]))
    except ValueError as error:
        raise UserError(f"{a} and {b}: {error}; evaluate both by the same settings") from error
    both = _as_one(*folders)
    examples, scatters = pair_up(both, extremes=4, randoms=4)
    found = metric_rows([dataclasses.asdict(row) for row in table])
    change = AdapterChange(
        protocol=str(folders[0].run.get("protocol", "unknown")),
        rows=found,
        scatters=scatters,
        examples=examples,
        chosen=(
            f"{len(examples)} of {len(both.base)} scenes, ordered by the change of matched "
            "identity from A to B: where B loses most, the middle, where it gains most, and "
            "random ones drawn by a hash of the scenes' ids. Nobody picked."
        ),
        notes=_notes(folders),
    )
    part = EvaluationPart(
        protocol=change.protocol, facts=(), rows=found, scatters=(), examples=(), chosen=""
    )
    sides = _side("A", a, folders[0]), _side("B", b, folders[1])
    return change, sides, headline(part, who="against A, B")


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.yaml"
    found = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _bootstrap(settings: Mapping[str, Any]) -> EvaluateConfig:
    from focusdpo.pipeline.evaluate import EvaluateConfig

    return EvaluateConfig.model_validate(settings.get("evaluate") or {})


def _refuse_others(
    a: Path, b: Path, folders: tuple[Folder, Folder], settings: tuple[Mapping[str, Any], ...]
) -> None:
    from focusdpo.flows.incremental import differences

    wrong = [
        text
        for name in PAINTED_BY
        for text in differences(name, settings[0].get(name), settings[1].get(name))
    ]
    protocols = [str(one.run.get("protocol")) for one in folders]
    if protocols[0] != protocols[1]:
        wrong.insert(0, f"protocol {protocols[0]} -> {protocols[1]}")
    if wrong:
        raise UserError(
            f"{a} and {b}: painted or measured by different settings ({'; '.join(wrong[:4])}), so "
            "nothing is paired; evaluate both adapters by the same settings"
        )


def _of_adapter(folder: Folder) -> Sequence[EvalScene]:
    found = [one for one in folder.records if one.model == "adapter"]
    if not found:
        raise UserError(f"{folder.path}: no adapter was evaluated here, the base alone")
    return found


def _as_one(a: Folder, b: Folder) -> Folder:
    """An evaluation whose base is A's adapter and whose adapter is B's; its pictures are named by
    their whole paths."""

    def placed(folder: Folder) -> dict[str, EvalScene]:
        return {
            scene: dataclasses.replace(one, image=str((folder.path / one.image).resolve()))
            for scene, one in folder.adapter.items()
        }

    return dataclasses.replace(a, base=placed(a), adapter=placed(b), labels=("A", "B"))


def _notes(folders: tuple[Folder, Folder]) -> tuple[str, ...]:
    prints = [one.run.get("fingerprints") or {} for one in folders]
    notes = []
    if prints[0].get("base") != prints[1].get("base"):
        notes.append("The two adapters belong to different base models: A and B differ in both.")
    if prints[0].get("adapter") is not None and prints[0]["adapter"] == prints[1].get("adapter"):
        notes.append("A and B are the same adapter: what differs is chance of the machine.")
    return tuple(notes)


def _side(letter: str, path: Path, folder: Folder) -> Side:
    run = folder.run
    facts = [Fact(label="evaluation", value=str(path))]
    for name, label in (("adapter", "adapter"), ("scenes", "scenes"), ("seed", "seed")):
        if run.get(name) is not None:
            facts.append(Fact(label=label, value=str(run[name])))
    return Side(letter=letter, name=path.name or str(path), facts=tuple(facts))
