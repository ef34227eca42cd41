"""A strip to show to others: private images, the same under the clients' noise, and what an attack found."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from attacks.reconstruction_file import load_reconstruction
from experiments.experiment import build_recipe
from experiments.leakage import OK, SERVER, match, read_leakage
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import with_content
from fl_sim.client_app import private_draw
from fl_sim.config import SettingsError
from fl_sim.diffusion import DiffusionTask, add_noise
from fl_sim.files import write_atomically
from fl_sim.wire import Recipe

STYLE: dict[Any, Any] = {"font.size": 10, "axes.labelcolor": "#222222", "text.color": "#222222"}

PRIVATE, NOISY, FOUND = "private image", "the client's noise\non it", "what the server\nfound"


def build_strip(path: Path, out: Path, most: int = 8) -> Path:
    """Write a PNG of ``most`` attacked images, the first of every update, round by round; returns ``out``.

    One attack is shown, the first of the table. Images without content are left out, and those that stand for all of a
    client's.

    Raises:
        SettingsError: if ``path`` is no run directory, or no attack of it ended well.
    """
    directory = RunDirectory.open(path)
    settings = directory.settings()
    recipe = build_recipe(settings)
    leakage = with_content(read_leakage(directory.leakage_csv))
    shown = leakage[(leakage["status"] == OK) & (leakage["client"] >= 0) & (leakage["observer"] == SERVER)]
    shown = shown[shown["image"].astype("str") == "0"]
    if shown.empty:
        raise SettingsError(f"{path}: no attack ended with an image to show")
    shown = shown[shown["attack"] == shown["attack"].iloc[0]].head(most)
    records = shown.to_dict("records")
    columns = [_column(directory, settings, recipe, row) for row in records]
    denoised = isinstance(recipe.task, DiffusionTask)
    told = [f"t = {row['timestep']}" if denoised else f"label {row['label']}" for row in records]
    labels = [f"{what}\n{row['psnr']:.0f} dB" for what, row in zip(told, records, strict=True)]
    figure = _figure(columns, labels)
    write_atomically(out, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))
    return out


def _column(
    directory: RunDirectory, settings: ExperimentSettings, recipe: Recipe, row: dict[Hashable, Any]
) -> dict[str, Tensor]:
    """The image, in diffusion the noisy image, and the reconstruction, each [C,H,W] in [0, 1]."""
    round_number, client = int(row["round"]), int(row["client"])
    images, noise, timesteps, _ = private_draw(settings, recipe, client, round_number)
    file = directory.reconstruction(round_number, client, row["attack"])
    original = (images + 1) / 2
    found = match(original, load_reconstruction(file).images)
    pictures = {PRIVATE: original, FOUND: found}
    if isinstance(recipe.task, DiffusionTask) and noise is not None and timesteps is not None:
        noisy = add_noise(recipe.task.noise_schedule(), images, noise, timesteps)
        pictures = {PRIVATE: original, NOISY: (noisy + 1) / 2, FOUND: found}
    return {row: picture[0].clamp(0, 1) for row, picture in pictures.items()}


def _figure(columns: list[dict[str, Tensor]], labels: list[str]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(1.25 * len(columns) + 1.4, 1.4 * len(columns[0])), layout="constrained")
        axes = figure.subplots(len(columns[0]), len(columns), squeeze=False)
        for column, pictures in enumerate(columns):
            for row, (name, picture) in enumerate(pictures.items()):
                axis = axes[row, column]
                axis.imshow(
                    picture.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
                )
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=10)
            axes[-1, column].set_xlabel(labels[column])
    return figure
