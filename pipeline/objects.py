"""What a remote store must be able to do, and how a request that fails for a while is repeated."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.remote_config import RemoteConfig

log = logging.getLogger(__name__)

T = TypeVar("T")
ABSENT = "*absent*"
"""The condition that nothing is there yet, where a tag says that a certain state still is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at an object tells."""

    size: int
    tag: str
    """Another one after each write."""
    age: float | None
    """Seconds since it was written, by the store's own clock."""


class Objects(Protocol):
    """One bucket and prefix. Each method is one try; keys are relative to the prefix.

    FileNotFoundError for an absent object; PermissionError where the store forbids it.
    """

    def address(self, key: str) -> str: ...

    def look(self, key: str) -> Found: ...

    def get(self, key: str, offset: int, size: int) -> tuple[bytes, str]:
        """Bytes from `offset`, `size` of them or (-1) all, and the object's tag."""
        ...

    def put(self, key: str, source: BinaryIO, size: int, condition: str | None) -> str | None:
        """Store `size` bytes whole. None when the condition does not hold: `ABSENT`, or a tag."""
        ...

    def below(self, key: str) -> dict[str, int]:
        """All keys below a folder with their sizes, in order."""
        ...

    def names(self, key: str) -> list[str]:
        """The names in a folder, folders included, in order."""
        ...

    def delete(self, key: str, tag: str | None) -> None:
        """Remove it if it is there, and with a tag only that state of it."""
        ...

    def sweep(self, older_than: float) -> int:
        """Give up uploads that began more than so many seconds ago; how many."""
        ...

    def passing(self, error: BaseException) -> bool:
        """Whether the same request may well succeed later."""
        ...

    def refusal(self, error: BaseException) -> str | None:
        """What is wrong and what to do, when only the user can mend it."""
        ...

    def told(self, error: BaseException) -> str:
        """An error in words that hold no credential."""
        ...


class Lost(ConnectionError):
    """A request that failed as often as it may."""


def persistently(
    request: Callable[[], T],
    passing: Callable[[BaseException], bool],
    told: Callable[[BaseException], str],
    what: str,
    config: RemoteConfig,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The request's answer, perhaps after some tries. Waits double from `first_wait` to
    `longest_wait`, each shortened by chance, so that many clients do not come back at once.

    `Lost` when all tries fail; any error that is not `passing` is raised at once.
    """
    for failed in range(config.attempts):
        try:
            return request()
        except (UserError, Lost):
            raise
        except Exception as error:
            if not passing(error):
                raise
            if failed + 1 == config.attempts:
                raise Lost(
                    f"{what}: failed {config.attempts} times, at last with {told(error)}; what is "
                    "stored so far stays. Run the same command again when the store answers"
                ) from None
            wait = min(config.first_wait * 2**failed, config.longest_wait)
            log.log(
                logging.WARNING if failed else logging.INFO,
                "%s: %s; try %d of %d follows",
                what, told(error), failed + 2, config.attempts,
            )  # fmt: skip
            sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: attempts is at least 1")
