"""The pictures of how-it-works.md, from one victim of the benchmark: python docs/figures.py, minutes on one core."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.time_layers import candidate_timesteps, time_layers
from attacks.trace import Snapshot, Trace
from experiments.bench.attack_measurement import attempt, psnr
from experiments.bench.cases import CONTENDERS, Case
from experiments.bench.victims import Victim, make_victim
from experiments.checkpoint import BUNDLED

COLOURS = ("#1f5f8b", "#c2571a", "#3b7d4f", "#7a4a9e", "#b03060", "#6b6b6b", "#97802a", "#2a8f9b")
IMAGES = Path(__file__).parent / "images"
SEED = 2211
ATTACKS = {"private": ("residual", "gidm-plus"), "known": ("dlg", "gidm")}


def main() -> None:
    """Write images/*.png."""
    torch.set_num_threads(1)
    IMAGES.mkdir(exist_ok=True)
    save(timesteps(of_case(batch_size=4)), "timesteps")
    curves = {name: searched(name, of_case(threat=threat)) for threat, names in ATTACKS.items() for name in names}
    save(progress(curves), "progress")
    save(strip(of_case(), curves["residual"]), "search")


def of_case(**case: object) -> Victim:
    """The first victim of a case with a tile of the photograph ihc, and a trained network that has not seen it."""
    drawn = Case.model_validate({"suite": "main", "timesteps": (201, 500)} | case)
    victims = (make_victim(drawn, BUNDLED, SEED, index) for index in range(32))
    return next(victim for victim in victims if "ihc" in victim.photographs)


def searched(name: str, victim: Victim) -> list[tuple[Snapshot, float]]:
    """What an attack had found after so many evaluations, with its PSNR in dB."""
    contender, trace = CONTENDERS[name], Trace()
    found = attempt(contender.attack, contender.arguments, victim.observation, SEED, "cpu", trace)
    assert not isinstance(found, str), found
    steps = [*trace.snapshots, Snapshot(found.evaluations, found.seconds, found.images)]
    return [(step, float(psnr(victim.images, step.images).mean())) for step in steps]


def timesteps(victim: Victim) -> Figure:
    """How far each timestep's embedding is from the row space of the first time layer's gradient."""
    problem = InversionProblem(victim.observation, "cpu")
    candidates = candidate_timesteps(problem)
    layer = time_layers(problem, candidates)[0]
    rows = torch.linalg.svd(layer.gradient, full_matrices=False).Vh[: len(victim.timesteps)]
    outside = (layer.inputs - layer.inputs @ rows.T @ rows).norm(dim=1) / layer.inputs.norm(dim=1)
    figure, axes = chart("timestep t", "embedding outside the row space")
    used = torch.isin(candidates, victim.timesteps)
    for colour, chosen, label in ((COLOURS[0], ~used, "other timesteps"), (COLOURS[1], used, "those of the batch")):
        axes.semilogy(candidates[chosen], outside[chosen], ".", color=colour, markersize=5, label=label)
    axes.legend(frameon=False)
    return figure


def progress(curves: Mapping[str, list[tuple[Snapshot, float]]]) -> Figure:
    """PSNR over evaluations."""
    figure, axes = chart("evaluations", "PSNR, dB")
    for colour, (name, steps) in zip(COLOURS, curves.items(), strict=False):
        axes.plot([step.evaluations for step, _ in steps], [value for _, value in steps], color=colour, label=name)
    axes.legend(frameon=False)
    return figure


def strip(victim: Victim, steps: list[tuple[Snapshot, float]]) -> Figure:
    """The private image, what it is noised to, and what is found after some evaluations."""
    rising = [next(step for step in steps if step[1] > decibels) for decibels in (0, 20, 30, 40)]
    pictures = {"private image": victim.images[0]} | {
        f"{step.evaluations} evaluations\n{value:.0f} dB": step.images[0] for step, value in [*rising, steps[-1]]
    }
    figure = Figure((1.6 * len(pictures), 2.1), layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(as_array(picture), interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return figure


def chart(x: str, y: str) -> tuple[Figure, Axes]:
    """Empty axes."""
    figure = Figure((6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_array(image: Tensor) -> np.ndarray:
    """An image [C,H,W] in [0, 1] as matplotlib takes it."""
    return image.permute(1, 2, 0).numpy()


def save(figure: Figure, name: str) -> None:
    """Write a figure, without the time at which it was made."""
    figure.savefig(IMAGES / f"{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
