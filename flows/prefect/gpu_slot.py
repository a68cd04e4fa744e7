"""The slot of a server's concurrency limit that a run holds while it uses the GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

GPU_LIMIT = "focusdpo-gpu"
"""The limit that `focusdpo prefect-setup` makes."""
VARIABLE = "FOCUSDPO_GPU_LIMIT"
"""Names another limit (one per machine, say); it is then taken without a GPU, too. Empty: none."""
LEASE_SECONDS = 120.0
"""After a kill the slot is free again so much later, at most."""


def limit_name() -> str | None:
    """The limit that a run takes here; None when it takes none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return named or None
    return GPU_LIMIT if has_gpu() else None


def has_gpu() -> bool:
    """Whether this process may use a CUDA device; asks the system, without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


@contextmanager
def gpu_slot(wanted: bool = True) -> Iterator[None]:
    """Hold the GPU's slot; waits for it. Where the server has no such limit, none is held."""
    name = limit_name() if wanted else None
    if name is None or not _is_there(name):
        yield
        return
    from prefect.concurrency.sync import concurrency

    # Renewing fails when the server is away for a while: a training of hours goes on then.
    with concurrency(
        name,
        occupy=1,
        strict=True,
        lease_duration=LEASE_SECONDS,
        raise_on_lease_renewal_failure=False,
    ):
        log.debug("holds a slot of %s", name)
        yield


def _is_there(name: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            log.warning(
                "the server has no limit '%s', so runs may share the GPU; "
                "`focusdpo prefect-setup` makes it",
                name,
            )
            return False
    return True
