"""Checkpoints (fl_sim/checkpoint.py) as a person names them in the settings: a file, a folder, a hub id."""

import re
from dataclasses import replace
from pathlib import Path

from experiments.package_data import BUNDLED_FILES
from fl_sim.checkpoint import Checkpoint, read_checkpoint
from fl_sim.config import SettingsError
from fl_sim.files import write_atomically
from fl_sim.network import ConfigError, outline

BUNDLED = BUNDLED_FILES["bundled"]
"""For 16x16 pixels; the demo's is for 32x32."""
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
"""The form of a hub id: owner/name."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    write_atomically(path, checkpoint.save)


def find_checkpoint(name: str) -> Path:
    """The file or folder that ``model.checkpoint`` names: a bundled one, a path, or a hub id.

    A hub id is looked up in the local cache of huggingface_hub, and on the hub where there is a network. Only JSON and
    safetensors files are fetched.

    Raises:
        SettingsError: if it is a hub id and neither has it.
    """
    if name in BUNDLED_FILES:
        return BUNDLED_FILES[name]
    path = Path(name)
    if path.exists() or not re.fullmatch(HUB_ID, name):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's library raises its own errors, requests' and OSErrors
        raise SettingsError(
            f"model.checkpoint = {name!r}: there is no such file or folder, and no such model in the hub's cache or on "
            f"the hub ({type(error).__name__}); allowed: a folder that diffusers saved"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and, if it says for which size of images it is, check that clients can train it on them.

    The weights are in the network's own order, whatever the file's: clients reply in that order, and several of
    Flower's strategies pair what they sent with the replies by position.

    Raises:
        SettingsError: if the file is missing, truncated, no checkpoint, does not fit itself, or cannot be trained.
    """
    try:
        checkpoint = read_checkpoint(path)
        if checkpoint.image_shape is not None:
            checkpoint.check(checkpoint.image_shape)
    except ConfigError as error:
        raise SettingsError(f"model.checkpoint = {str(path)!r}: not a usable checkpoint: {error}") from error
    in_order = outline(checkpoint.model).state_dict()
    return replace(checkpoint, weights={name: checkpoint.weights[name] for name in in_order})
