"""Tests compute on little tensors, where torch's threads mostly wait for one another."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from flwr.app.message import arrayrecord
from flwr.supercore.task_identity import TaskIdentity

torch.set_num_threads(1)

os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's processes give way to tests that run beside them


def pytest_itemcollected(item: pytest.Item) -> None:
    """Side by side (pytest -n 2 --dist loadgroup), tests that start Ray follow one another in two rows."""
    if item.get_closest_marker("ray"):
        of_runs = item.path.is_relative_to(Path(__file__).parent / "experiments")
        item.add_marker(pytest.mark.xdist_group("runs-on-ray" if of_runs else "ray"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pytest under which xdist loses its groups: everything passes then, and takes twice as long."""
    if not session.config.getoption("loadgroup", False):
        return
    if any(
        item.get_closest_marker("ray") and not item.nodeid.endswith(("@ray", "@runs-on-ray")) for item in session.items
    ):
        raise pytest.UsageError("pytest-xdist does not group tests under this pytest; see [dev] in pyproject.toml")


@pytest.fixture(autouse=True, scope="session")
def _imports_are_not_collected() -> None:
    """What is imported by now is left out of garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _flower_leaves_collecting_to_python() -> Iterator[None]:
    """Flower collects garbage for every reply, which takes longer than a tiny network's training."""
    with patch.object(arrayrecord, "gc", SimpleNamespace(collect=int)):
        yield


@pytest.fixture(autouse=True, scope="session")
def _a_run() -> Iterator[None]:
    """Flower creates messages only within a run; this stands for one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield
