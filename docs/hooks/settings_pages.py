"""The reference of all settings, from the models that check them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from command_pages import root_command
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from focusdpo.flows.commands.options import run_models
from focusdpo.flows.settings import load_preset, models_of, type_in_words

HEAD = """# Settings

Every field of every command's settings, made of the models that check them when this site was
built. `--set section.field=value` changes one (values are YAML), a preset file changes many, and a
Prefect run takes the same tree as its parameter `run`. `focusdpo settings train` prints them with
the values of a preset. A misspelt field is refused with the names that there are.

*pocket* tells where the preset `pocket`, which is taken when none is named, differs from the
default.
"""


def runs() -> dict[str, type[BaseModel]]:
    """Command -> the model of its run."""
    return dict(run_models(root_command()))


def settings_page() -> str:
    """A section per command's own fields, then one per section that commands share."""
    pocket = load_preset("pocket")
    sections = _sections()
    parts = [HEAD, "## Which command takes which section", _who(sections)]
    for command, model in runs().items():
        own = {n: f for n, f in model.model_fields.items() if not models_of(f)}
        parts += [f"## {command}: its own fields {{ #own-{_slug(command)} }}", _table(own, "", {})]
    for name, field in sections.items():
        parts += [f"## {name}", _cell(field.description or "").capitalize() + "."]
        parts += _section(name, field, pocket)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _section(name: str, field: FieldInfo, pocket: Mapping[str, Any]) -> Iterator[str]:
    """A section and all that lie in it. Where several have the same fields these are told once."""
    told: dict[type[BaseModel], str] = {}
    for path, model in _below(name, field):
        if model in told:
            yield f"`{path}` has the fields of `{told[model]}`."
            continue
        told[model] = path
        if path != name:
            yield f"### {path} {{ #{_slug(path)} }}"
        yield _doc(model)
        yield _table(_plain_fields(model), path.split(" ")[0], pocket)


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every dotted name below a model, sections included."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for inner in models_of(field):
            yield from paths(inner, f"{above}{name}.")


def _sections() -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for model in runs().values():
        for name, field in model.model_fields.items():
            if models_of(field):
                found.setdefault(name, field)
    return dict(sorted(found.items()))


def _who(sections: Mapping[str, FieldInfo]) -> str:
    rows = ["| section | what | commands |", "| --- | --- | --- |"]
    for name, field in sections.items():
        takers = ", ".join(
            command
            for command, model in runs().items()
            if name in model.model_fields and models_of(model.model_fields[name])
        )
        rows.append(f"| [{name}](#{name}) | {_cell(field.description or '')} | {takers} |")
    return "\n".join(rows)


def _below(path: str, field: FieldInfo) -> Iterator[tuple[str, type[BaseModel]]]:
    """(Dotted path, model) of a section and all sections in it. Of several kinds each is told."""
    choices = models_of(field)
    for model in choices:
        kind = model.model_fields.get("kind")
        yield (f"{path} (kind {kind.default})" if len(choices) > 1 and kind else path), model
        for name, inner in model.model_fields.items():
            yield from _below(f"{path}.{name}", inner)


def _plain_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {n: f for n, f in model.model_fields.items() if not models_of(f)}


def _table(fields: Mapping[str, FieldInfo], path: str, preset: Mapping[str, Any]) -> str:
    rows = [
        f"| {_field(f'{path}.{name}' if path else name)} | {_cell(type_in_words(field))} | "
        f"{_default(field)}{_pocket(field, f'{path}.{name}', preset)} | "
        f"{_cell(field.description or '')} |"
        for name, field in fields.items()
    ]
    head = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows]) if rows else ""


def _field(path: str) -> str:
    """A dotted name as code that breaks at its joints."""
    broken = re.sub(r"([._])", r"\1<wbr>", path)
    return f"<code>{broken}</code>"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is PydanticUndefined else f"`{_value(value)}`"


def _pocket(field: FieldInfo, path: str, preset: Mapping[str, Any]) -> str:
    here: Any = preset
    for name in path.split("."):
        if not isinstance(here, Mapping) or name not in here:
            return ""
        here = here[name]
    same = not field.is_required() and _value(here) == _value(field.default)
    return "" if same else f"<br>*pocket:* `{_value(here)}`"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _doc(model: type[BaseModel]) -> str:
    """A model's own first words; its title where it has none."""
    return " ".join((model.__doc__ or "").split()).replace("<", "&lt;")


def _slug(path: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in path).strip("-").replace("--", "-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
