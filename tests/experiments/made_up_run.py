"""A run directory as a run leaves it, without a federation: the reconstructions are the originals under some noise."""

from pathlib import Path

import torch
from PIL import Image

from attacks.attack import Reconstruction
from attacks.reconstruction_file import save_reconstruction
from experiments.experiment import build_recipe
from experiments.leakage import Evaluator, LeakageTable, client_truth
from experiments.rounds import Round, save_rounds
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from fl_sim.settings_file import load_settings

BASE = {
    "client": {"seed": 11},
    "federation": {"clients": 2, "rounds": 2, "clients_per_round": 2},
    "data": {"partition": "photo"},
    "model": {"checkpoint": "none", "block_out_channels": [8], "norm_num_groups": 4},
}


def tiny_settings(*overrides: str) -> ExperimentSettings:
    return load_settings(ExperimentSettings, BASE, overrides)


def reconstruction(images: torch.Tensor, timesteps: torch.Tensor, attack: str = "residual") -> Reconstruction:
    return Reconstruction(
        images=images,
        timesteps=timesteps,
        matching_loss=1e-6,
        evaluations=420,
        seconds=12.5,
        device="cpu",
        attack=attack,
        settings={},
        seed=0,
    )


def pictures(folder: Path, blank: int, others: int) -> tuple[str, ...]:
    """The settings for a folder of so many pictures of one colour, and so many others, dealt out to the clients."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(blank + others):
        pixels = torch.rand(16, 16, 3, generator=generator) if index >= blank else torch.full((16, 16, 3), 0.1 * index)
        Image.fromarray((255 * pixels).byte().numpy()).save(folder / f"{index}.png")
    return "data.name=folder", f"data.path={folder}", "data.partition=iid"


def make_up_run(path: Path, *overrides: str, rounds: int | None = None, finished: bool = True) -> RunDirectory:
    """A run of which ``rounds`` rounds were attacked; the last client's attacks failed."""
    settings = tiny_settings(*overrides)
    clients, planned = settings.federation.clients, settings.federation.rounds
    recipe = build_recipe(settings)
    directory = RunDirectory.create(path, settings)
    directory.reconstructions.mkdir()
    directory.write_environment({"lpips": "no weights here"}, {"psnr": "a definition"})
    evaluator = Evaluator(directory.run_name(), settings, recipe)
    table = LeakageTable(directory.leakage_csv, directory.leakage_parquet, (), evaluator.further_columns)
    noise = torch.Generator().manual_seed(0)
    done = []
    for number in range(1, (rounds or planned) + 1):
        for client in range(clients):
            for strength, attack in enumerate(settings.attack.names):
                truth = client_truth(settings, recipe, client, number)
                spread = 10 ** (-2.5 + strength + torch.rand(1, generator=noise))
                images = (truth.images + spread * torch.randn(truth.images.shape, generator=noise)).clamp(0, 1)
                result = reconstruction(images, truth.timesteps, attack)
                if (number, client) == (planned, clients - 1):
                    table.append(evaluator.rows(number, client, attack, "timeout after 600 s"))
                    continue
                save_reconstruction(directory.reconstruction(number, client, attack), result)
                table.append(evaluator.rows(number, client, attack, result))
        done.append(Round(number, 0.9 / number, list(range(clients)), [], [], "cpu", f"{number:064x}"))
        save_rounds(directory.rounds, done, table.frame())
    if finished:
        table.close()
    return directory
