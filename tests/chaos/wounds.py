"""Damage to every kind of file that decides something: its reader and `doctor` notice, and there is
a way on."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from focusdpo.store.keys import unsealed

from .jobs import files_below
from .trials import follow
from .workspace import Trial, Workspace


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    pattern: str
    reader: str = ""
    """The command that must refuse it by name."""
    mend: str = ""
    """The command that makes it anew, if that is not for a person to do."""
    may_go: bool = True
    """Whether `doctor` knows that there must be one."""


KINDS = {
    "a training's summary": Kind(r"run/run\.json", "report", "train", may_go=False),
    "a training's settings": Kind(r"run/config\.json", "report", "train"),
    "a training's tables": Kind(r"run/(steps|buckets)\.parquet", "report", "train"),
    "a training's focus maps": Kind(r"run/focus\.safetensors", "report", "train"),
    "an adapter's card": Kind(r"run/adapter/adapter\.json", "export adapter", "train"),
    "an adapter's weights": Kind(r"run/adapter/.*\.safetensors", "export adapter", "train"),
    "a checkpoint": Kind(r"run/checkpoints/step-000008/.*", "", "train", may_go=False),
    "an evaluation's summary": Kind(r"evaluation/run\.json", "report", "evaluate", may_go=False),
    "an evaluation's records": Kind(r"evaluation/scenes\.parquet", "report", "evaluate"),
    "an evaluation's table": Kind(r"evaluation/rows\.json", "report", "evaluate"),
    "an evaluation's subjects": Kind(r"evaluation/subjects\.json", "report", "evaluate"),
    "the scorer's records": Kind(r"evaluation/scorer\.parquet", "", "evaluate"),
    "an evaluation's settings": Kind(r"evaluation/config\.yaml", "", "evaluate"),
    "an evaluation's pictures": Kind(r"evaluation/images/.*\.png", "", "evaluate"),
    "an evaluation's references": Kind(r"evaluation/references/.*\.png", "", "evaluate"),
    "a draft": Kind(r"drafts/[0-9a-f]+/draft\.json", may_go=False),
    "a draft's pictures": Kind(r"drafts/[0-9a-f]+/p0\..*"),
    "a review": Kind(r"root/reviews/.*\.json", may_go=False),
    "a state of the registry": Kind(r"root/registry/\d+\.json", may_go=False),
    "what a build brought": Kind(r"root/versions/[^/]*/build\.json", may_go=False),
}
WAYS = ("one flipped bit", "truncated", "emptied", "deleted")


def wounded(trial: Trial, draw: random.Random) -> None:
    """One file."""
    place, number = trial.place, trial.outcome.number
    place.lay("")
    kept = place.state()
    name = list(KINDS)[number % len(KINDS)]
    kind = KINDS[name]
    ways = WAYS if kind.may_go else WAYS[:3]
    way = ways[number // len(KINDS) % len(ways)]
    names = sorted(one for one, _ in files_below(place.out) if re.fullmatch(kind.pattern, one))
    path = place.out / draw.choice(names)
    if name == "a checkpoint":  # read by a training that has not ended
        (place.out / "run" / "run.json").unlink()
    whole = path.read_bytes()
    damage_file(path, way, draw)
    trial.fault(f"{way}: {name}", f"{path.relative_to(place.out)} {way}")
    well, said = trial.doctor()
    if well or not _names(said, path):
        trial.wrong(f"doctor does not name it: {said[-400:]}")
    if kind.reader:
        trial.refused(place.run(kind.reader), path.name)
    if kind.mend:
        _mend(trial, place, kind.mend)
    elif name == "what a build brought":
        place.run(("doctor", "--root", "@root", "--repair", "--json"))
    else:
        path.write_bytes(whole)
    trial.same(kept)
    if kind.mend or path.exists():
        well, said = trial.doctor()
        if not well:
            trial.wrong(f"doctor is not content afterwards: {said[-400:]}")


def damage_file(path: Path, way: str, draw: random.Random) -> None:
    data = path.read_bytes()
    if way == "deleted":
        path.unlink()
    elif way == "emptied":
        path.write_bytes(b"")
    elif way == "truncated":
        path.write_bytes(data[: int(draw.random() * (len(data) - 2))])
    else:
        changed = data
        while _same_values(path, data, changed):
            at = draw.randrange(len(data))
            changed = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        path.write_bytes(changed)


def _same_values(path: Path, data: bytes, changed: bytes) -> bool:
    """Whether a flipped bit changes nothing, as one in white space does."""
    if data == changed:
        return True
    if path.suffix != ".json" or data.startswith(b"["):
        return False
    try:
        before, after = unsealed(data), unsealed(changed)
    except ValueError:
        return False
    return {name: one for name, one in after.items() if name in before} == before


def _names(said: str, path: Path) -> bool:
    """A draft's or build's file by name, a registry's state and a review by their place."""
    return path.name in said or path.stem in said


def _mend(trial: Trial, place: Workspace, command: str) -> None:
    """Until the command ends well and `doctor` is content, doing what messages say."""
    fills = place.out / ("run" if command == "train" else "evaluation")
    for _ in range(4):
        running = place.run(command)
        said = running.said()
        if running.ended() == 0 and trial.doctor()[0]:
            return
        if "again into a new folder" in said:
            trial.outcome.advice.append("into a new folder")
            shutil.rmtree(fills)
        elif running.ended() == 0 or not follow(place, said, trial.outcome):
            break
    trial.wrong(f"{command} does not mend it: {said[-500:]}")
