"""Things that are chosen by name: an objective, a backbone, a part, a protocol.

Each is registered once, under a name. `module:name` brings one from a package outside this
repository, without a registration: the module is imported, and `name` taken from it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from focusdpo.data_schemas.errors import UserError

Thing = TypeVar("Thing")


def unknown(what: str, name: str, names: Iterable[str]) -> UserError:
    """The error for a name that is none: the nearest, and all there are."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"there is no {what} '{name[:80]}'; {hint}there are {', '.join(known)}")


def load(address: str, what: str) -> Any:
    """What lies at `module:name`. UserError when the module or the name is not there."""
    module_name, _, name = address.partition(":")
    if not module_name or not name.isidentifier():
        raise UserError(f"{what} '{address[:80]}': expected module:name, as in mypackage.mine:best")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} {address}: there is no module {error.name}; install its package here, or put "
            "its folder on PYTHONPATH"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UserError(f"{what} {address}: module {module_name} has no '{name}'") from error


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Name -> thing, in the order of registration. A thing given as `module:name` is imported when
    it is asked for. Iterating gives the names of what is registered, not those from outside."""

    def __init__(self, what: str, kind: type, things: Mapping[str, Thing | str]) -> None:
        """`what`: the word for one of them in messages; `kind`: the class that things from outside
        are instances of, or, where they are classes, subclasses."""
        self.what, self._kind = what, kind
        self._things = dict(things)

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __getitem__(self, name: str) -> Thing:
        """UserError for a name that is neither registered nor leads to a thing of this kind."""
        thing = self._things.get(name)
        if thing is None and ":" not in name:
            raise unknown(self.what, name, self) from None
        thing = name if thing is None else thing
        if not isinstance(thing, str):
            return thing
        loaded: Any = load(thing, self.what)
        cls = loaded if isinstance(loaded, type) else type(loaded)
        if not issubclass(cls, self._kind):
            raise UserError(
                f"{self.what} {name}: a {cls.__name__}; expected {self._kind.__module__}."
                f"{self._kind.__name__}"
            )
        return loaded  # type: ignore[no-any-return]

    def module(self, name: str) -> str:
        """Name of the module that a thing comes from."""
        thing = self._things.get(name, name)
        if isinstance(thing, str):
            return thing.partition(":")[0]
        return str(getattr(thing, "__module__", type(thing).__module__))


class Named:
    """Marks a field that holds a registered name: `Annotated[str, Named(OBJECTIVES)]`."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        self.names[name]
        return name


class OfKind:
    """Marks a section whose field `kind` names the model that it is: one of a registry, or
    `module:Name` of a model from outside. `kind` may be left out where one model is registered.
    An `optional` section may be None."""

    def __init__(self, models: Registry[type[BaseModel]], *, optional: bool = False) -> None:
        self.models, self._optional = models, optional

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        known = tuple(self.models.values())
        several = Annotated[Union[known], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007
        schema = handler.generate_schema(several if len(known) > 1 else known[0])
        return core_schema.no_info_wrap_validator_function(
            self._read,
            core_schema.nullable_schema(schema) if self._optional else schema,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda model, dump: dump(model), schema=core_schema.any_schema()
            ),
        )

    def _read(self, given: Any, read: core_schema.ValidatorFunctionWrapHandler) -> Any:
        kind = given.get("kind") if isinstance(given, Mapping) else getattr(given, "kind", None)
        if not isinstance(kind, str) or kind in self.models:
            return read(given)
        model = self.models[kind]
        return given if isinstance(given, model) else model.model_validate(given)
