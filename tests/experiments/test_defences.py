"""Every defence from the settings to the table, with clients and attacks in this process."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from opacus.accountants import RDPAccountant
from safetensors.torch import load_file
from torch import Tensor

from attacks.observation import DefenceDisclosure, Observation
from attacks.reconstruction_file import load_reconstruction
from experiments.experiment import build_recipe, prepare
from experiments.leakage import client_truth
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from fl_sim.client_app import local_training, private_draw
from fl_sim.defences.registry import create
from fl_sim.network import trainable_names
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings

GUESS = "attack.name=tests.attacks.toy_attacks:Guess"
WEIGHTS = ("client.update=weights", "strategy.name=FedAvg")


def run(path: Path, *overrides: str) -> tuple[RunDirectory, ExperimentSettings]:
    settings = tiny_settings(GUESS, "federation.rounds=1", "utility.every=0", *overrides)
    return run_in_process(path / "run", settings), settings


def captures(directory: RunDirectory) -> dict[str, Observation]:
    return {file.stem: Observation.load(file) for file in sorted(directory.captures.iterdir())}


def own_update(settings: ExperimentSettings, client: int) -> dict[str, Tensor]:
    """What the client computes in the first round, before any defence."""
    start, recipe = prepare(settings).weights, build_recipe(settings)
    update, _ = local_training(recipe, start, private_draw(settings, recipe, client, 1), "cpu")
    if recipe.update == "weights":
        return {name: update[name] - start[name] for name in trainable_names(recipe.model)}
    return update


@pytest.mark.parametrize("known", [True, False], ids=["adaptive", "not adaptive"])
@pytest.mark.parametrize("update", [(), WEIGHTS], ids=["gradient", "weights"])
def test_a_defence_reaches_the_update_the_capture_and_the_table(
    tmp_path: Path, update: tuple[str, ...], known: bool
) -> None:
    asked = ("defence.name=top-k", "defence.args.fraction=0.1", f"attack.knows_defence={str(known).lower()}")
    directory, settings = run(tmp_path, *asked, *update)
    for client, seen in enumerate(captures(directory).values()):
        own = own_update(settings, client)
        kept = {name: value != 0 for name, value in seen.update.items()}
        total = sum(value.numel() for value in own.values())
        # Weights that moved by less than their own rounding are not seen to have moved.
        assert sum(int(mask.sum()) for mask in kept.values()) == pytest.approx(math.ceil(0.1 * total), rel=0.01)
        for name, mask in kept.items():
            torch.testing.assert_close(seen.update[name][mask], own[name][mask], rtol=1e-2, atol=1e-7)
        assert seen.circumstances.defence == (DefenceDisclosure(sparsified=True) if known else None)
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert set(leakage["defence"]) == {"top-k"}
    assert set(leakage["defence_args"]) == {'{"fraction":0.1}'}
    assert set(leakage["defence_known"]) == {known}
    report = directory.report.read_text()
    assert "The clients' defence was top-k, fraction = 0.1" in report
    assert ("the attacker knew" in report) == known
    assert pd.read_parquet(directory.rounds)["epsilon"].isna().all()


@pytest.mark.parametrize("threat", ["private", "known"])
@pytest.mark.parametrize("update", [(), WEIGHTS], ids=["gradient", "weights"])
def test_under_secure_aggregation_the_server_sees_the_sum_and_no_client(
    tmp_path: Path, update: tuple[str, ...], threat: str
) -> None:
    directory, settings = run(
        tmp_path, "defence.name=secure-aggregation", "client.batch_size=2", f"threat={threat}", *update
    )
    ((stem, seen),) = captures(directory).items()
    assert stem == "round-0001-sum"
    circumstances = seen.circumstances
    assert (circumstances.client, circumstances.num_clients, circumstances.num_samples) == (-1, 2, 4)
    assert circumstances.num_examples == 4
    updates = [own_update(settings, client) for client in (0, 1)]
    for name, value in seen.update.items():
        torch.testing.assert_close(value, updates[0][name] + updates[1][name], rtol=1e-5, atol=1e-7)
    everything = load_file(directory.captures / f"{stem}.safetensors")
    assert not any(
        torch.equal(tensor, own[name.removeprefix("update/")])
        for own in updates
        for name, tensor in everything.items()
        if name.startswith("update/")
    )
    recipe = build_recipe(settings)
    draws = [private_draw(settings, recipe, client, 1) for client in (0, 1)]
    if threat == "known":
        assert seen.noise is not None
        assert torch.equal(seen.noise, torch.cat([draw.noise for draw in draws]))
    # Every image of every client has its row, compared with what was found for the sum.
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["client"].tolist() == [-1] * 4
    assert leakage["image"].tolist() == [0, 1, 2, 3]
    assert leakage["timestep"].tolist() == [int(t) for draw in draws for t in draw.timesteps]
    truth = torch.cat([client_truth(settings, recipe, client, 1).images for client in (0, 1)])
    found = load_reconstruction(directory.reconstruction(1, -1, "guess")).images
    errors = (truth[:, None] - found[None]).square().mean(dim=(2, 3, 4))
    assert all(any(torch.isclose(errors[row], torch.tensor(mse)).tolist()) for row, mse in enumerate(leakage["mse"]))
    assert "Sum of clients, image 3" in directory.report.read_text()


def test_secure_aggregation_of_one_client_hides_nothing(tmp_path: Path) -> None:
    directory, _ = run(tmp_path, "defence.name=secure-aggregation", "federation.clients_per_round=1")
    ((stem, seen),) = captures(directory).items()
    assert seen.circumstances.num_clients == 1
    assert stem == f"round-0001-client-{seen.circumstances.client:04d}"


@pytest.mark.parametrize("update", [(), WEIGHTS], ids=["gradient", "weights"])
def test_what_is_not_shared_is_not_in_the_capture(tmp_path: Path, update: tuple[str, ...]) -> None:
    directory, settings = run(tmp_path, "defence.name=unshared-time-mlp", *update)
    names = trainable_names(build_recipe(settings).model)
    for seen in captures(directory).values():
        assert set(seen.update) == {name for name in names if "time_" not in name}
    for name, value in load_file(directory.model).items():
        if "time_" in name:
            torch.testing.assert_close(value, prepare(settings).weights[name])


def test_the_privacy_spent_stands_in_the_table_of_rounds_and_in_the_report(tmp_path: Path) -> None:
    directory, _ = run(tmp_path, "defence.name=clip-noise", "defence.args.noise_multiplier=4.0", "federation.rounds=2")
    rounds = pd.read_parquet(directory.rounds)
    accountant = RDPAccountant()
    for number in (0, 1):
        accountant.step(noise_multiplier=2.0, sample_rate=1.0)
        assert rounds["epsilon"][number] == pytest.approx(accountant.get_epsilon(1e-5))
        assert rounds["clients_asked"][number].tolist() == sorted(rounds["clients_seen"][number])
        assert rounds["epsilons"][number].tolist() == [rounds["epsilon"][number]] * len(rounds["clients_seen"][number])
    assert rounds["delta"].tolist() == [1e-5, 1e-5]
    assert f"{rounds['epsilon'][1]:.3g}" in directory.report.read_text()
    told = next(iter(captures(directory).values())).circumstances.defence
    assert told == DefenceDisclosure(clip_norm=1.0, noise_std=4.0)


@pytest.mark.parametrize("name", ["clip-noise", "dp-sgd", "signs", "stochastic-quantisation"])
def test_runs_repeat_bit_for_bit_and_the_attacker_is_told_what_the_defence_discloses(tmp_path: Path, name: str) -> None:
    digests = []
    for folder in ("first", "second"):
        directory, settings = run(tmp_path / folder, f"defence.name={name}")
        digests.append(pd.read_parquet(directory.rounds)["weights_sha256"].tolist())
    assert digests[0] == digests[1]
    told = create(name).disclosure(build_recipe(settings))
    assert all(seen.circumstances.defence == DefenceDisclosure(**told) for seen in captures(directory).values())
