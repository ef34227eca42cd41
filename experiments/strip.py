"""A strip to show to others: private images, the same under the clients' noise, and what an attack found."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from attacks.reconstruction_file import load_reconstruction
from experiments.experiment import build_recipe
from experiments.figures import STYLE
from experiments.leakage import OK, SERVER, match, read_leakage
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import with_content
from fl_sim.client_app import private_draw
from fl_sim.config import SettingsError
from fl_sim.diffusion import add_noise, build_scheduler
from fl_sim.files import write_atomically
from fl_sim.wire import Recipe

ROWS = ("private image", "the client's noise\non it", "what the server\nfound")


def build_strip(path: Path, out: Path, most: int = 8) -> Path:
    """Write a PNG of ``most`` attacked images, the first of every update, round by round; returns ``out``.

    One attack is shown, the first of the table. Images without content are left out.

    Raises:
        SettingsError: if ``path`` is no run directory, or no attack of it ended well.
    """
    directory = RunDirectory.open(path)
    settings = directory.settings()
    recipe = build_recipe(settings)
    leakage = with_content(read_leakage(directory.leakage_csv))
    shown = leakage[(leakage["status"] == OK) & (leakage["client"] >= 0) & (leakage["observer"] == SERVER)]
    shown = shown[shown["image"] == 0]
    if shown.empty:
        raise SettingsError(f"{path}: no attack ended with an image to show")
    shown = shown[shown["attack"] == shown["attack"].iloc[0]].head(most)
    records = shown.to_dict("records")
    columns = [_column(directory, settings, recipe, row) for row in records]
    labels = [f"t = {row['timestep']}\n{row['psnr']:.0f} dB" for row in records]
    figure = _figure(columns, labels)
    write_atomically(out, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))
    return out


def _column(
    directory: RunDirectory, settings: ExperimentSettings, recipe: Recipe, row: dict[Hashable, Any]
) -> list[Tensor]:
    """The image, the noisy image and the reconstruction, each [C,H,W] in [0, 1]."""
    round_number, client = int(row["round"]), int(row["client"])
    images, noise, timesteps, _ = private_draw(settings, recipe, client, round_number)
    noisy = add_noise(build_scheduler(recipe.scheduler), images, noise, timesteps)
    file = directory.reconstruction(round_number, client, row["attack"])
    original = (images + 1) / 2
    found = match(original, load_reconstruction(file).images)
    return [picture[0].clamp(0, 1) for picture in (original, (noisy + 1) / 2, found)]


def _figure(columns: list[list[Tensor]], labels: list[str]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(1.25 * len(columns) + 1.4, 4.2), layout="constrained")
        axes = figure.subplots(len(ROWS), len(columns), squeeze=False)
        for column, pictures in enumerate(columns):
            for row, picture in enumerate(pictures):
                axis = axes[row, column]
                axis.imshow(
                    picture.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
                )
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(ROWS[row], rotation=0, ha="right", va="center", labelpad=10)
            axes[-1, column].set_xlabel(labels[column])
    return figure
