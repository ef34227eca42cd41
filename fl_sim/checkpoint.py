"""The checkpoint file: a trained model's weights with all it takes to rebuild it, and what it was trained on.

A safetensors file of the model's state dict; the metadata key ``checkpoint`` holds JSON with ``model`` (its
configuration), ``scheduler`` (the noise schedule's, of diffusers) or ``task`` "classification" with ``num_classes``,
``photographs`` (what it was trained on) and whatever else its maker noted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_sim.classification import ClassificationTask
from fl_sim.diffusion import DiffusionTask
from fl_sim.diffusion.diffusers_folder import is_diffusers_folder, read_diffusers_folder
from fl_sim.diffusion.noise_schedule import build_scheduler
from fl_sim.errors import first_error
from fl_sim.network.configuration import ConfigError
from fl_sim.network.json_text import parse_json
from fl_sim.network.network import build_model, image_shape, outline
from fl_sim.network.parameters import misfit
from fl_sim.network.safetensors_file import read_safetensors
from fl_sim.task import Task

CHECKPOINT = "checkpoint"
"""Metadata key of a checkpoint file."""


@dataclass(frozen=True)
class Checkpoint:
    """A model: its weights by name, its configuration, what it was trained for, and notes such as ``photographs``.

    ``dtype``: the types of the weights in the file; here they are float32.
    """

    weights: dict[str, Tensor]
    model: dict[str, Any]
    task: Task
    notes: dict[str, Any]
    dtype: str = "float32"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape [C,H,W] of the images that the model is for; None if it does not say."""
        return image_shape(self.model)

    def check(self, wanted: tuple[int, int, int]) -> None:
        """Check that the model is for images [C,H,W] and can be trained on them; ConfigError if not."""
        shape = self.image_shape
        if shape is not None and shape[1:] != wanted[1:]:
            own, other = ("x".join(map(str, sides)) for sides in (shape[1:], wanted[1:]))
            raise ConfigError(f"it is for images of {own} pixels, not of {other}")
        self.task.check(self.model, wanted)

    @property
    def diffusion(self) -> DiffusionTask:
        """What a diffusion model was trained for; ConfigError if it is a classifier."""
        if not isinstance(self.task, DiffusionTask):
            raise ConfigError("it is a classifier; allowed: a diffusion model")
        return self.task

    def build(self) -> nn.Module:
        """The network with these weights."""
        model = build_model(self.model)
        model.load_state_dict(self.weights)
        return model

    def save(self, path: Path) -> None:
        """Write the file."""
        facts = {"model": self.model, **_task_facts(self.task), **self.notes}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.weights.items()}
        save_file(tensors, path, metadata={CHECKPOINT: json.dumps(facts)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or a folder that diffusers saved; floating-point weights are converted to float32.

    Raises:
        ConfigError: if it cannot be read, is no checkpoint, or its weights do not fit its model.
    """
    if is_diffusers_folder(path):
        weights, model, scheduler, types = read_diffusers_folder(path)
        image_shape(model)
        _check_weights(weights, outline(model))
        return Checkpoint(weights, model, DiffusionTask.on(scheduler), {}, types)
    if path.is_dir():
        raise ConfigError(
            "it is a folder without model_index.json and config.json; allowed: a safetensors file, or a folder that "
            "diffusers saved"
        )
    tensors, metadata = read_safetensors(path)
    facts = _checkpoint_facts(metadata)
    task = _task_of(facts)
    weights = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    network = outline(facts["model"])
    image_shape(facts["model"])
    _check_weights(weights, network)
    types = ", ".join(sorted({_type(value) for value in tensors.values()}))
    notes = {key: value for key, value in facts.items() if key not in ("model", *_task_facts(task))}
    return Checkpoint(weights, facts["model"], task, notes, types)


def _task_facts(task: Task) -> dict[str, Any]:
    """What a checkpoint stores of its task; in diffusion the schedule alone, as it has always been."""
    return {"scheduler": task.scheduler} if isinstance(task, DiffusionTask) else task.model_dump(mode="json")


def _task_of(facts: Mapping[str, Any]) -> Task:
    """The task that ``_task_facts`` stored."""
    if facts.get("task", "diffusion") == "classification":
        classes: Any = facts.get("num_classes")
        try:
            return ClassificationTask(num_classes=classes)
        except ValidationError as error:
            reason = first_error(error)["msg"]
            raise ConfigError(
                f"its num_classes is {classes!r}: {reason}; allowed: the number of classes, from 2"
            ) from error
    schedule = build_scheduler(facts["scheduler"]).config
    settled = {"num_train_timesteps": schedule.num_train_timesteps, "prediction_type": schedule.prediction_type}
    return DiffusionTask.on(facts["scheduler"] | settled)


def _checkpoint_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    if CHECKPOINT not in metadata:
        other = "it is a capture" if "observation" in metadata else "of weights that diffusers saved, name the folder"
        raise ConfigError(
            f"its metadata has no {CHECKPOINT!r}, the configuration of network and noise schedule; {other}"
        )
    try:
        facts = parse_json(metadata[CHECKPOINT])
    except ValueError as error:
        raise ConfigError(f"its metadata {CHECKPOINT!r} is not JSON: {error}") from error
    classifier = isinstance(facts, dict) and facts.get("task") == "classification"
    for key in ("model",) if classifier else ("model", "scheduler"):
        if not isinstance(facts, dict) or not isinstance(facts.get(key), dict):
            raise ConfigError(
                f"its metadata {CHECKPOINT!r} has no table {key!r}, the configuration as diffusers has it"
            )
    return dict(facts)


def _check_weights(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    if reason := misfit(weights, network, network.state_dict()):
        raise ConfigError(reason)
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ConfigError(f"{name} is {_type(value)}; allowed: floating-point weights")
        if not value.isfinite().all():
            raise ConfigError(f"{name} holds NaN, infinite values, or such as leave the range of float32")


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
