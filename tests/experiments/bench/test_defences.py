import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.attack import Reconstruction
from attacks.observation import Observation
from experiments.bench import defences, federations
from experiments.bench.defences import BENCHMARK, SETUPS, Options, cells, make_plan
from experiments.bench.federations import DefenceMeasurement, Setup
from experiments.experiment import prepare
from experiments.leakage import client_truth
from fl_sim.defences.privacy import gaussian_privacy
from fl_sim.network import count_parameters
from tests.experiments.bench.watching import watch
from tests.experiments.test_cli import assert_refused, fl_sim

TOYS = "tests.attacks.toy_attacks"
TINY = (
    "model.block_out_channels=[8,16]",
    "model.norm_num_groups=4",
    "federation.clients=2",
    "data.partition=photo",
    "utility.samples=2",
)


def setup(*overrides: str, name: str = "tiny") -> Setup:
    return Setup(name, "much", (*TINY, *overrides))


def measurement(
    *overrides: str, attack: str = f"{TOYS}:Guess", rounds: int = 2, attacked: Sequence[int] = (2,)
) -> DefenceMeasurement:
    return DefenceMeasurement(setup(*overrides), rounds, tuple(attacked), victims=2, seed=3, attack=attack)


def measured(one: DefenceMeasurement) -> dict[str, Any]:
    return one.identity() | one.measure()


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    """What the attacks are given from now on; none of them finds anything."""
    given: list[Observation] = []

    def attempt(attack: str, arguments: dict[str, Any], seen: Observation, seed: int, device: str) -> str:
        given.append(seen)
        return "no luck"

    monkeypatch.setattr(federations, "attempt", attempt)
    return given


def test_the_attacks_get_what_the_defence_let_through_and_know_of_it_or_not(attacked: list[Observation]) -> None:
    row = measurement("defence.name=top-k", "defence.args.fraction=0.1", attacked=(1, 2)).measure()
    keys = [(attack["round"], attack["client"], attack["defence_known"]) for attack in row["attacks"]]
    assert keys == [(r, client, known) for r in (1, 2) for client in (0, 1) for known in (True, False)]
    for seen, (server_round, client, known) in zip(attacked, keys, strict=True):
        assert (seen.circumstances.round, seen.circumstances.client) == (server_round, client)
        assert (seen.circumstances.defence is not None and seen.circumstances.defence.sparsified) is known
        entries = torch.cat([value.flatten() for value in seen.update.values()])
        assert entries.count_nonzero() == math.ceil(0.1 * len(entries))
    before, after = attacked[0].weights, attacked[-1].weights
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert row["disclosed"] == {"sparsified": True}
    assert row["after"]["heldout_loss"] < row["before"]["heldout_loss"]
    assert row["privacy"] is None


def test_only_the_first_victims_and_the_wanted_rounds_are_attacked(attacked: list[Observation]) -> None:
    row = DefenceMeasurement(setup(), rounds=2, attacked=(1,), victims=1, seed=3).measure()
    assert [(attack["round"], attack["client"], attack["defence_known"]) for attack in row["attacks"]] == [(1, 0, None)]
    assert len(attacked) == 1


def test_a_reconstruction_is_compared_with_what_the_client_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    undefended = measurement()
    experiment = prepare(undefended.settings())
    truths = {client: client_truth(experiment.settings, experiment.recipe, client, 2) for client in (0, 1)}

    def attempt(attack: str, arguments: dict[str, Any], seen: Observation, seed: int, device: str) -> Reconstruction:
        truth = truths[seen.circumstances.client]
        images = (truth.images + 0.01).clamp(0, 1) if seen.circumstances.client else torch.rand(truth.images.shape)
        return Reconstruction(images, truth.timesteps, 0.1, 5, 0.2, device, attack, {}, seed)

    monkeypatch.setattr(federations, "attempt", attempt)
    row = measured(undefended)
    (cell,) = cells(row)
    poor, good = (attack["psnr"][0] for attack in row["attacks"])
    assert poor < 20 < 39 < good
    assert cell.median_psnr == pytest.approx((poor + good) / 2)
    assert (cell.images, cell.share_recognisable, cell.defence_known) == (2, 0.5, None)
    assert cell.timesteps == {"exact": 2, "unknown": 0, "wrong": 0}


def test_a_sum_is_attacked_once_and_compared_with_all_images(attacked: list[Observation]) -> None:
    row = measurement("defence.name=secure-aggregation").measure()
    (seen,) = attacked
    assert (seen.circumstances.num_clients, seen.circumstances.client) == (2, -1)
    assert [(attack["client"], len(attack["psnr"])) for attack in row["attacks"]] == [(-1, 2)]


def test_privacy_is_the_accountants(attacked: list[Observation]) -> None:
    noise = ("defence.name=clip-noise", "defence.args.noise_multiplier=2.0", "defence.args.delta=1e-6")
    expected = gaussian_privacy(1.0, 2, 1e-6)
    assert measurement(*noise).measure()["privacy"] == {"epsilon": expected.epsilon, "delta": 1e-6}
    without = measurement(*noise, "defence.args.noise_multiplier=0.0").measure()
    assert without["privacy"] == {"epsilon": None, "delta": 1e-6}
    assert math.isfinite(without["after"]["heldout_loss"])


def test_a_failing_attack_counts_as_0_db() -> None:
    row = measured(measurement(attack=f"{TOYS}:Fail"))
    (cell,) = cells(row)
    assert (cell.median_psnr, cell.share_recognisable) == (0, 0)
    assert cell.timesteps == {"exact": 0, "unknown": 2, "wrong": 0}
    assert cell.failures == {"RuntimeError: no luck today": 2}


def test_training_that_breaks_shows_and_leaves_nothing_to_attack(attacked: list[Observation]) -> None:
    row = measurement("client.update=weights", "client.lr=1e30", "strategy.name=FedAvg", "strategy.args={}").measure()
    assert attacked == []
    assert all("NaN" in attack["status"] and attack["psnr"] == [0] for attack in row["attacks"])
    assert row["after"] == {"heldout_loss": None, "patch_distance": None}
    json.dumps(row, allow_nan=False)


@pytest.fixture
def tiny_setups(monkeypatch: pytest.MonkeyPatch) -> list[DefenceMeasurement]:
    """Two setups in the place of all, and what is measured from now on."""
    two = (setup(name="none"), setup("defence.name=signs", name="signs"))
    monkeypatch.setattr(defences, "SETUPS", two)
    return watch(monkeypatch, DefenceMeasurement)


def test_the_table_from_the_command_line_and_nothing_is_measured_twice(
    tmp_path: Path, tiny_setups: list[DefenceMeasurement]
) -> None:
    command = ("bench", "defences", "--quick", "--rounds", "1", "--attack", f"{TOYS}:Guess", "--out", tmp_path)
    result = fl_sim(*command, "--only", "signs")
    assert result.exit_code == 0, result.output
    assert fl_sim(*command).exit_code == 0
    assert fl_sim(*command).exit_code == 0
    assert [measured.setup.name for measured in tiny_setups] == ["signs", "none"]
    content = json.loads((tmp_path / "defences.json").read_text())
    assert [(cell["defence"], cell["defence_known"]) for cell in content["figures"]] == [
        ("none", None),
        ("signs", True),
        ("signs", False),
    ]
    assert content["figures"] == json.loads(json.dumps(BENCHMARK.figures(content["rows"])))
    assert content["about"]["packages"]["torch"]
    page = (tmp_path / "defences.md").read_text()
    assert "| none (much) | 1 | - | 2 |" in page
    assert "| signs (much) | 1 | no | 2 |" in page
    assert str(tmp_path) not in page + json.dumps(content)
    assert fl_sim(*command, "--seed", "4", "--only", "none").exit_code == 0
    assert [measured.seed for measured in tiny_setups] == [40961, 40961, 4]


def test_every_setup_can_start_and_is_in_the_quick_benchmark_at_least_once() -> None:
    full, quick = make_plan(Options()), make_plan(Options(quick=True))
    assert [each.setup for each in full] == list(SETUPS)
    assert {each.setup.name for each in quick} == {each.setup.name for each in full}
    assert {(each.rounds, each.attacked, each.victims) for each in full} == {(100, (1, 100), 4)}
    assert {(each.rounds, each.attacked, each.victims) for each in quick} == {(30, (30,), 2)}
    assert all(each.arguments for each in quick)
    assert not any(each.arguments for each in full)
    for planned in full:
        experiment = prepare(planned.settings())
        assert count_parameters(experiment.weights.values()) == defences.PARAMETERS
        client = experiment.settings.client
        clients = experiment.settings.federation.clients if experiment.defence.sum_only else 1
        assert planned.setup.images == client.batch_size * client.local_steps * clients


def test_noise_is_measured_by_the_norm_that_is_clipped_to() -> None:
    noisy = next(each for each in make_plan(Options()) if each.setup.strength.startswith("noise 100 %"))
    known = prepare(noisy.settings()).defence.model_dump()
    norm = known["noise_multiplier"] * known["clip_norm"] * defences.PARAMETERS**0.5
    assert norm == pytest.approx(known["clip_norm"], rel=0.01)


def test_a_defence_of_ones_own_is_measured_with_its_defaults() -> None:
    (own,) = make_plan(Options(only=["fl_sim.defences.top_k:TopK"]))
    assert prepare(own.settings()).defence.name == "top-k"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--attack", "dlg"), ("--attack dlg: needs noise and timesteps",)),
        (("--only", "topk"), ("--only topk", "local-steps", "did you mean 'top-k'")),
        (("--only", "nowhere:Nothing"), ("nowhere:Nothing", "cannot be imported")),
        (("--attack", "residul"), ("attack 'residul'", "did you mean 'residual'")),
    ],
)
def test_a_wrong_option_is_one_line_and_makes_no_folder(
    tmp_path: Path, arguments: tuple[str, ...], complaint: tuple[str, ...]
) -> None:
    assert_refused(fl_sim("bench", "defences", *arguments, "--out", tmp_path / "out"), *complaint)
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_setup() -> None:
    text = " ".join(fl_sim("bench", "defences", "--help").output.replace("│", " ").split())
    assert ", ".join(dict.fromkeys(setup.name for setup in SETUPS)) in text
