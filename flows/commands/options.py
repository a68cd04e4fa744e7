"""Commands from run models: what a model marks with `Option` is an option of the command.

    @command
    def train(run: TrainRun, prefect: PREFECT = True) -> Mapping[str, Any]: ...

gives --root, --out and --version of `TrainRun`, --preset, --set, --json and --prefect. Only options
that were given lie over the preset and --set; a default is the model's own.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import Run
from focusdpo.flows.settings import (
    field_at,
    merge,
    option_of,
    parse_overrides,
    resolve,
    sentence,
)
from focusdpo.flows.terminal import printable
from focusdpo.model.training.parallel import is_first
from focusdpo.store.addresses import is_remote, refuse_secret

SET = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Change one setting, as in `--set train.steps=200`; may be repeated.",
    ),
]
JSON = Annotated[
    bool, typer.Option("--json", help="Print one machine-readable line last on stdout.")
]
PREFECT = Annotated[
    bool | None,
    typer.Option(
        "--prefect/--no-prefect",
        help="Run as a Prefect flow, with a server that starts by itself where PREFECT_API_URL "
        "names none; or by plain calls. Without either: a flow where PREFECT_API_URL is set.",
    ),
]


def without_secret(address: str | None) -> str | None:
    """Checks an argument that may be an address, before anything is told of it."""
    if address is not None:
        refuse_secret(address)
    return address


ROOT = Annotated[
    str, typer.Option("--root", help="Folder of the dataset.", callback=without_secret)
]

INCOMPLETE = 3
"""Exit code of a run that finished, but left something out."""


class Incomplete(dict[str, Any]):
    """What a command that left something out has to say."""


@dataclass(frozen=True)
class Parsed:
    """A command with its arguments, checked, for `flows.cli` to run."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    as_json: bool

    def finish(self, result: Any) -> int:
        """Print what the command returned, where it was asked for; its exit code."""
        if self.as_json:
            finish(result, True)
        return INCOMPLETE if isinstance(result, Incomplete) else 0


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """A function for typer, which leaves the command as `Parsed` in the list that is typer's `obj`.

    The function's parameter `run`, where it has one, is a model of which the command has the marked
    fields as options; its other parameters are options of the command alone. What it returns is
    printed with --json; `Incomplete` is exit code 3."""
    signature = inspect.signature(function, eval_str=True)
    parameters = dict(signature.parameters)
    model: type[BaseModel] | None = (
        parameters.pop("run").annotation if "run" in parameters else None
    )
    answers = signature.return_annotation is not None
    every = [*_parameters(model), *parameters.values()] if model else [*parameters.values()]
    if model is not None and "preset" in model.model_fields:
        every.append(_parameter(model, "preset"))
    if model is not None and issubclass(model, Run):
        every.append(_more("set_", SET, []))
    if answers:
        every.append(_more("json", JSON, False))
    every.append(_more("context", typer.Context, inspect.Parameter.empty))

    @functools.wraps(function)
    def call(**given: Any) -> None:
        arguments = {name: given[name] for name in parameters}
        if model is not None:
            arguments["run"] = _resolved(model, given)
        parsed = Parsed(function, arguments, answers and given["json"])
        given["context"].find_root().obj.append(parsed)

    described: Any = call
    by_name = {
        parameter.name: parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in every
    }
    described.__signature__ = inspect.Signature(list(by_name.values()))
    described.__annotations__ = {name: parameter.annotation for name, parameter in by_name.items()}
    described.model = model
    return call


def _resolved(model: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    """The model of what was given on the command line; what was left out is its own default."""
    source = given["context"].get_parameter_source
    named = {
        name: given[name]
        for name in model.model_fields
        if name in given and getattr(source(name), "name", "") != "DEFAULT"
    }
    return resolve(model, merge(parse_overrides(given.get("set_", ())), named))


def _parameters(model: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """Those of the marked fields; --preset has its place further down."""
    for name, field in model.model_fields.items():
        if name != "preset" and option_of(field):
            yield _parameter(model, name)


def _parameter(model: type[BaseModel], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    option = option_of(field)
    assert option is not None
    bounds = {
        typer_name: getattr(mark, bound)
        for mark in field.metadata
        for bound, typer_name in (("ge", "min"), ("le", "max"))
        if getattr(mark, bound, None) is not None
    }
    about = typer.Option(
        option.flag, metavar=option.metavar, help=sentence(field.description or ""), **bounds
    )
    default = inspect.Parameter.empty if field.is_required() else field.default
    return _more(name, Annotated[_typer_type(field.annotation), about], default)


def _more(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _typer_type(annotation: Any) -> Any:
    """A field's type in typer's terms: what may be repeated is a list; what checks a value is the
    model's, and no name of a type."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _typer_type(inner[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_typer_type, inner))
    if typing.get_origin(annotation) is tuple and inner[-1] is Ellipsis:
        return list[inner[0]]  # type: ignore[valid-type]
    return annotation


def run_models(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, type[BaseModel]]]:
    """(name, run model) of every command of a click group that has one, as in "export adapter"."""
    for name, subcommand in group.commands.items():
        if hasattr(subcommand, "commands"):
            yield from run_models(subcommand, (*words, name))
        elif (model := getattr(subcommand.callback, "model", None)) is not None:
            yield " ".join((*words, name)), model


def arguments_of(model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """A command's arguments for values of a model's marked fields, by name; False, None and () are
    left out."""
    arguments: list[str] = []
    for name, value in values.items():
        option = option_of(field_at(model, name))
        if option is None:
            raise KeyError(f"{model.__name__}.{name} is no option")
        for item in value if isinstance(value, tuple | list) else (value,):
            if item is True:
                arguments.append(option.flag)
            elif item not in (None, False):
                arguments += [option.flag, str(item)]
    return arguments


def fetched(address: Path | None) -> Path | None:
    """A folder that a run left, of this machine: where it is an address, what lies there comes."""
    from focusdpo.store.outputs import local

    return None if address is None else local(address)


def require_here(out: Path | None) -> None:
    """UserError for an `--out` at an address."""
    if out is not None and is_remote(out):
        raise UserError(
            f"--out {out}: this command writes to this machine; give a local path. Only train, "
            "evaluate and retrain take an address as --out"
        )


def say(text: str = "") -> None:
    """A line for people, by the first of several processes."""
    if is_first():
        typer.echo(printable(text))


def finish(result: Mapping[str, Any], as_json: bool) -> None:
    """The machine-readable line, last on stdout."""
    if as_json and is_first():
        sys.stdout.flush()
        typer.echo(json.dumps(result, sort_keys=True, allow_nan=False, default=str))
