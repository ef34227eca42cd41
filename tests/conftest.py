"""Tests compute on little tensors, where torch's threads mostly wait for one another."""

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower creates messages only within a run; this stands for one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
