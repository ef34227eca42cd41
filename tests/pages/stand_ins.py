"""What the pages leave open, and what stands for it when their lines are run: files, folders, modules, names in code.

A line that needs something new gets it here; a line that cannot be run at all goes into NOT_RUN, with the reason.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from experiments.settings import load_run
from fl_sim.checkpoint import Checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.network import build_model
from tests.attacks.conftest import make_victim, summed
from tests.experiments.in_process import run_in_process
from tests.strategies.stub_federation import MODEL, WEIGHTS, StubGrid, client_of, initial_arrays

NOT_RUN = {
    "fl-sim --install-completion": "asks for the shell around it; tests/experiments/test_help.py installs it for bash",
    "make test": "runs these tests",
    "make test-quick": "runs these tests",
}

CHEAPER_RUN = {"federation.rounds": "1", "utility.every": "0"}
"""Added to every ``fl-sim run`` that does not set them itself."""

ONE_ATTACKED = {"attack.clients": "[1]"}
"""Added too where there is an attack; a neighbour of the curious peer of the gossip preset. All are captured."""

CHEAPER_ATTACK = {
    "residual": {"max_evaluations": "1"},
    "dlg": {"max_evaluations": "1"},
    "user-level": {"steps": "8", "draws": "1", "final_steps": "1"},
}
"""Arguments that make an attack short; added where the line gives it none of that name."""

CHEAPER_INVERSION = {
    "diff-mi": {
        "training.steps": "1",
        "training.block_out_channels": "[8, 8]",
        "fine_tuning.epochs": "1",
        "fine_tuning.images_per_class": "1",
        "image_search.iterations": "1",
    },
    "max-margin": {"iterations": "1"},
}
"""The like for ``fl-sim invert`` and its benchmark."""

CHEAPER_NETWORK = {"model.block_out_channels": "[8, 8, 8, 8]", "model.layers_per_block": "1"}
"""In the place of a network of 62 million parameters, four levels too."""

SMALL_NETWORK = {"model.checkpoint": "none", "model.block_out_channels": "[8, 8]", "model.norm_num_groups": "4"}
"""In the place of a bundled network; the README's commands have it as it is."""

CHEAPER_RUN_ATTACK = {"residual": {"search_timestep": "false"}}
"""More of them, within a run, where an attack that gives up does not end the command."""


CHEAPER_SWEEP = CHEAPER_RUN | {
    "attack.args.residual.max_evaluations": "1",
    "attack.args.residual.search_timestep": "false",
}
"""Added to every ``fl-sim sweep``, but for what varies in it."""


def photos(folder: Path) -> None:
    """A folder of a user's own: a sub-folder per hospital, and a kind of file that is not read."""
    generator = torch.Generator().manual_seed(0)
    for hospital in "abcd":
        (folder / f"hospital_{hospital}").mkdir(parents=True)
        for number, suffix in enumerate(("png", "jpg")):
            pixels = torch.randint(256, (40, 48, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"hospital_{hospital}" / f"{number}.{suffix}")
    (folder / "notes.txt").write_text("not an image")


def run_directory(folder: Path) -> None:
    """What a run leaves."""
    cheaper = [f"{key}={value}" for key, value in CHEAPER_RUN.items()]
    run_in_process(folder, load_run("demo-16", [*cheaper, "attack.args.residual.max_evaluations=1"]))


def capture(path: Path) -> None:
    """One client's update, noise and timestep known, so that every attack may be set on it."""
    make_victim(known=True).observation.save(path)


def sum_of_clients(path: Path) -> None:
    """What a server sees of clients that aggregate securely."""
    summed(make_victim((100, 400)).observation).save(path)


def client_toml(path: Path) -> None:
    """A client's own configuration in a deployment."""
    path.parent.mkdir()
    path.write_text('[client]\nseed = 5\n[data]\nimage_size = 32\npartition = "photo"\n[federation]\nclients = 2\n')


def classifier(path: Path) -> None:
    """The checkpoint of a classifier of three classes."""
    model = {"_class_name": "ConvNet", "num_classes": 3, "image_size": [16, 16], "channels": [4]}
    Checkpoint(build_model(model).state_dict(), model, ClassificationTask(num_classes=3), {}).save(path)


def sweep(path: Path) -> None:
    """A sweep of somebody's own."""
    path.write_text('base = "demo-16"\n[grid]\nclient.batch_size = [1, 2]\n')


FILES: dict[str, Callable[[Path], None]] = {
    "photos": photos,
    "alice/client.toml": client_toml,
    "runs/demo": run_directory,
    "update.safetensors": capture,
    "sum.safetensors": sum_of_clients,
    "classifier.safetensors": classifier,
    "my-sweep.toml": sweep,
}
"""Made in the page's folder before the first line that names them, unless an earlier line has made them."""

ABSOLUTE = {"/photos": "photos", "/data/runs": "data/runs", "/home/alice": "alice"}
"""Where the pages' absolute paths are in the page's folder, which is also the home directory."""

MODULES = {
    "my_package/__init__.py": "from fl_sim.defences.top_k import TopK as MyDefence\n",
    "my_package/mine.py": "from tests.attacks.toy_attacks import Guess as MyAttack\n",
    "my/package.py": "from tests.attacks.toy_attacks import Guess as MyAttack\n",
    "mlflow/__init__.py": "from unittest.mock import MagicMock\n\nstart_run = MagicMock()\n"
    "def log_metrics(metrics: dict, step: int) -> None: ...\n",
    "wandb/__init__.py": "from types import SimpleNamespace\n\n"
    "def init(project: str): return SimpleNamespace(log=lambda metrics: None)\n",
}
"""Packages of a user's own, and those that we do not install, beside the page."""


def _my_strategy() -> Any:
    from flwr.serverapp.strategy import FedAvg

    return lambda: FedAvg(fraction_evaluate=0.0)


def _model_with_gradient() -> torch.nn.Module:
    model = build_model(MODEL | {"sample_size": 32})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


NAMES: dict[str, Callable[[], Any]] = {
    "MyStrategy": _my_strategy,
    "grid": lambda: StubGrid(client_of("weights")),
    "initial_arrays": initial_arrays,
    "model": _model_with_gradient,
    "more_of_the_configuration": lambda: {key: value for key, value in MODEL.items() if key != "sample_size"},
    "recipe": lambda: WEIGHTS,
}
"""Names that a page's code leaves open."""
