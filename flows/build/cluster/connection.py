"""A Ray cluster as this project uses one: connect, how many workers fit, whether it is still there.

Ray is imported when a cluster is connected to, and never for `--help`, plans or local runs.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from focusdpo.data_schemas.errors import ClusterGone, UserError
from focusdpo.flows.build.config import RayConfig, StageResources
from focusdpo.store.remote import RemoteConfig

log = logging.getLogger(__name__)

CLIENT = "ray://"
OBJECT_BYTES = 100 * 2**20
"""Ray's shared memory on a cluster of our own: nothing but keys and records travels."""
CONNECT_SECONDS = 5.0
COLUMN = {"CPU": "num_cpus", "GPU": "num_gpus"}
"""Ray's name of a resource -> ours."""


class Engine:
    """A connection to a cluster."""

    def __init__(self, config: RayConfig) -> None:
        """UserError when Ray is not installed or the cluster cannot be reached."""
        self.config = config
        self.ray = _import_ray()
        self._ours = not self.ray.is_initialized()
        self._gone = False
        if self._ours:
            self._connect()
        address = config.address.removeprefix(CLIENT)
        if not config.address.startswith(CLIENT):
            address = self.ray.get_runtime_context().gcs_address
        self._head = _split(address)
        self._heard = time.monotonic()
        log.info("%s", self.told())

    def _connect(self) -> None:
        config = self.config
        if (head := _named_head(config.address)) and not _answers(head):
            raise UserError(
                f"executor.address={config.address}: nothing answers there; is the head running "
                "(`ray start --head`), and its port open to this machine?"
            )
        options: dict[str, Any] = {"address": config.address}
        if not config.address.startswith(CLIENT):
            options |= {"log_to_driver": False, "logging_level": logging.ERROR}
        if config.address == "local":
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_BYTES}
        # Workers reach the store as this process does; none of these settings is secret.
        prefix = RemoteConfig.prefix
        store_env = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
        if env := {**store_env, **config.env}:
            options["runtime_env"] = {"env_vars": env}
        try:
            self.ray.init(**options)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise UserError(
                f"executor.address={config.address}: no Ray cluster could be used "
                f"({_first_line(error)}); start one with `ray start --head`, or set "
                "executor.address=local"
            ) from error

    def check(self) -> bool:
        """Whether the head answers now. Only then may anything else be asked of this engine: Ray
        waits for a head that is gone, and after 60 s ends this process without a word that could
        be caught. UserError when it has been silent for too long, so this is to be called often.
        """
        if _answers(self._head):
            self._heard = time.monotonic()
            return True
        if (silent := time.monotonic() - self._heard) <= self.config.silent_seconds:
            return False
        self._gone = True
        atexit.unregister(self.ray.shutdown)
        raise ClusterGone(
            f"the Ray cluster at {self._head[0]}:{self._head[1]} has not answered for "
            f"{silent:.0f} s: its head is gone. What was finished is stored; start the cluster "
            "and run the same command again"
        )

    def capacity(self, request: StageResources) -> int:
        """How many workers of a request the living nodes have room for, other work aside."""
        return sum(_fit(node["Resources"], request) for node in self._nodes())

    def told(self) -> str:
        """The cluster for people: nodes and what they have together."""
        nodes = self._nodes()
        total: dict[str, float] = {}
        for node in nodes:
            for name, amount in node["Resources"].items():
                if ":" not in name and name != "object_store_memory":
                    total[name] = total.get(name, 0.0) + amount
        total["memory"] = total.get("memory", 0.0) / 2**30
        shown = ", ".join(f"{name} {amount:.4g}" for name, amount in sorted(total.items()))
        return f"Ray cluster {self.config.address}: {len(nodes)} nodes, {shown} (memory in GiB)"

    def _nodes(self) -> list[Mapping[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def spawn(self, kind: type, request: StageResources, *args: Any) -> Any:
        """A new actor, spread over the nodes. When it dies, it stays dead: the caller knows what
        it was at, and replaces it."""
        return (
            self.ray.remote(kind)
            .options(
                num_cpus=request.num_cpus,
                num_gpus=request.num_gpus,
                memory=int(request.memory_gib * 2**30) or None,
                resources=dict(request.custom) or None,
                accelerator_type=request.accelerator_type,
                scheduling_strategy="SPREAD",
                max_restarts=0,
                max_task_retries=0,
            )
            .remote(*args)
        )

    def kill(self, actor: Any) -> None:
        """End an actor, if there is anybody left who could."""
        if not self._gone and _answers(self._head):
            self.ray.kill(actor)

    def close(self) -> None:
        """Leave the cluster; one of our own ends."""
        if self._ours and not self._gone:
            self.ray.shutdown()
        self._ours = False


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers of a cluster of our own are as important as this process, which waits for them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # What Ray will do in some later release, and today warns that it does not do yet.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "executor.kind=ray: Ray is not installed here; pip install 'focusdpo[ray]'"
        ) from error
    return ray


def _fit(available: Mapping[str, float], request: StageResources) -> int:
    """Workers of a request on a node with these resources."""
    wanted = {name: getattr(request, field) for name, field in COLUMN.items()}
    wanted |= {"memory": request.memory_gib * 2**30, **request.custom}
    if request.accelerator_type:
        wanted[f"accelerator_type:{request.accelerator_type}"] = 0.001
    if 0 < request.num_gpus < 1:  # a share lies on one card
        wanted["GPU"] = 1 / int(1 / request.num_gpus + 1e-6)
    counts = [available.get(name, 0.0) / amount for name, amount in wanted.items() if amount]
    return int(min(counts) + 1e-6) if counts else 0


def _named_head(address: str) -> tuple[str, int] | None:
    """Host and port, when an address names them."""
    if address in {"auto", "local"}:
        return None
    return _split(address.removeprefix(CLIENT))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"executor.address={address}: expected auto, local, HOST:PORT or ray://HOST:PORT"
        )
    return host.strip("[]"), int(port)


def _answers(head: tuple[str, int]) -> bool:
    try:
        socket.create_connection(head, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
