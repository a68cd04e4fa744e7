"""How a run is described: a preset file, overrides over it, one typed model that checks both.

The command line and Prefect parameters go through the same models (`flows/config.py`), so a wrong
field gets the same message from either: its name, the names that exist, and what was expected.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.registration import Named, OfKind
from focusdpo.data_schemas.strict import read_yaml
from focusdpo.store.local import make_folder, write_whole

Tree = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WORDS = {
    "str": "text",
    "Path": "path",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
}


@dataclass(frozen=True)
class Option:
    """Marks a field of a run that its command takes as an option of this name. The field's default
    and description are the option's."""

    flag: str
    metavar: str | None = None


def option_of(field: FieldInfo) -> Option | None:
    """A field's option; None for one that `--set` alone changes."""
    return next((mark for mark in field.metadata if isinstance(mark, Option)), None)


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    folder = resources.files("focusdpo.flows").joinpath("presets")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_preset(name: str) -> Tree:
    """A shipped preset by name, or a YAML file by path, as a nested mapping. One that `extends`
    another, by name, is laid over it."""
    tree = _own_tree(name)
    under = tree.pop("extends", None)
    if under is None:
        return tree
    if under not in preset_names():
        raise UserError(
            f"preset '{name}': extends: {under}: no such preset; there are "
            f"{', '.join(preset_names())}"
        )
    return merge(load_preset(under), tree)


def _own_tree(name: str) -> Tree:
    if name in preset_names():
        shipped = resources.files("focusdpo.flows").joinpath(f"presets/{name}.yaml")
        return _mapping(shipped.read_bytes(), f"preset '{name}'")
    path = Path(name).expanduser()
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(
            f"preset '{name}': no such preset; there are {', '.join(preset_names())}, "
            "or give the path of a .yaml file"
        )
    try:
        return _mapping(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"preset {path}: cannot be read ({error.strerror})") from error


def _mapping(text: bytes, where: str) -> Tree:
    try:
        tree = read_yaml(text, where)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{where}: expected 'section: {{field: value}}', found {type(tree).__name__}"
        )
    return tree


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `under`, mappings merged key by key, everything else replaced."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def parse_overrides(items: Sequence[str]) -> Tree:
    """["a.b=1", "a.c=[x]"] -> {"a": {"b": 1, "c": ["x"]}}; values are YAML."""
    tree: Tree = {}
    for item in items:
        path, sign, text = item.partition("=")
        names = path.strip().split(".")
        if not sign or not all(names):
            raise UserError(f"--set {item}: expected section.field=value, as in train.steps=200")
        try:
            value = read_yaml(text, f"--set {item}")
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is not YAML: {error}") from error
        tree = merge(tree, nested({path.strip(): value}))
    return tree


def nested(dotted: Mapping[str, Any]) -> Tree:
    """{"a.b": 1, "a.c": 2} -> {"a": {"b": 1, "c": 2}}."""
    tree: Tree = {}
    for path, value in dotted.items():
        for name in reversed(path.split(".")):
            value = {name: value}
        tree = merge(tree, value)
    return tree


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Tree:
    """Dotted path -> value of every leaf of `after` that differs from `before`."""
    leaves: Tree = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            leaves |= {f"{name}.{path}": leaf for path, leaf in changes(old, value).items()}
        elif value != old:
            leaves[name] = value
    return leaves


def resolve(model: type[Model], tree: Mapping[str, Any]) -> Model:
    """The typed model of a tree; a `UserError` that names every wrong field otherwise."""
    # A run lays its preset between its defaults and what is given: it calls `over_defaults` itself.
    own_preset = "preset" in model.model_fields
    try:
        return model.model_validate(dict(tree) if own_preset else over_defaults(model, tree))
    except ValidationError as error:
        raise UserError(explain(error, model)) from error


def with_blanks(model: type[Model], tree: Mapping[str, Any]) -> Model:
    """As `resolve`, to look at settings: "..." stands for what a command line must name."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return resolve(model, merge(dict.fromkeys(required, "..."), tree))


def over_defaults(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    """`tree` with each section laid over the one that `model` holds by default. pydantic takes a
    section that is given in part as a new one: it fills the gaps with the defaults of the section's
    class, and the values that `model` gave that section are lost."""
    laid = dict(tree)
    for name, value in tree.items():
        field = model.model_fields.get(name)
        if field is None or not isinstance(value, Mapping):
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Mapping):
            laid[name] = merge(default, value)
        elif isinstance(default, BaseModel) and _same_kind(default, value):
            laid[name] = _over(default, value)
        else:
            choices = [choice for choice in models_of(field) if _is_of(choice, value)]
            laid[name] = over_defaults(choices[0], value) if len(choices) == 1 else value
    return laid


def _over(section: BaseModel, given: Mapping[str, Any]) -> Tree:
    """The values of a section with those that are given in their place."""
    changed: Tree = dict(section) | dict(given)
    for name, value in given.items():
        below = getattr(section, name, None) if name in type(section).model_fields else None
        if isinstance(value, Mapping) and isinstance(below, BaseModel):
            changed[name] = _over(below, value) if _same_kind(below, value) else value
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            changed[name] = merge(below, value)
    return changed


def _same_kind(section: BaseModel, given: Mapping[str, Any]) -> bool:
    kind = getattr(section, "kind", None)
    return given.get("kind", kind) == kind


def _is_of(model: type[BaseModel], given: Mapping[str, Any]) -> bool:
    """Whether a section that is given may be this model: where a kind chooses, the kind's."""
    kind = model.model_fields.get("kind")
    return kind is None or given.get("kind", kind.default) == kind.default


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per wrong field: path, what was found, what was expected, near names."""
    return "\n".join(
        _explain_one(dict(problem), model) for problem in error.errors(include_url=False)
    )


def _explain_one(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = [str(part) for part in problem["loc"]]
    # Where a section's kind chooses its model, the kind stands in the path; users write none.
    shown = [name for at, name in enumerate(path) if not _is_kind(model, path[: at + 1])]
    where = ".".join(shown)
    if problem["type"] == "extra_forbidden":
        owner = model_at(model, path[:-1])
        names = sorted(owner.model_fields) if owner else []
        near = difflib.get_close_matches(path[-1], names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        section = ".".join(shown[:-1]) or "the run"
        return f"{where}: no such field; {hint}fields of {section}: {', '.join(names)}"
    if problem["type"] == "missing":
        return f"{where}: required, but not given"
    if problem["type"] == "value_error":
        text = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {text}" if where else text
    return f"{where}: got {_short(problem['input'])}; {_lower(problem['msg'])}"


def model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model that holds the fields at a dotted path, or None when the path leaves the tree."""
    choices = _choices_at(model, path)
    return choices[0] if choices else None


def _choices_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """The models that may stand at a path: several where a `kind` chooses."""
    choices: list[type[BaseModel]] = [model]
    for name in path:
        if len(choices) > 1:
            choices = [choice for choice in choices if choice.model_fields["kind"].default == name]
        elif choices and name in choices[0].model_fields:
            choices = models_of(choices[0].model_fields[name])
    return choices


def _is_kind(model: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether a path ends in the kind of one of several models, and not in a field."""
    above = _choices_at(model, path[:-1])
    return len(above) > 1 and any(
        choice.model_fields["kind"].default == path[-1] for choice in above
    )


def models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that a field may hold: one, or several where a kind chooses; none for a value."""
    for mark in field.metadata:
        if isinstance(mark, OfKind):
            return list(mark.models.values())
    return list(dict.fromkeys(_models_in(field.annotation)))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in {typing.Union, types.UnionType, typing.Annotated}:
        for inner in typing.get_args(annotation):
            yield from _models_in(inner)


def field_at(model: type[BaseModel], path: str) -> FieldInfo:
    """The field at a dotted path. KeyError when there is none."""
    above, _, name = path.rpartition(".")
    owner = model_at(model, above.split(".") if above else [])
    if owner is None:
        raise KeyError(path)
    return owner.model_fields[name]


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a field takes: a literal's, or registered names. () where any value may be."""
    for mark in field.metadata:
        if isinstance(mark, Named):
            return tuple(mark.names)
    return tuple(str(literal) for literal in _literals(field.annotation))


def _literals(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    elif typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        for member in typing.get_args(annotation):
            yield from _literals(member)


def type_in_words(field: FieldInfo) -> str:
    """A field's type and bounds, its choices in backquotes, as in "whole number, >= 1"."""
    named = [
        f"`{name}`" for mark in field.metadata if isinstance(mark, Named) for name in mark.names
    ]
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{_number(getattr(mark, name))}"
        for mark in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(mark, name, None) is not None
    ]
    words = ", ".join([*named, "or `module:name`"]) if named else _type_in_words(field.annotation)
    return ", ".join([words, *bounds])


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "none"
    if origin is typing.Literal:
        return ", ".join(f"`{literal}`" for literal in inner)
    if origin is typing.Annotated:
        return _type_in_words(inner[0])
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_type_in_words(member) for member in inner)
    if origin in {tuple, list}:
        return f"list of {_type_in_words(inner[0])}" if inner else "list"
    if origin is not None and inner and issubclass(origin, Mapping):
        return f"mapping of {_type_in_words(inner[0])} to {_type_in_words(inner[1])}"
    name = str(getattr(annotation, "__name__", annotation))
    return WORDS.get(name, name)


def sentence(text: str) -> str:
    """A description as a sentence: a capital first, but for a choice ("dir: ..."); a full stop
    last."""
    is_choice = text.partition(" ")[0].endswith(":")
    start = text[:1] if is_choice else text[:1].upper()
    return start + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def as_yaml(model: BaseModel) -> str:
    """The resolved configuration, every field written out."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False)


def save_config(model: BaseModel, path: Path) -> None:
    """The resolved configuration, beside what it made."""
    make_folder(path.parent)
    write_whole(path, as_yaml(model).encode())


@dataclass(frozen=True)
class Setting:
    """A field of a resolved run."""

    name: str
    """Dotted."""
    value: Any
    field: FieldInfo


def described(model: BaseModel, path: str = "") -> Iterator[Setting]:
    """Every field of a resolved tree."""
    dumped = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from described(value, f"{path}{name}.")
        else:  # at its default a later field may stay out of what is stored
            yield Setting(f"{path}{name}", dumped.get(name, value), field)
