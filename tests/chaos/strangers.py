"""What comes from strangers: roots that lead outside, files that are none of ours, models that hand
over what is no picture and no number."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.store.keys import BESIDE, digest, digests_in, sealed, unsealed
from focusdpo.store.manifests import MANIFEST, TWIN, digests, manifest_bytes, read_twin, twin_bytes

from .workspace import DRAFT, Trial, Workspace

SECRET = b"what lies outside and is nobody's business"
NAMES = ("../../outside/victim.txt", "/etc/hostname", "a/../../../outside/victim.txt", "..", "a//b")


class Forger:
    """Writes into a workspace what a stranger could have written, checksums included."""

    def __init__(self, place: Workspace, name: str) -> None:
        self.place, self.root, self.name = place, place.out / "root", name
        self.outside = place.now / "outside"

    def _version(self, change: Callable[[dict[str, Any]], None], **tables: bytes) -> None:
        folder = self.root / "versions" / (self.root / "LATEST").read_text().strip()
        files = read_twin((folder / TWIN).read_bytes())
        assert files is not None
        manifest = json.loads(files.pop(MANIFEST))
        change(manifest)
        files |= {f"{table}.parquet": data for table, data in tables.items()}
        manifest["digests"] = digests(files)
        for name, data in (*files.items(), (MANIFEST, manifest_bytes(manifest))):
            (folder / name).write_bytes(data)
        (folder / TWIN).write_bytes(twin_bytes({**files, MANIFEST: manifest_bytes(manifest)}))

    def _table(self, name: str, kind: type[Any], **values: object) -> None:
        folder = self.root / "versions" / (self.root / "LATEST").read_text().strip()
        rows = from_parquet((folder / f"{name}.parquet").read_bytes(), kind)
        rows[0] = dataclasses.replace(rows[0], **values)
        self._version(lambda _: None, **{name: to_parquet(rows, kind)})

    def shard_of_a_manifest(self) -> None:
        self._version(lambda manifest: manifest["shards"][0].update(name=self.name))

    def subject_of_a_manifest(self) -> None:
        self._version(lambda manifest: manifest["subjects"][0].update(artefact=self.name))

    def row_of_an_index(self) -> None:
        self._table("index", IndexRow, shard=self.name, offset=0, size=len(SECRET))

    def artefact_of_a_lineage(self) -> None:
        self._table("lineage", Artefact, stage=self.name)

    def latest(self) -> None:
        (self.root / "LATEST").write_text(f"{self.name}\n")

    def purge(self) -> None:
        plan = {
            **{"subjects": ["red"], "when": "t", "partitions": [], "artefacts": []},
            **{"shards": {self.name: None}, "versions": {self.name: {"pairs": 1}}},
            **{"pictures": [], "done": False},
        }
        id = digest(json.dumps([["red"], "t"]).encode())[:16]
        (self.root / "purges").mkdir(exist_ok=True)
        (self.root / "purges" / f"{id}.json").write_bytes(sealed(plan))

    def registry(self) -> None:
        newest = max((self.root / "registry").glob("*.json"))
        values = unsealed(newest.read_bytes())
        values["entries"][0]["artefact"] = self.name
        newest.write_bytes(sealed(values))

    def draft(self) -> None:
        file = self.place.out / "drafts" / DRAFT / "draft.json"
        values = unsealed(file.read_bytes())
        values[BESIDE] = {self.name: "0" * 32}
        file.write_bytes(sealed(values))

    def summary_of_a_run(self) -> None:
        file = self.place.out / "run" / "run.json"
        file.write_bytes(sealed({**unsealed(file.read_bytes()), BESIDE: {self.name: "0" * 32}}))

    def picture_of_an_evaluation(self) -> None:
        folder = self.place.out / "evaluation"
        rows = from_parquet((folder / "scenes.parquet").read_bytes(), EvalScene)
        changed = [dataclasses.replace(row, image=self.name) for row in rows]
        (folder / "scenes.parquet").write_bytes(to_parquet(changed, EvalScene))
        about = unsealed((folder / "run.json").read_bytes())
        about[BESIDE] = digests_in(folder, about[BESIDE])
        (folder / "run.json").write_bytes(sealed(about))

    def link_of_a_folder(self) -> None:
        names = (".tmp", "shards", "versions", "stages", "registry", ".leases", "reviews")
        path = self.root / names[len(self.name) % len(names)]
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(self.outside)

    def link_of_a_file(self) -> None:
        latest = (self.root / "LATEST").read_text().strip()
        names = ("LATEST", "dataset.json", f"versions/{latest}/manifest.json")
        path = self.root / names[len(self.name) % len(names)]
        path.unlink(missing_ok=True)
        path.symlink_to(self.outside / "victim.txt")


FORGERIES = tuple(
    name for name in vars(Forger) if not name.startswith("_") and callable(getattr(Forger, name))
)
LOOKS = (
    ("doctor", "--root", "@root", "--repair", "--json"),
    "gc",
    "dataset purge",
    "build-dataset",
    "report",
    "export dataset",
    "train",
)


def hostile(trial: Trial, draw: random.Random) -> None:
    """A workspace of a stranger's: nothing outside is read, written or deleted, and it is told."""
    place = trial.place
    place.lay("")
    forgery, name = FORGERIES[trial.outcome.number % len(FORGERIES)], draw.choice(NAMES)
    forger = Forger(place, name)
    (forger.outside / "below").mkdir(parents=True)
    for path in (forger.outside / "victim.txt", forger.outside / "below" / "other.tar"):
        path.write_bytes(SECRET)
    getattr(forger, forgery)()
    shown = forgery.replace("_", " ")
    trial.fault(f"a stranger's {shown}", f"{shown}: {name}")
    told = not trial.doctor()[0]
    for command in draw.sample(LOOKS, 2):
        running = place.run(command)
        told |= running.ended() != 0
        if running.ended() not in (0, 2, 3) or "Traceback" in running.said():
            trial.wrong(f"{command}: exit {running.ended()}: {running.said()[-500:]}")
    if not told:
        trial.wrong("nothing tells of it")
    left = {p.name: p.read_bytes() for p in forger.outside.rglob("*") if p.is_file()}
    if left != {"victim.txt": SECRET, "other.tar": SECRET}:
        trial.wrong(f"outside is now: {sorted(left)}")
    for path in place.out.rglob("*"):
        if path.is_file() and not path.is_symlink() and SECRET in path.read_bytes():
            trial.wrong(f"{path}: holds what lies outside")
    shutil.rmtree(forger.outside)


PLACES = (
    *("", "shards", "versions", "stages", "stages/generate", "registry", "reviews", "purges"),
    *(".leases", ".tmp", "versions/new", "stages/pair/00", "reviews/00", ".leases/generate"),
)
STRANGERS = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "._LATEST", "x (conflicted copy).tar", "notes~"),
    *("000001.json (1)", "0.tar.crdownload", "\u732b.json", "a\nb", "LATEST.bak", "nohup.out"),
)
DEEP = b"[" * 100_000
NAMED: Mapping[str, Callable[[Path], object]] = {
    "a review without a bottom": lambda root: _put(root / f"reviews/ab/p.{'0' * 32}.json", DEEP),
    "a state of the registry without a bottom": lambda root: _put(
        root / "registry/000999.json", DEEP
    ),
    "a purge without a bottom": lambda root: _put(root / f"purges/{'0' * 16}.json", DEEP),
    "a pipe as LATEST": lambda root: _pipe(root / "LATEST"),
    "a folder as LATEST": lambda root: _folder(root / "LATEST"),
    "a pipe as a state of the registry": lambda root: _pipe(root / "registry/000999.json"),
    "a long LATEST": lambda root: _put(root / "LATEST", bytes(50 * 2**20)),
}
"""Under names that are ours: refused by name, and all goes on when they are taken away."""
HARMLESS: Mapping[str, Callable[[Path], object]] = {
    "a lease for ever": lambda root: _put(
        root / ".leases/publish/version.json",
        json.dumps({"owner": "x", "what": "y", "since": "z", "seconds": 1e18, "beat": 0}).encode(),
    ),
    "a lease without a bottom": lambda root: _put(root / ".leases/builds/a.json", DEEP),
    "a folder as a review": lambda root: _folder(root / f"reviews/ab/p.{'0' * 32}.json"),
    "an unfinished file of another machine": lambda root: _put(root / ".tmp/other~1~2~3", b"x"),
}


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def foreign(trial: Trial, draw: random.Random) -> None:
    """Files that are none of ours are passed over, or refused by name."""
    place, number = trial.place, trial.outcome.number
    wanted = place.wanted("build-dataset")
    place.lay("build-dataset")
    root = place.out / "root"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    named = list(NAMED)[number // 3 % len(NAMED)] if number % 3 == 0 else ""
    if named:
        NAMED[named](root)
        trial.fault("a foreign thing under a name of ours", named)
        running = place.run("build-dataset")
        new = [path for path in root.rglob("*") if path not in before]
        new += [root / "LATEST"]
        if running.ended() != 0:  # a build does not read what it has no use for; doctor does
            trial.refused(running, *(path.name for path in new))
        well, said = trial.doctor()
        if well:
            trial.wrong(f"doctor does not see it: {said[-300:]}")
        _restore(root, before)
    elif number % 3 == 1:
        what = list(HARMLESS)[number // 3 % len(HARMLESS)]
        HARMLESS[what](root)
        trial.fault("a foreign lease or part", what)
    else:
        where = draw.choice(PLACES)
        if where == "versions/new":
            where = f"versions/{(root / 'LATEST').read_text().strip()}"
        path = root / where / draw.choice(STRANGERS)
        path.parent.mkdir(parents=True, exist_ok=True)
        way = draw.choice(("a file", "a folder", "a pipe"))
        if way == "a file":
            path.write_bytes(draw.choice((b"", b"\0\1\2", DEEP)))
        else:
            _folder(path) if way == "a folder" else _pipe(path)
        trial.fault("a foreign file", f"{way}: {path.relative_to(root)}")
        for command in ("build-dataset", "gc"):
            running = place.run(command)
            if running.ended() != 0:
                trial.refused(running, path.name, repr(path.name)[1:-1])
        _restore(root, before)
    place.begin("build-dataset")
    trial.goes_on("build-dataset", wanted)


def _restore(root: Path, before: Mapping[Path, bytes]) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        ours = path in before and path.is_file() and not path.is_fifo()
        if not ours and not (path.is_dir() and any(path in one.parents for one in before)):
            path.rmdir() if path.is_dir() else path.unlink()
    for path, data in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


BROKEN = (
    *(("identity", "nan"), ("identity", "inf"), ("clip", "nan"), ("generator", "black")),
    *(("inpainter", "black"), ("identity", "zero")),
)


def not_finite(trial: Trial, draw: random.Random) -> None:
    """A model hands over what none that is whole does: nothing of it is kept, and it is named."""
    place = trial.place
    role, way = BROKEN[trial.outcome.number % len(BROKEN)]
    wanted = place.wanted("build-dataset")
    place.lay("build-dataset")
    place.begin("build-dataset")
    trial.fault("a model's output is not finite or of one colour", f"{role}: {way}")
    running = place.run("build-dataset", CHAOS_BROKEN=f"{role}:{way}")
    trial.refused(running, role)
    for name, value in place.state().items():
        if name.startswith("root/") and wanted.get(name) != value:
            trial.wrong(f"{name}: was kept")
    trial.goes_on("build-dataset", wanted)
