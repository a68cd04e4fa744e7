"""`focusdpo doctor`: what a run needs, checked before it is started."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from focusdpo.data_schemas.errors import Forbidden, UserError, counted
from focusdpo.flows.fit.supply import free_memory
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.prefect.reachable import named_address, require_home, require_server
from focusdpo.flows.prefect.server import has_prefect, hush
from focusdpo.flows.wiring import Parts, fingerprint_of
from focusdpo.store.addresses import HEADER
from focusdpo.store.keys import changed, file_digest, unsealed
from focusdpo.store.leases import WRITERS, race

if TYPE_CHECKING:
    from focusdpo.model.training.config import TrainConfig
    from focusdpo.pipeline.upkeep.repair import Mended
    from focusdpo.store.artefacts import Store

FREE_DISK = 2 * 2**30
FREE_MEMORY = 3 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    told: str


def checks(models: ModelsConfig | None = None, train: TrainConfig | None = None) -> list[Check]:
    """Python, packages that must fit together, weights (the embedded suite's, or every checkpoint
    that `models` names), disk, memory; and the Prefect server, where PREFECT_API_URL names one.
    With checkpoints, whether a build, a training as `train` says and an evaluation fit this
    machine."""
    wanted = dict(CHECKS)
    if models is not None:
        from focusdpo.flows.checkpoint_suite import checks as checkpoint_checks
        from focusdpo.flows.fit import supply
        from focusdpo.model.training.config import TrainConfig

        del wanted["weights"], wanted["memory"]
        wanted |= {name: _told(check) for name, check in checkpoint_checks(models)}
        wanted |= dict(supply.checks(models, train or TrainConfig()))
    done = [_guarded(name, check) for name, check in wanted.items()]
    if has_prefect() or os.environ.get("PREFECT_HOME"):
        hush()
        done.append(_guarded("prefect", _prefect))
        if done[-1].ok and has_prefect():
            from focusdpo.flows.prefect.setup import checks as server_checks

            done += [_guarded(name, check) for name, check in server_checks().items()]
    return done


def _prefect() -> tuple[bool, str]:
    require_home()
    url = named_address()
    return True, "no server is named" if url is None else f"version {require_server(url)} answers"


def _told(check: Callable[[], str]) -> Callable[[], tuple[bool, str]]:
    return lambda: (True, check())


def dataset_check(root: str, *, repair: bool = False) -> Check:
    """Every byte of a dataset, and whether its store takes new ones; with `repair`, what has a copy
    is restored, and damaged artefacts and shards are dropped."""
    from focusdpo.pipeline.upkeep import repair as mending
    from focusdpo.store.artefacts import Store

    if repair:
        done = mending.mend(root)
        fine, room = _room(Store.open(root, create=False))
        state = "; ".join(_done(done)) or "whole"
        return Check("dataset", fine and not done.lost, f"{root}: {state}; {room}")
    bad = mending.damages(root)
    fine, room = _room(Store.open(root, create=False))
    state = f"{len(bad)} damaged, first: {bad[0].what}" if bad else "whole"
    return Check("dataset", fine and not bad, f"{root}: {state}; {room}")


def run_check(folder: Path) -> Check:
    """Every file of what runs left in a folder, of which one of them tells a checksum: trainings,
    adapters, evaluations, decisions of `retrain`, the studio's drafts and jobs. Datasets below it
    are `dataset_check`'s."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder; give what `train`, `evaluate` or `retrain` left")
    num_records, bad = 0, []
    for path in _records(folder):
        num_records += 1
        try:
            values = unsealed(path.read_bytes())
        except ValueError as error:
            bad.append(f"{path}: damaged ({error})")
            continue
        here = path.parent
        damaged = [f"{here / name}: not what was written" for name in changed(here, values)]
        bad += damaged or (_forged(here) if path.name == "run.json" else ())
        wanted, weights = values.get("weights_digest"), path.with_name(WEIGHTS)
        if path.name == CARD and wanted and weights.is_file() and file_digest(weights) != wanted:
            bad.append(f"{weights}: not the bytes that {CARD} names")
    if not num_records:
        return Check("run", False, f"{folder}: holds nothing that a run left")
    state = f"{counted(len(bad), 'damaged file')}, first: {bad[0]}" if bad else "whole"
    return Check("run", not bad, f"{folder}: {state} ({counted(num_records, 'record')} read)")


def _records(folder: Path) -> Iterator[Path]:
    """JSON objects that runs wrote below a folder."""
    for where, folders, names in os.walk(folder):
        here = Path(where)
        if HEADER in names:
            folders.clear()
            continue
        for name in sorted(names):
            if name.endswith(".json") and not _is_list(here / name):
                yield here / name


def _forged(folder: Path) -> Iterator[str]:
    """What an evaluation's table names outside of it."""
    from focusdpo.evaluation.folder import SCENES, EvaluationFolder

    if (folder / SCENES).is_file():
        try:
            _ = EvaluationFolder(folder).records
        except UserError as error:
            yield str(error)


def _is_list(path: Path) -> bool:
    """A table, of which the record beside it tells."""
    with path.open("rb") as file:
        return file.read(1) == b"["


CARD, WEIGHTS = "adapter.json", "pytorch_lora_weights.safetensors"


def _done(mended: Mended) -> Iterator[str]:
    if mended.restored:
        yield f"{len(mended.restored)} restored ({', '.join(mended.restored[:5])})"
    if mended.dropped:
        yield f"{len(mended.dropped)} damaged, dropped; run the same build again"
    for damage in mended.lost:
        yield damage.what


def _room(store: Store) -> tuple[bool, str]:
    """Whether the root, local or not, can be written: a few bytes go there, back, and away. And
    whether it lets one of many writers win, as far as a few tries tell."""
    probe = f"doctor-{uuid.uuid4().hex}.probe"
    try:
        store.files.write(probe, b"focusdpo")
        back = store.files.read(probe)
        store.files.remove(probe)
        won = race(store.files, probe)
        store.files.remove(probe)
    except Forbidden as error:
        return True, f"it can be read alone: train and evaluate from it, build elsewhere ({error})"
    except (OSError, UserError) as error:
        return False, f"it cannot be written, so nothing can be built there ({error})"
    if back != b"focusdpo":
        return False, "what is written there comes back changed"
    state = "it takes new files"
    if (local := store.files.local) is not None:
        state += f", {shutil.disk_usage(local).free / 2**30:.1f} GiB free"
    if set(won) != {1}:
        state += (
            f", but of {WRITERS} writers at once {max(won)} were told that they were first: two "
            "builders could undo each other's version; let one at a time build there"
        )
    return set(won) == {1}, state


def _guarded(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        ok, message = check()
    except UserError as error:
        return Check(name, False, str(error))
    return Check(name, ok, message)


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0]


def _engine() -> tuple[bool, str]:
    prefect, fastapi = metadata.version("prefect"), metadata.version("fastapi")
    major, minor = (int(part) for part in fastapi.split(".")[:2])
    fits = (major, minor) < (0, 151)
    versions = f"prefect {prefect}, fastapi {fastapi}"
    return fits, versions if fits else f"{versions}: every flow fails; pip install 'fastapi<0.151'"


def _weights() -> tuple[bool, str]:
    for role in (*Parts.ROLES, "judge"):
        fingerprint_of("pocket", role)
    return True, f"pocket: {len(Parts.ROLES) + 1} parts have their weights"


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free
    return (
        free >= FREE_DISK,
        f"{free / 2**30:.1f} GiB free here, {FREE_DISK / 2**30:.0f} are wanted",
    )


def _memory() -> tuple[bool, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    now = free_memory() / 2**30
    memory = (
        f"{total / 2**30:.1f} GiB, {FREE_MEMORY / 2**30:.0f} are wanted; {now:.1f} are free now"
    )
    return total >= FREE_MEMORY, memory


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "python": _python,
    "engine": _engine,
    "weights": _weights,
    "disk": _disk,
    "memory": _memory,
}
