"""What an evaluation of any protocol leaves, and the one reader of it.

config.yaml          the resolved settings
scenes.parquet       one record per picture and model by the judge (`EvalScene`)
scorer.parquet       pocket: the same pictures by the preference scorer (`ScorerView`)
photographs.parquet  DreamBench, subjects: whole pictures (`WholeScores`)
foreign.parquet      pictures from any model: who failed, S at the places (`ForeignScores`)
rows.json            the table (`EvalRow`)
subjects.json        who stands in the scenes, and what was asked for
grid.png, images/<model>/, references/<subject>/
run.json             last: an evaluation without it is unfinished and goes on

Pictures are named by tables that may come from others: a name is plain and relative, and what it
names lies in the folder, or it is refused.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.evaluations import (
    AgreementRow,
    EvalScene,
    ForeignScores,
    ScorerView,
    WholeScores,
)
from focusdpo.data_schemas.images import decode_jpeg, decode_png
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.data_schemas.strict import first_problem
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.evaluation.protocols import ADAPTER, BASE
from focusdpo.pipeline.parts import Image
from focusdpo.store.addresses import is_remote
from focusdpo.store.keys import (
    changed,
    file_digest,
    is_plain,
    parsed,
    require_whole,
    sealed,
    unsealed,
)
from focusdpo.store.local import write_whole
from focusdpo.store.outputs import holds, local
from focusdpo.store.provenance import EVALUATION, require_kind, require_own

RUN, ROWS, SUBJECTS, CONFIG = "run.json", "rows.json", "subjects.json", "config.yaml"
SCENES, SCORER, PHOTOGRAPHS = "scenes.parquet", "scorer.parquet", "photographs.parquet"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""Of an adapter."""
FOREIGN = "foreign.parquet"
GRID = "grid.png"
"""References of some scenes, and below them what each model painted."""
AGAIN = "run `focusdpo evaluate` again into a new folder"

log = logging.getLogger(__name__)

Record = TypeVar("Record", EvalScene, ForeignScores, ScorerView, WholeScores)
Value = TypeVar("Value")


class SubjectFacts(BaseModel):
    """What subjects.json says of a subject."""

    model_config = ConfigDict(extra="allow", frozen=True)

    class_name: str = ""
    pictures: tuple[str, ...] = ()
    """Below the folder."""


class _Subjects(BaseModel):
    subjects: dict[str, SubjectFacts] = {}
    prompts: dict[str, str] = {}


@dataclass(frozen=True)
class EvaluationFolder:
    """What an evaluation left in `path`. Every file is read when it is asked for; UserError names
    one that is missing, damaged, or names what lies elsewhere."""

    path: Path

    def __post_init__(self) -> None:
        require_kind(self.path, EVALUATION)

    @functools.cached_property
    def about(self) -> Mapping[str, Any]:
        """run.json. UserError for an evaluation that did not finish."""
        return self._validated(RUN, read_json(self.path / RUN, AGAIN), dict[str, Any])

    @functools.cached_property
    def rows(self) -> list[EvalRow]:
        """The table."""
        return self._checked(ROWS, list[EvalRow])

    @functools.cached_property
    def agreement(self) -> list[AgreementRow]:
        """Scorer against judge; none where the protocol has no scorer."""
        return self._validated(RUN, self.about.get("agreement") or [], list[AgreementRow])

    @functools.cached_property
    def _subjects(self) -> _Subjects:
        return self._checked(SUBJECTS, _Subjects)

    @property
    def subjects(self) -> Mapping[str, SubjectFacts]:
        """Subject id -> what is known of it."""
        return self._subjects.subjects

    @property
    def prompts(self) -> Mapping[str, str]:
        """Scene id -> prompt, in the protocol's order."""
        return self._subjects.prompts

    @functools.cached_property
    def records(self) -> list[EvalScene]:
        """What the judge measured on every picture of every model."""
        records = self._table(SCENES, EvalScene)
        for record in records:
            if record.image and not is_plain(record.image):
                raise UserError(
                    f"{self.path / SCENES}: names the picture {record.image[:80]!r}, which is"
                    " outside"
                )
        return records

    @functools.cached_property
    def views(self) -> list[ScorerView]:
        """What the preference scorer measured."""
        return self._table(SCORER, ScorerView)

    @functools.cached_property
    def whole(self) -> list[WholeScores]:
        """What was measured on whole pictures."""
        return self._table(PHOTOGRAPHS, WholeScores)

    @functools.cached_property
    def foreign(self) -> list[ForeignScores]:
        """What was measured on pictures from any model, in the order of `records`; none in an
        evaluation that painted its own."""
        return self._table(FOREIGN, ForeignScores) if self.holds(FOREIGN) else []

    @property
    def names(self) -> Mapping[str, str]:
        """base, adapter, ... -> what the model is called; itself where nobody named it."""
        names = self._validated(RUN, self.about.get("names") or {}, dict[str, str])
        return {BASE: BASE, ADAPTER: ADAPTER} | names

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """config.yaml; {} where there is none."""
        path = self.path / CONFIG
        if not path.is_file():
            return {}
        require_whole(self.path, self._told, AGAIN, [CONFIG])
        try:
            settings = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error
        return settings if isinstance(settings, dict) else {}

    @functools.cached_property
    def _told(self) -> Mapping[str, Any]:
        """What a finished evaluation says of its files; {} of one that still goes on."""
        return self.about if self.holds(RUN) else {}

    @property
    def protocol(self) -> str:
        """The id that every table prints."""
        return str(self.about.get("protocol", "unknown"))

    def is_of(self, adapter: Path) -> bool:
        """Whether this adapter was evaluated, wherever both lie now."""
        wanted, weights = self.about.get("adapter_weights"), adapter / WEIGHTS
        if wanted and weights.is_file():
            return file_digest(weights) == wanted
        recorded = str(self.about.get("adapter") or "")
        return bool(recorded) and local(recorded).resolve() == adapter.resolve()

    def of(self, model: str) -> list[EvalScene]:
        """The judge's records of one model."""
        return [record for record in self.records if record.model == model]

    def first(self, model: str) -> dict[str, EvalScene]:
        """Scene id -> the record of the model's first picture."""
        return {record.scene_id: record for record in self.of(model) if record.index == 0}

    def holds(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """The file that a table names. UserError for a name that leads out of the folder."""
        parts = PurePosixPath(name).parts
        path = self.path.joinpath(*parts)
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise UserError(
                f"{self.path}: names the picture '{name}', expected a plain name within the "
                f"folder; {AGAIN}"
            )
        places = [self.path.joinpath(*parts[: at + 1]) for at in range(len(parts))]
        if link := next((place for place in places if place.is_symlink()), None):
            raise UserError(f"{link}: a link, and no picture is read through one; {AGAIN}")
        return path

    def picture(self, name: str) -> Image:
        """The picture (H, W, 3) that a table names."""
        path = self.file(name)
        decode = decode_jpeg if path.suffix == ".jpg" else decode_png
        return decode(self.encoded(name), str(path))

    def encoded(self, name: str) -> bytes:
        """The file of a picture as it lies. UserError for a damaged or missing one."""
        path = self.file(name)
        require_whole(self.path, self._told, AGAIN, [name])
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error

    def _table(self, name: str, record: type[Record]) -> list[Record]:
        path = self.path / name
        require_whole(self.path, self._told, AGAIN, [name])
        try:
            return from_parquet(path.read_bytes(), record, str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error

    def _checked(self, name: str, kind: type[Value]) -> Value:
        require_whole(self.path, self._told, AGAIN, [name])
        return self._validated(name, read_json(self.path / name, AGAIN), kind)

    def _validated(self, name: str, value: Any, kind: type[Value]) -> Value:
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{self.path / name}: {first_problem(error)}; {AGAIN}") from error


def read_pictures(folder: Path, names: Sequence[str]) -> list[Image]:
    """Pictures (H, W, 3) of an evaluation by name. UserError for a damaged one."""
    evaluation = EvaluationFolder(folder)
    return [evaluation.picture(name) for name in names]


def read_json(path: Path, again: str, *, default: Any = None) -> Any:
    """A JSON file that a run left; `default`, when given, stands for a missing one. UserError says
    what to do: `again`."""
    if default is not None and not path.is_file():
        return default
    try:
        data = path.read_bytes()
        return unsealed(data) if data.lstrip().startswith(b"{") else parsed(data)
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder; give one that a run wrote") from error
        raise UserError(f"{path}: missing, so this run did not finish; {again}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from error


def read_object(path: Path, again: str, *, default: Any = None) -> dict[str, Any]:
    """As `read_json`, and a JSON object."""
    value = read_json(path, again, default=default)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; {again}")
    return value


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation found."""

    out: str
    adapter: str
    rows: list[EvalRow]
    scenes: int
    seconds: float
    resumed: bool
    """True when it was finished before and nothing was painted."""
    notes: tuple[str, ...] = ()
    """What a table must print beside its numbers."""
    left_out: tuple[str, ...] = ()
    """What of the data could not be used, and why."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: the differences, and where the rest lies."""
        whole = [asdict(row) for row in self.rows if row.group == "all"]
        summary = {"notes": list(self.notes), "left_out": list(self.left_out), "rows": whole}
        return {"command": "evaluate", **asdict(self), **summary}


def result_with(where: str, key: str) -> EvaluateResult | None:
    """The result in a folder or at an address, when it was made under this key and, in a folder, is
    all that it was."""
    if not holds(where, RUN):
        return None
    path = local(where, RUN, ROWS)
    require_own(path, where, EVALUATION)
    folder = EvaluationFolder(path)
    if folder.about.get("key") != key:
        return None
    if not is_remote(where) and (damaged := changed(folder.path, folder.about)):
        log.warning("%s: %s damaged; made anew", where, counted(len(damaged), "file"))
        return None
    return result_of(where, folder.about, folder.rows, resumed=True)


def result_of(
    where: str, about: Mapping[str, Any], rows: list[EvalRow], *, resumed: bool
) -> EvaluateResult:
    """What an evaluation found, from its run.json and its table."""
    fields = {name: about[name] for name in ("adapter", "scenes", "seconds")}
    fields |= {name: tuple(about.get(name, ())) for name in ("notes", "left_out")}
    return EvaluateResult(out=where, rows=rows, resumed=resumed, **fields)


def write_json(path: Path, value: Any) -> None:
    """The value, all at once; an object is sealed."""
    write_whole(
        path,
        sealed(value) if isinstance(value, dict) else f"{json.dumps(value, indent=1)}\n".encode(),
    )
