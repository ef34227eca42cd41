"""The checkpoint file: a trained model's weights with all it takes to rebuild it, and what it was trained on.

A safetensors file of the model's state dict; the metadata key ``checkpoint`` holds JSON with ``model`` and
``scheduler`` (diffusers configurations), ``photographs`` (what it was trained on) and whatever else its maker noted.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.package_data import data_file
from experiments.run_directory import write_atomically
from fl_sim.config import SettingsError
from fl_sim.diffusion import ConfigError, build_model, build_scheduler

BUNDLED = data_file("checkpoints/demo.safetensors")
_KEY = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A model: its weights by name, its configuration, its noise schedule, and notes such as ``photographs``."""

    weights: dict[str, Tensor]
    model: dict[str, Any]
    scheduler: dict[str, Any]
    notes: dict[str, Any]

    @property
    def image_size(self) -> int:
        """The side of the square images that the model takes."""
        return int(self.model["sample_size"])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    facts = {"model": checkpoint.model, "scheduler": checkpoint.scheduler, **checkpoint.notes}
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.weights.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata={_KEY: json.dumps(facts)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and see that its weights fit its configuration.

    Raises:
        SettingsError: if the file is missing, truncated, no checkpoint, or does not fit itself.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        if text is None:
            raise _refusal(path, "its metadata has no 'checkpoint'")
        facts = json.loads(text)
        checkpoint = Checkpoint(weights, facts.pop("model"), facts.pop("scheduler"), facts)
        build_scheduler(checkpoint.scheduler)
        with torch.device("meta"):
            model = build_model(checkpoint.model)
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, json.JSONDecodeError, ConfigError, RuntimeError) as error:
        raise _refusal(path, " ".join(str(error).split())[:200]) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _refusal(path, f"its metadata lacks {error}") from error
    return checkpoint


def _refusal(path: Path, reason: str) -> SettingsError:
    return SettingsError(f"model.checkpoint = {str(path)!r}: not a usable checkpoint: {reason}")
