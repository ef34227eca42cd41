"""Checkpoint files (fl_sim/diffusion/checkpoint.py) as a person names them in the settings."""

from dataclasses import replace
from pathlib import Path

from experiments.package_data import data_file
from fl_sim.config import SettingsError
from fl_sim.diffusion import Checkpoint, ConfigError, outline, read_checkpoint
from fl_sim.files import write_atomically

BUNDLED = data_file("checkpoints/demo.safetensors")
CHANNELS = 3
"""Channels of the clients' images."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    write_atomically(path, checkpoint.save)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and, if it says for which size of images it is, check that clients can train it on them.

    The weights are in the network's own order, whatever the file's: clients reply in that order, and several of
    Flower's strategies pair what they sent with the replies by position.

    Raises:
        SettingsError: if the file is missing, truncated, no checkpoint, does not fit itself, or cannot be trained.
    """
    try:
        checkpoint = read_checkpoint(path)
        if checkpoint.image_size is not None:
            checkpoint.check((CHANNELS, checkpoint.image_size, checkpoint.image_size))
    except ConfigError as error:
        raise SettingsError(f"model.checkpoint = {str(path)!r}: not a usable checkpoint: {error}") from error
    in_order = outline(checkpoint.model).state_dict()
    return replace(checkpoint, weights={name: checkpoint.weights[name] for name in in_order})
