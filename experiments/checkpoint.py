"""The checkpoint file: a trained model's weights with all it takes to rebuild it, and what it was trained on.

A safetensors file of the model's state dict; the metadata key ``checkpoint`` holds JSON with ``model`` and
``scheduler`` (diffusers configurations), ``photographs`` (what it was trained on) and whatever else its maker noted.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from experiments.package_data import data_file
from fl_sim.config import SettingsError
from fl_sim.diffusion import CHECKPOINT, Checkpoint, ConfigError, check_network, read_checkpoint
from fl_sim.files import write_atomically

__all__ = ["BUNDLED", "Checkpoint", "load_checkpoint", "save_checkpoint"]

BUNDLED = data_file("checkpoints/demo.safetensors")
_CHANNELS = 3


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    facts = {"model": checkpoint.model, "scheduler": checkpoint.scheduler, **checkpoint.notes}
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.weights.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata={CHECKPOINT: json.dumps(facts)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and see that clients can train it on the images for which it was made, if it says which.

    Raises:
        SettingsError: if the file is missing, truncated, no checkpoint, does not fit itself, or cannot be trained.
    """
    try:
        checkpoint = read_checkpoint(path)
        if checkpoint.image_size is not None:
            image_shape = (_CHANNELS, checkpoint.image_size, checkpoint.image_size)
            check_network(checkpoint.model, checkpoint.scheduler, image_shape)
    except ConfigError as error:
        raise SettingsError(f"model.checkpoint = {str(path)!r}: not a usable checkpoint: {error}") from error
    return checkpoint
