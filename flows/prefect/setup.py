"""What our flows need on a Prefect server: made or mended by `focusdpo prefect-setup`, and looked
at by `focusdpo doctor`.

A work pool, the GPU's concurrency limit, an automation that marks silent runs as Crashed, and,
where wanted, automations that start a deployment when a dataset version is published or an adapter
was trained. Run it as often as you like: what is there as it should be stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.jobs import PUBLISHED, TRAINED
from focusdpo.flows.prefect.gpu_slot import GPU_LIMIT
from focusdpo.flows.prefect.liveness import FLOWS
from focusdpo.flows.prefect.reachable import named_address, require_server
from focusdpo.flows.settings import merge

log = logging.getLogger(__name__)

SILENT = "focusdpo: a run without a heartbeat has crashed"
ON_PUBLISH = "focusdpo: a published dataset starts a training"
ON_TRAINED = "focusdpo: a trained adapter is evaluated"
SILENCE = 540.0
"""Seconds: three heartbeats of Prefect's default."""
HEARTBEAT = "prefect.flow-run.heartbeat"
FINAL = tuple(
    f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")
)


@dataclass(frozen=True, slots=True)
class Made:
    """One thing on the server."""

    what: str
    state: Literal["made", "changed", "there"]


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the configured server; UserError where none is configured or none answers."""
    url = named_address() or PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "no Prefect server is named: set PREFECT_API_URL, as in "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, and start it with `prefect server start`"
        )
    require_server(url)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        raise UserError(
            f"{url}: the Prefect server does not answer ({type(error).__name__})"
        ) from error


def setup(
    *,
    pool: str = "local",
    gpu_slots: int = 1,
    on_publish: Literal["train", "retrain"] | None = None,
    evaluate: bool = False,
    silence: float = SILENCE,
) -> list[Made]:
    """Make or mend everything; what was done, in order.

    UserError when the server cannot be reached, or a deployment that is to be started is absent.
    """
    with server() as client:
        done = [
            _pool(client, pool),
            _limit(client, gpu_slots),
            _automation(client, silent_runs(silence)),
        ]
        if on_publish is not None:
            done.append(_automation(client, _start_on_publish(client, on_publish)))
        if evaluate:
            done.append(_automation(client, _evaluate_on_trained(client)))
    return done


def silent_runs(silence: float) -> AutomationCore:
    """After a heartbeat of a run of ours, another or the run's end is expected within `silence`
    seconds; else the run's process is taken for dead."""
    return AutomationCore(
        name=SILENT,
        description="made by focusdpo prefect-setup",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *FINAL},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": list(FLOWS),
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"no heartbeat for {silence:g} s: its process, or its machine, is gone; "
                "the same run goes on from what was finished",
            )
        ],
    )


def _start_on_publish(client: SyncPrefectClient, name: str) -> AutomationCore:
    """A version that a build of its own published starts `train` or `retrain`; versions that
    retrain's build makes do not, or it would start itself."""
    version = "{{ event.payload.version }}"
    over: dict[str, Any] = {"root": "{{ event.payload.root }}"}
    out_name = None
    if name == "train":
        over, out_name = over | {"version": version}, f"train-{version}"
    return _starter(client, ON_PUBLISH, name, PUBLISHED, "focusdpo.dataset.*", over, out_name)


def _evaluate_on_trained(client: SyncPrefectClient) -> AutomationCore:
    over = {
        "adapter": "{{ event.payload.adapter }}",
        "out": "{{ event.payload.out }}-evaluate",
    }
    return _starter(client, ON_TRAINED, "evaluate", TRAINED, "focusdpo.adapter.*", over)


def _starter(
    client: SyncPrefectClient,
    title: str,
    name: str,
    event: str,
    resource: str,
    over: dict[str, Any],
    out_name: str | None = None,
) -> AutomationCore:
    """An automation that starts a deployment on an event that the flow itself tells, with the
    deployment's own parameters but for what the event knows. `out_name`: a name for `out` beside
    the deployment's own, in its folder or at its address."""
    try:
        deployment = client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound as error:
        raise UserError(
            f"the server has no deployment {name}/{name}: run `prefect --no-prompt deploy --all` "
            "in the folder of prefect.yaml, then this again"
        ) from error
    teller = {PUBLISHED: "build-dataset", TRAINED: "train"}[event]
    given = dict(deployment.parameters or {}).get("run", {})
    run = merge(given, over)
    if out_name is not None:
        folder, slash, _ = str(given.get("out", "")).rpartition("/")
        run["out"] = f"{folder}{slash}{out_name}"
    return AutomationCore(
        name=title,
        description=f"made by focusdpo prefect-setup: {event} starts {name}",
        trigger=EventTrigger(
            expect={event},
            match={"prefect.resource.id": resource, "focusdpo.by": teller},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            RunDeployment(source="selected", deployment_id=deployment.id, parameters={"run": run})
        ],
    )


def _pool(client: SyncPrefectClient, name: str) -> Made:
    title = f"work pool {name}"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=template)
        )
        return Made(title, "made")
    if pool.type != "process":
        log.warning("work pool %s is of type %s: our deployments fit it, too", name, pool.type)
    return Made(title, "there")


def _limit(client: SyncPrefectClient, slots: int) -> Made:
    title = f"concurrency limit {GPU_LIMIT} of {slots}"
    try:
        there = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, slots)
        return Made(title, "made")
    if there.limit == slots:
        return Made(title, "there")
    client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, slots)
    return Made(title, "changed")


def _automation(client: SyncPrefectClient, wanted: AutomationCore) -> Made:
    title = f"automation '{wanted.name}'"
    automations: Sequence[Any] = client.read_automations_by_name(wanted.name)
    if not automations:
        client.create_automation(wanted)
        return Made(title, "made")
    for double in automations[1:]:
        client.delete_automation(double.id)
    first = automations[0]
    if _same(first, wanted) and len(automations) == 1:
        return Made(title, "there")
    client.update_automation(first.id, wanted)
    return Made(title, "changed")


def _same(there: Any, wanted: AutomationCore) -> bool:
    """Whether an automation is as it should be, whatever else the server knows of it."""
    names = ("enabled", "trigger", "actions", "description")
    ours, theirs = wanted.model_dump(mode="json"), there.model_dump(mode="json")
    return all(_plain(theirs[name]) == _plain(ours[name]) for name in names)


def _plain(value: Any) -> Any:
    """Ids and the order of sets left out."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name != "id"}
    if isinstance(value, list):
        return sorted((_plain(item) for item in value), key=str)
    return value


Told = tuple[bool, str]


def checks() -> dict[str, Callable[[], Told]]:
    """By name; each raises UserError when the server does not answer."""
    return {
        "server": _look_at_server,
        "deployments": _look_at_deployments,
        "pool": _look_at_pool,
        "worker": _look_at_worker,
        "automation": _look_at_automation,
        "gpu limit": _look_at_limit,
    }


def _look_at_server() -> Told:
    with server() as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise UserError(f"{PREFECT_API_URL.value()}: {type(problem).__name__}: {problem}")
        return True, f"{PREFECT_API_URL.value()}: version {client.api_version()}"


def _pools() -> dict[str, list[str]]:
    """Work pool -> names of our deployments in it."""
    pools: dict[str, list[str]] = {}
    with server() as client:
        for deployment in client.read_deployments(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=list(FLOWS)))
        ):
            pools.setdefault(deployment.work_pool_name or "", []).append(deployment.name)
    return pools


def _look_at_deployments() -> Told:
    names = sorted(name for deployments in _pools().values() for name in deployments)
    if names:
        return True, ", ".join(names)
    return False, "none; run `prefect --no-prompt deploy --all` in the folder of prefect.yaml"


def _look_at_pool() -> Told:
    states, fine = [], True
    with server() as client:
        for name in sorted(_pools()):
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
                states.append(f"{name}: absent, run `focusdpo prefect-setup`")
                fine = False
                continue
            paused = pool.is_paused
            states.append(f"{name}: {'paused, so nothing starts' if paused else 'open'}")
            fine = fine and not paused
    return fine and bool(states), "; ".join(states) or "no deployment names one"


def _look_at_worker() -> Told:
    states, fine = [], True
    with server() as client:
        for name in sorted(_pools()):
            workers = client.read_workers_for_work_pool(name)
            online = [worker.name for worker in workers if str(worker.status).endswith("ONLINE")]
            states.append(f"{name}: {len(online)} online")
            fine = fine and bool(online)
            if not online:
                states[-1] += f", so runs wait; start one with `prefect worker start --pool {name}`"
    return fine and bool(states), "; ".join(states) or "no deployment names a pool"


def _look_at_automation() -> Told:
    with server() as client:
        automations = client.read_automations_by_name(SILENT)
    if not automations:
        return False, "runs whose machine dies stay Running for ever; run `focusdpo prefect-setup`"
    if not automations[0].enabled:
        return False, f"'{SILENT}' is switched off"
    return True, SILENT


def _look_at_limit() -> Told:
    with server() as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            return False, f"no limit {GPU_LIMIT}: runs may share a GPU; `focusdpo prefect-setup`"
    return limit.active, f"{GPU_LIMIT}: {limit.active_slots} of {limit.limit} taken"
