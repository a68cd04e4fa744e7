"""What all settings and cards are made of: models that refuse what they do not know, and YAML that
is read as people mean it or refused.

YAML 1.1 takes `on` for true, 010 for 8 and 1:30 for 90, and keeps the last of two equal keys. Here
`on`, `off`, `yes` and `no` are words, which a setting of true or false still understands.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from focusdpo.data_schemas.errors import UserError


class StrictModel(BaseModel):
    """Unknown fields and numbers that are not finite are refused, and nothing changes after the
    check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Later:
    """Marks a setting that came after data had been made without it: at its default it stays out
    of content keys, so that what is there stays valid."""


def key_values(config: BaseModel) -> dict[str, Any]:
    """A section as content keys hold it."""
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if Later in map(type, field.metadata) and getattr(config, name) == field.default:
            del values[name]
    return values


def first_problem(error: ValidationError) -> str:
    """The first field that is wrong, and how."""
    first = error.errors()[0]
    problem = "no such field" if first["type"] == "extra_forbidden" else first["msg"]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {problem}"


_TAG = "tag:yaml.org,2002:"
_KINDS = {"bool": "true or false", "int": "a number", "float": "a number", "timestamp": "a date"}
_OCTAL_OR_SEXAGESIMAL = re.compile(r"[-+]?0[0-9_]+|.*:.*")
MOST_SHOWN = 40
"""Characters of a wrong value."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(data: bytes, where: str) -> str:
    """A text file's content. UserError that names `where` for another encoding than UTF-8."""
    if data.startswith(_UTF_16) or b"\0" in data[:4]:
        raise UserError(f"{where}: the file is in UTF-16; save it with the encoding UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}: line {line} is not UTF-8 (perhaps Latin-1 or Windows-1252); save it with "
            "the encoding UTF-8"
        ) from error


def read_yaml(
    text: str | bytes, where: str, *, texts_only: bool = False, flags: Collection[str] = ()
) -> Any:
    """What YAML says. `texts_only`: no value may be a number, a date, true or false, but those of
    the keys `flags`, which are true or false (or yes or no).

    UserError that names `where` and the line for other encodings, no YAML, keys that are given
    twice, and values that YAML reads as something else than what is written.
    """
    loader = _Loader(decode_text(text, where) if isinstance(text, bytes) else text)
    loader.where, loader.texts_only, loader.flags = where, texts_only, flags
    try:
        return loader.get_single_data()
    except RecursionError as error:
        raise UserError(f"{where}: not YAML that can be read: nested too deep") from error
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a number of 5000 digits, a month 13
        raise UserError(f"{where}: not YAML that can be read: {error}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    where: str
    texts_only: bool
    flags: Collection[str]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            self._check(node)
        elif isinstance(node, yaml.MappingNode):
            self._name_keys(node)
            for key, value in node.value:
                if key.value in self.flags and value.tag == f"{_TAG}bool":
                    value.style = "flag"  # any style but None: not checked as a plain text
        return super().construct_object(node, deep)

    def _check(self, node: yaml.ScalarNode) -> None:
        kind, text = node.tag.removeprefix(_TAG), node.value
        shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
        if kind not in _KINDS:
            return
        if self.texts_only:
            raise UserError(
                f"{self._at(node)}: {shown} is read as {_KINDS[kind]}, not as text; quote it: "
                f'"{shown}"'
            )
        if kind == "bool" and text.lower() not in ("true", "false"):
            node.tag = f"{_TAG}str"  # as in YAML 1.2: `no` is a word, and no number of steps
        elif kind in ("int", "float") and _OCTAL_OR_SEXAGESIMAL.fullmatch(text):
            raise UserError(
                f"{self._at(node)}: {shown} is read as {self._number(kind, node):g}; write the "
                f'number that is meant, or quote it if it is text: "{shown}"'
            )

    def _number(self, kind: str, node: yaml.ScalarNode) -> float:
        read = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        return float(read(node))

    def _name_keys(self, node: yaml.MappingNode) -> None:
        """Keys are names: what looks like a number is text, and none is given twice."""
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{self._at(key)}: a list or a mapping where a name is expected")
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
            first = seen.setdefault(key.value, key)
            if first is not key:
                raise UserError(
                    f"{self._at(key)}: '{key.value}' is given a second time, after line "
                    f"{first.start_mark.line + 1}; keep one"
                )

    def _at(self, node: yaml.Node) -> str:
        return f"{self.where}, line {node.start_mark.line + 1}"
