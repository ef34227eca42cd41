"""A Ray cluster of several nodes on one machine, with a folder and ports of its own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import psutil
from ray.cluster_utils import Cluster

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster with this head, such as num_cpus=1; all its processes are gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short,  # its sockets need short paths
        patch.dict(os.environ, ENVIRONMENT | {"RAY_TMPDIR": short}),
    ):
        running = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
        try:
            yield running
        finally:
            running.shutdown()


def kill(running: Cluster, node: Any) -> None:
    """Kill a node and all its processes, as a power cut does."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers = raylet.children(recursive=True)
    running.remove_node(node, allow_graceful=False)
    for process in workers:
        with suppress(psutil.Error):
            process.kill()


def works_on(node: Any, title: str) -> bool:
    """Whether a process whose title begins like this runs on the node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if " ".join(process.cmdline()).startswith(title):
                return True
    return False
