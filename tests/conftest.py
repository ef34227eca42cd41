"""Tests compute on little tensors, where torch's threads mostly wait for one another."""

from collections.abc import Iterator

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _a_run() -> Iterator[None]:
    """Flower creates messages only within a run; this stands for one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield
