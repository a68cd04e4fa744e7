"""What `focusdpo doctor` looks at on a Prefect server: that it answers, and that a run which is
started there would be taken up by a worker."""

from __future__ import annotations

from collections.abc import Callable

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.prefect.liveness import FLOWS

Told = tuple[bool, str]


def checks() -> dict[str, Callable[[], Told]]:
    """By name; each raises UserError when the server does not answer."""
    return {
        "server": _server,
        "deployments": _deployments,
        "pool": _pool,
        "worker": _worker,
        "automation": _automation,
        "gpu limit": _limit,
    }


def _server() -> Told:
    from focusdpo.flows.prefect.setup import PREFECT_API_URL, server

    with server() as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise UserError(f"{PREFECT_API_URL.value()}: {type(problem).__name__}: {problem}")
        return True, f"{PREFECT_API_URL.value()}: version {client.api_version()}"


def _pools() -> dict[str, list[str]]:
    """Work pool -> names of our deployments in it."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    from focusdpo.flows.prefect.setup import server

    found: dict[str, list[str]] = {}
    with server() as client:
        for one in client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
        ):
            found.setdefault(one.work_pool_name or "", []).append(one.name)
    return found


def _deployments() -> Told:
    names = sorted(name for own in _pools().values() for name in own)
    if names:
        return True, ", ".join(names)
    return False, "none; run `prefect --no-prompt deploy --all` in the folder of prefect.yaml"


def _pool() -> Told:
    from prefect.exceptions import ObjectNotFound

    from focusdpo.flows.prefect.setup import server

    told, fine = [], True
    with server() as client:
        for name in sorted(_pools()):
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
                told.append(f"{name}: absent, run `focusdpo prefect-setup`")
                fine = False
                continue
            paused = pool.is_paused
            told.append(f"{name}: {'paused, so nothing starts' if paused else 'open'}")
            fine = fine and not paused
    return fine and bool(told), "; ".join(told) or "no deployment names one"


def _worker() -> Told:
    from focusdpo.flows.prefect.setup import server

    told, fine = [], True
    with server() as client:
        for name in sorted(_pools()):
            workers = client.read_workers_for_work_pool(name)
            online = [one.name for one in workers if str(one.status).endswith("ONLINE")]
            told.append(f"{name}: {len(online)} online")
            fine = fine and bool(online)
            if not online:
                told[-1] += f", so runs wait; start one with `prefect worker start --pool {name}`"
    return fine and bool(told), "; ".join(told) or "no deployment names a pool"


def _automation() -> Told:
    from focusdpo.flows.prefect.setup import SILENT, server

    with server() as client:
        found = client.read_automations_by_name(SILENT)
    if not found:
        return False, "runs whose machine dies stay Running for ever; run `focusdpo prefect-setup`"
    if not found[0].enabled:
        return False, f"'{SILENT}' is switched off"
    return True, SILENT


def _limit() -> Told:
    from prefect.exceptions import ObjectNotFound

    from focusdpo.flows.prefect.gpu_slot import GPU_LIMIT
    from focusdpo.flows.prefect.setup import server

    with server() as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            return False, f"no limit {GPU_LIMIT}: runs may share a GPU; `focusdpo prefect-setup`"
    return limit.active, f"{GPU_LIMIT}: {limit.active_slots} of {limit.limit} taken"
