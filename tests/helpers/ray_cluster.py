"""A Ray cluster of several nodes on loopback: each a raylet with worker processes of its own, the
head with no room for work, so that nodes can be killed and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers give way to everything else on a machine, which on a busy one means for ever.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling

HELPERS = str(Path(__file__).parent)
SMALL = {"object_store_memory": 80 * 2**20}


@contextmanager
def helpers_on_path() -> Iterator[None]:
    """What is started inside finds these modules."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HELPERS, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class RayCluster:
    """The head and its nodes."""

    def __init__(self, **head: Any) -> None:
        from ray.cluster_utils import Cluster

        given = {"num_cpus": 0, "include_dashboard": False, **SMALL, **head}
        with helpers_on_path():
            self._cluster = Cluster(initialize_head=True, head_node_args=given)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, **given: Any) -> Any:
        """A further node, with room for one worker."""
        with helpers_on_path():
            return self._cluster.add_node(**{"num_cpus": 1, **SMALL, **given})

    def kill(self, node: Any) -> None:
        """SIGKILL of all that runs a node; its workers follow."""
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        self.kill(self._cluster.head_node)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def ray_cluster(**head: Any) -> Iterator[RayCluster]:
    """A head for the length of a block."""
    cluster = RayCluster(**head)
    try:
        yield cluster
    finally:
        cluster.close()


def executor(address: str, folder: Path, **more: Any) -> dict[str, Any]:
    """The section of a build whose workers know `ray_suite`."""
    given = {"kind": "ray", "address": address, "imports": ["ray_suite"]}
    return {**given, "env": {"RAY_SUITE": str(folder)}, **more}
