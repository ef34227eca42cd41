"""The attacker cannot reach the truth: which room may import which, replay under guard, and a decoy."""

import ast
import inspect
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import attacks
from attacks.attack import AttackError
from attacks.model_inversion.model_inversion import ModelInversion
from attacks.observation import CaptureError, Observation
from attacks.registry import create
from tests.attacks.conftest import CLASS_CONDITIONAL, Victim, draw_images, make_victim, psnr
from tests.attacks.guard import GUARD, TRUTH, readable, replay, run_python

REPOSITORY = Path(attacks.__file__).parents[1]
ROOMS = ("fl_sim", "strategies", "attacks", "experiments")


def modules() -> dict[str, Path]:
    """All modules of the rooms by dotted name."""
    files = [file for room in ROOMS for file in sorted((REPOSITORY / room).rglob("*.py"))]
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


def imported(file: Path) -> Iterator[str]:
    """Everything that a module imports from the rooms, at its top or inside a function; ``from a import b`` is a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


IMPORTS = {module: list(imported(file)) for module, file in modules().items()}


def imports_of(*packages: str) -> list[tuple[str, str]]:
    return [(module, name) for module, names in IMPORTS.items() if within(module, *packages) for name in names]


def test_the_walk_sees_every_room():
    assert {module.split(".")[0] for module in IMPORTS} == set(ROOMS)
    assert ("attacks.inversion.problem", "fl_sim.diffusion") in imports_of("attacks")


DOOR = ("fl_sim", "experiments.loaded_run.LoadedRun")
"""``fl_sim.load``, with which people read a run directory, imports the evaluator when it is called."""


def test_the_federation_imports_no_other_room():
    assert {pair for pair in imports_of("fl_sim") if not within(pair[1], "fl_sim")} == {DOOR}


def test_only_people_go_through_the_door(tmp_path):
    code = "import sys, fl_sim\nprint(*sys.modules)"
    assert "experiments" not in run_python(code, tmp_path).stdout.decode().split()
    rooms = [module for module in IMPORTS if not within(module, "experiments") and module != "fl_sim"]
    users = [name for name in rooms if "fl_sim.load(" in modules()[name].read_text() or "fl_sim.load" in IMPORTS[name]]
    assert users == []


WORDS = ("fl_sim.bounds", "fl_sim.errors", "fl_sim.registry")
"""Error messages and classes by name; they know nobody."""


GROUND_FLOOR = {
    "fl_sim.network": (),
    "fl_sim.diffusion": ("fl_sim.network",),
    "fl_sim.classification": ("fl_sim.network",),
    "fl_sim.task": ("fl_sim.diffusion", "fl_sim.classification"),
    "fl_sim.checkpoint": ("fl_sim.network", "fl_sim.diffusion", "fl_sim.classification", "fl_sim.task"),
}
"""Networks, the two tasks, and what knows both: each package or module, and those that it stands on."""
PACKAGES = ("fl_sim.network", "fl_sim.diffusion", "fl_sim.classification")


def test_attacks_import_the_ground_floor_alone_outside_themselves():
    allowed = ("attacks", *GROUND_FLOOR, *WORDS)
    assert [pair for pair in imports_of("attacks") if not within(pair[1], *allowed)] == []


@pytest.mark.parametrize("package", GROUND_FLOOR)
def test_the_ground_floor_knows_nobody(package):
    allowed = (package, *GROUND_FLOOR[package], *WORDS)
    assert [pair for pair in imports_of(package) if not within(pair[1], *allowed)] == []
    assert {name.rpartition(".")[0] for _, name in imports_of(*WORDS)} <= set(WORDS)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_inside_the_ground_floor(package):
    own = [module for module in IMPORTS if within(module, package) and module != package]
    used = {module: {name.rpartition(".")[0] for name in IMPORTS[module]} for module in own}
    TopologicalSorter(used).prepare()
    assert len(own) > 1


CONTRACT = ("attack", "memory", "observation", "reconstruction_file", "registry", "trace", "workers")
MAY_STAND_ON = {
    "inversion": {"inversion"},
    "timesteps": {"timesteps", "inversion"},
    "labels": {"labels", "inversion"},
    "published": {"published", "timesteps", "labels", "inversion"},
    "residual": {"residual", "timesteps", "inversion"},
    "model_inversion": {"model_inversion"},
}


@pytest.mark.parametrize("room", MAY_STAND_ON)
def test_a_room_of_attacks_stands_on_those_below_it(room):
    used = {name.split(".")[1] for _, name in imports_of(f"attacks.{room}") if within(name, "attacks")}
    assert used - set(CONTRACT) <= MAY_STAND_ON[room]


def test_a_model_inversion_sees_no_update_and_no_truth():
    """It gets a classifier, public images and a seed; neither an observation nor what measures its result."""
    seen = {name for _, name in imports_of("attacks.model_inversion")}
    assert not [name for name in seen if within(name, "attacks.observation", "attacks.workers", *TRUTH)]
    given = list(inspect.signature(ModelInversion.reconstruct).parameters)
    assert given == ["self", "classifier", "public", "seed", "device"]


def test_every_file_of_attacks_is_in_a_room_or_in_the_contract():
    places = {module.split(".")[1] for module in IMPORTS if module.startswith("attacks.")}
    assert places == {*MAY_STAND_ON, *CONTRACT}


def test_strategies_see_neither_clients_nor_images_nor_settings():
    assert [pair for pair in imports_of("strategies") if within(pair[1], *TRUTH)] == []


def test_no_module_imports_what_attacks_do_not_name():
    """``importlib`` goes around the walk: it finds attacks, strategies, defences and networks, and nothing else."""
    users = {module for module, file in modules().items() if "import_module(" in file.read_text(encoding="utf-8")}
    assert users == {"fl_sim.registry"}


def test_importing_every_attack_loads_nothing_that_holds_the_truth(tmp_path):
    names = [name for name in IMPORTS if within(name, "attacks")]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
    finished = run_python(code, tmp_path)
    assert finished.returncode == 0, finished.stderr.decode()
    loaded = finished.stdout.decode().split()
    assert "attacks.residual.attack" in loaded
    assert [name for name in loaded if within(name, *TRUTH)] == []


def test_a_capture_alone_gives_the_same_reconstruction_under_guard(tmp_path, victim):
    victim.observation.save(tmp_path / "capture.safetensors")
    arguments = {"max_evaluations": 60}
    here = create("residual", arguments).reconstruct(victim.observation, seed=7)
    assert torch.equal(replay(tmp_path, arguments, 7, here.images.shape), here.images)


@pytest.mark.parametrize(
    "attempt",
    [
        "import skimage.data",
        "import fl_sim.client_app",
        "from fl_sim import images",
        "import experiments",
        "open('../secret.txt')",
        "open(os.path.expanduser('~/.bashrc'))",
        f"open({str(Path(sysconfig.get_path('purelib'), 'skimage/data/astronaut.png'))!r})",
    ],
)
def test_the_guard_stops_whoever_looks_elsewhere(tmp_path, attempt):
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "secret.txt").touch()
    finished = run_python(GUARD + attempt, folder, readable(folder))
    assert finished.returncode == 1
    assert "PermissionError" in finished.stderr.decode()


def decoy_from_the_operating_system() -> Victim:
    def random_seed() -> int:
        return int.from_bytes(os.urandom(7), "big")

    generator = torch.Generator().manual_seed(random_seed())
    timestep = 200 + random_seed() % 600
    noise = torch.randn(1, 3, 8, 8, generator=generator)
    return make_victim((timestep,), images=draw_images(generator), noise=noise)


def test_a_decoy_in_the_update_is_what_comes_back(victim):
    decoy = decoy_from_the_operating_system()
    swapped = replace(victim.observation, update=decoy.observation.update)
    result = create("residual").reconstruct(swapped, seed=7)
    assert result.timesteps.tolist() == decoy.timesteps.tolist()
    assert decoy.psnr(result.images) > 40
    likeness = psnr((decoy.images + 1) / 2, (victim.images + 1) / 2)
    assert victim.psnr(result.images) == pytest.approx(likeness, abs=0.5)


def test_private_labels_come_back_from_the_update_alone():
    one, decoy = (make_victim((400,), model_config=CLASS_CONDITIONAL, labels=(label,)) for label in (3, 8))
    swapped = replace(one.observation, update=decoy.observation.update)
    found = create("residual", {"max_evaluations": 3}).reconstruct(swapped, seed=7)
    assert found.labels is not None
    assert found.labels.tolist() == [8]


def test_an_observation_cannot_hold_private_labels():
    private = make_victim((400,), model_config=CLASS_CONDITIONAL, labels=(3,)).observation
    with pytest.raises(CaptureError, match="labels are there, but noise and timesteps are private"):
        replace(private, labels=torch.tensor([3]))


def random_update(victim: Victim, readable_timestep: bool) -> Observation:
    """The victim's observation with an update of random numbers, but for what tells the timestep if that is wanted."""
    generator = torch.Generator().manual_seed(3)
    update = {
        name: value
        if readable_timestep and name.startswith("time_embedding.linear_1")
        else torch.randn(value.shape, generator=generator) * value.square().mean().sqrt()
        for name, value in victim.observation.update.items()
    }
    return replace(victim.observation, update=update)


def test_a_random_update_tells_no_timestep(victim):
    with pytest.raises(AttackError, match="timesteps cannot be read off"):
        create("residual", {"search_timestep": False}).reconstruct(
            random_update(victim, readable_timestep=False), seed=7
        )


def test_a_random_update_ends_at_chance_level(victim):
    observation = random_update(victim, readable_timestep=True)
    images = create("residual", {"max_evaluations": 300}).reconstruct(observation, seed=7).images
    generator = torch.Generator().manual_seed(4)
    of_others = [psnr(images, (draw_images(generator) + 1) / 2) for _ in range(50)]
    assert victim.psnr(images) <= max(of_others)
    assert victim.psnr(images) < 15
