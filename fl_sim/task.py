"""What a network is trained for: the one place that knows both tasks."""

from typing import Annotated

from pydantic import Discriminator

from fl_sim.classification import ClassificationTask
from fl_sim.diffusion import DiffusionTask

Task = Annotated[DiffusionTask | ClassificationTask, Discriminator("task")]
"""Told apart by the field ``task``."""

TASKS: dict[str, type[DiffusionTask | ClassificationTask]] = {
    "diffusion": DiffusionTask,
    "classification": ClassificationTask,
}
"""By the value of that field."""
