"""Fixtures of the whole test session: one Ray cluster for every test that needs one, started when first asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Processes that tests start import the project from here, whether it is installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _folder in (ROOT / "tests" / "cluster",):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

NODE_BYTES = 80 * 2**20


class RayCluster:
    """Hold three nodes in this machine, the head with 2 CPUs and two more with 2 CPUs and a pretend GPU each."""

    def __init__(self) -> None:
        from cluster.session import prepare_local

        prepare_local()
        import ray
        import ray._private.worker
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"object_store_memory": NODE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **options})
        self.options = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": NODE_BYTES}
        for _ in range(2):
            self.cluster.add_node(**self.options)
        self.address = str(self.cluster.address)
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", namespace="tests")

    def restore(self) -> None:
        """Bring the number of nodes back to three after a test removed some."""
        while len(self.cluster.worker_nodes) < 2:
            self.cluster.add_node(**self.options)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[RayCluster]:
    """Return the one Ray cluster of the test session; this process is connected to it."""
    cluster = RayCluster()
    yield cluster
    cluster.close()


# One cluster, one Prefect server and one object gateway for all: the tests that share one run in one process. Those of faults
# that start what they kill share nothing, and go to whichever process is free.
GROUPS = {"cluster": "ray", "faults": "ray", "flows": "prefect", "s3": "s3"}


# xdist turns the marker into a part of the name in a hook of its own: after it a group is not seen any more.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a cluster or a server in one process, unless a test names another group itself."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        group = GROUPS.get(folder)
        if folder == "faults" and "ray_session" not in getattr(item, "fixturenames", ()):
            continue
        if group is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
