"""``fl-sim invert``: one model inversion of a trained classifier, with public images from a folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from attacks.model_inversion.reconstructions_file import save_reconstructions
from attacks.model_inversion.registry import create
from attacks.model_inversion.target import Target, TrainedClassifier
from attacks.observation import Observation
from experiments.attack_offline import trusted_factories
from experiments.commands import bold_path, choose_device
from experiments.pictures import save_grid
from experiments.public_images import read_all
from experiments.run_directory import make_empty_folder
from fl_sim import network
from fl_sim.checkpoint import read_checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.config import Settings, SettingsError
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from fl_sim.network import ConfigError, read_safetensors
from fl_sim.settings_file import load_settings, parse_overrides

OBSERVATION = "observation"
"""Metadata key of a capture."""


def invert_classifier(
    source: Path,
    public: Path,
    method: str,
    seed: int,
    overrides: list[str],
    out: Path,
    device: str,
    threads: int,
    console: Console,
    trusted: Sequence[str] = (),
) -> None:
    """Invert the classifier in ``source``, a checkpoint or a capture, and write images and a picture into ``out``.

    ``seed`` is the run's public seed. ``trusted``: factories of networks that may run (fl_sim/network/factory.py).

    Raises:
        AttackError, CaptureError, ConfigError, SettingsError: if there is no such method, classifier, folder of images
            or device, they do not fit each other, or ``out`` is not empty.
    """
    inversion = create(method, parse_overrides(overrides))
    network.trust(trusted_factories(trusted))
    classifier, shape = read_classifier(source)
    where = choose_device(device)
    images = read_public(public, shape)
    torch.set_num_threads(threads)
    target = Target(classifier, images, derive_seed(seed, "inversion", inversion.name), where)
    make_empty_folder(out)
    try:
        with console.status(f"{method} on {source.name}"):
            found = inversion.invert(target)
    except BaseException:
        out.rmdir()  # nothing to keep
        raise
    picture = out / "reconstructions.png"
    write_atomically(out / "reconstructions.safetensors", lambda file: save_reconstructions(file, found))
    write_atomically(picture, lambda file: save_grid(file, found.images.flatten(0, 1), columns=found.images.shape[1]))
    console.print(
        f"{len(found.classes)} classes with {found.images.shape[1]} images each, from {len(images)} public images, "
        f"after {found.evaluations} evaluations in {found.seconds:.1f} s on {found.device}",
        highlight=False,
    )
    console.print(f"reconstructions, a row for every class: {bold_path(picture)}", soft_wrap=True)


def read_classifier(path: Path) -> tuple[TrainedClassifier, tuple[int, int, int]]:
    """The classifier in a checkpoint or a capture, and the shape [C,H,W] of its images.

    Raises:
        ConfigError, CaptureError: if the file cannot be read, or holds a diffusion model or one that does not say for
            which images it is.
    """
    shape: tuple[int, int, int] | None
    try:
        if OBSERVATION in read_safetensors(path)[1]:
            observation = Observation.load(path)
            seen = observation.circumstances
            task, model, weights, shape = seen.task, seen.model, observation.weights, seen.image_shape
        else:
            checkpoint = read_checkpoint(path)
            task, model, weights, shape = checkpoint.task, checkpoint.model, checkpoint.weights, checkpoint.image_shape
        if not isinstance(task, ClassificationTask):
            raise ConfigError(f"it holds a model for task {task.task!r}; allowed: a classifier")
        if shape is None:
            raise ConfigError("its network does not say for which images it is; allowed: a capture of its training")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return TrainedClassifier(model, weights), shape


def read_public(folder: Path, shape: tuple[int, int, int]) -> Tensor:
    """The images in ``folder`` that can be read, [M,C,H,W] in [-1, 1], cropped to ``shape`` [C,H,W].

    Raises:
        SettingsError: if there is no such folder, no image in it that can be read, or none are made of that shape.
    """
    channels, *sides = shape
    settings = {"data": {"name": "folder", "path": str(folder), "image_size": sides, "channels": channels}}
    try:
        return read_all(load_settings(Settings, settings).data, channels)
    except SettingsError as error:
        raise SettingsError(str(error).replace("data.path =", "--public")) from error
