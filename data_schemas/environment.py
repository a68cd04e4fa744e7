"""Settings that are read from environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from focusdpo.data_schemas.errors import UserError


class EnvironmentConfig(BaseModel):
    """Each field is read from the variable `<prefix><FIELD>`; an empty one says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """UserError that names a variable which says nothing usable."""
        names = {name: f"{cls.prefix}{name.upper()}" for name in cls.model_fields}
        given = {name: environment[key] for name, key in names.items() if environment.get(key)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{names[str(first['loc'][0])]}: {first['msg']}") from error
