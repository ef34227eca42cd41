from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.cases import CONTENDERS, KNOWN, NETWORKS, OWN_NETWORK, PRIVATE, Case
from experiments.bench.plan import Options, make_plan
from experiments.bench.suites import SUITES
from experiments.checkpoint import BUNDLED, save_checkpoint
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import SettingsError
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import build_model, count_parameters, trust, unet_config
from tests.own_networks import trusting


def test_quick_takes_the_small_network_and_no_published_recipe() -> None:
    plan = make_plan(Options(quick=True))
    assert {each.case.network for each in plan.measurements} == {"16"}
    assert not any("published" in each.contender.name for each in plan.measurements)
    assert 20 <= len(plan.measurements) <= 30
    assert Counter(each.index for each in plan.measurements if each.case.suite == "batch") == {0: 1}
    private = [each.index for each in plan.measurements if each.case.suite == "strata" and each.case.threat is PRIVATE]
    assert Counter(private) == {0: 6, 1: 6}
    assert {each.index for each in make_plan(Options(quick=True, victims=3)).measurements} == {0, 1, 2}
    assert plan.left_out == []


def test_the_full_plan_has_every_stratum_ten_times_and_says_what_it_lacks() -> None:
    plan = make_plan(Options(only=["strata"]))
    cells = Counter((each.case, each.contender.name) for each in plan.measurements)
    assert set(cells.values()) == {10}
    strata = {(case.network, case.model, case.timesteps, case.threat, attack) for case, attack in cells}
    for model, network in (("trained", "16"), ("untrained", "16"), ("untrained", "32"), ("untrained", "32-deep")):
        for timesteps in ((0, 20), (21, 200), (201, 500), (501, 800), (801, 950), (951, 999)):
            assert (network, model, timesteps, PRIVATE, "residual") in strata
            assert (network, model, timesteps, KNOWN, "dlg") in strata
    assert plan.left_out == [
        "network 32-narrow, trained: there is no checkpoint (--checkpoint FILE)",
        "network 32-deep, trained: there is no checkpoint (--checkpoint FILE)",
        "network 32, trained: there is no checkpoint (--checkpoint FILE)",
        "network 32-wide, trained: there is no checkpoint (--checkpoint FILE)",
    ]


def test_everything_is_what_a_cpu_measures_in_hours() -> None:
    plan = make_plan(Options())
    assert {each.case.suite for each in plan.measurements} == set(SUITES) - {"main", "scale"}
    assert not {each.case.network for each in plan.measurements} & {"64-narrow", "ddpm-cifar10", "64", "128"}


def test_the_scale_suite_has_networks_in_use_sixteen_bits_and_grey_images(tmp_path: Path) -> None:
    plan = make_plan(Options(only=["scale"]))
    victims = Counter((each.case.network, each.case.dtype, each.contender.name) for each in plan.measurements)
    assert victims == {
        ("ddpm-cifar10", "float32", "residual"): 5,
        ("64-narrow", "float32", "residual"): 5,
        ("64", "float32", "residual"): 3,
        ("lucidrains", "float32", "residual"): 3,
        ("128", "float32", "residual"): 2,
        ("128", "float32", "residual-1000"): 2,
        ("128", "float32", "gidm-pixels"): 2,
        ("16", "float16", "residual"): 10,
        ("16", "bfloat16", "residual"): 10,
        ("28-grey", "float32", "residual"): 5,
        ("28-grey-deep", "float32", "residual"): 5,
    }
    assert plan.left_out == ["network ddpm-cifar10, trained: there is no checkpoint (--checkpoint FILE)"]
    known = {each.contender.name for each in plan.measurements if each.case.threat is KNOWN}
    assert known == {"residual-1000", "gidm-pixels"}
    assert {each.case.timesteps for each in plan.measurements} == {(21, 800)}
    assert {each.case.network for each in plan.measurements if each.case.images == "digits"} == {
        "28-grey",
        "28-grey-deep",
    }


def test_a_network_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.bench.plan.find_spec", lambda _: None)
    plan = make_plan(Options(only=["scale"]))
    assert OWN_NETWORK not in {each.case.network for each in plan.measurements}
    assert "network lucidrains: denoising-diffusion-pytorch is not installed, an extra of fl-sim" in plan.left_out


def test_the_main_suite_has_ten_victims_of_every_single_image() -> None:
    plan = make_plan(Options(only=["main"]))
    victims = Counter((each.case, each.contender.name) for each in plan.measurements)
    assert set(victims.values()) == {10, 5, 3, 1}
    assert {count for (case, _), count in victims.items() if case.network == "32-wide"} == {3}
    assert plan.left_out == ["network 32-wide, trained: there is no checkpoint (--checkpoint FILE)"]
    singles = [(case, attack) for case, attack in victims if case.network == "16" and is_plain(case)]
    assert all(victims[single] == 10 for single in singles if single[1] == "residual")
    assert Counter((case.model, case.threat, attack) for case, attack in singles) == {
        (model, threat, attack): 6
        for model in ("trained", "untrained")
        for threat, attacks in ((PRIVATE, ("residual", "gidm-plus")), (KNOWN, ("residual", "dlg", "gidm")))
        for attack in attacks
    }
    assert {case.batch_size for case, _ in victims} == {1, 2, 4, 8}
    assert {case.local_steps for case, _ in victims} == {1, 2, 4}
    assert {case.defence for case, _ in victims} == {"none", "noise", "signs"}
    assert {case.optimizer.name for case, _ in victims if case.optimizer} == {"sgd", "adam"}


def is_plain(case: Case) -> bool:
    return case.batch_size == 1 and case.optimizer is None and case.defence == "none"


def test_a_sum_of_clients_meets_the_same_attacks_as_one_client() -> None:
    alone, summed = (
        {
            (each.case.threat, each.contender.name)
            for each in make_plan(Options(only=[suite])).measurements
            if suite == "sum" or each.case.network == "16"
        }
        for suite in ("strata", "sum")
    )
    assert alone == summed
    assert (KNOWN, "dlg") in summed


def saved_checkpoint(path: Path, config: dict[str, Any]) -> Path:
    save_checkpoint(
        path, Checkpoint(dict(build_model(config).state_dict()), config, DiffusionTask.on(scheduler_config()), {})
    )
    return path


@pytest.mark.parametrize("network", ["32-narrow", "32-deep", "32", "32-wide"])
def test_a_checkpoint_brings_in_its_network(network: str, tmp_path: Path) -> None:
    path = saved_checkpoint(tmp_path / "mine.safetensors", NETWORKS[network])
    measurements = make_plan(Options(only=["strata"], checkpoints=[path])).measurements
    trained = {(each.case.network, each.checkpoint) for each in measurements if each.case.model == "trained"}
    assert trained == {("16", BUNDLED), (network, path)}


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = saved_checkpoint(tmp_path / "mine.safetensors", unet_config(32, block_out_channels=(8, 8)))
    with pytest.raises(SettingsError, match=r"mine\.safetensors: its model is none of the benchmark's; allowed: 16, "):
        make_plan(Options(checkpoints=[path]))


def test_attacks_contend_only_where_they_know_enough() -> None:
    measurements = make_plan(Options()).measurements
    assert all(each.case.threat is KNOWN for each in measurements if each.contender.attack in ("dlg", "gidm"))
    assert any(each.case.threat is PRIVATE for each in measurements if each.contender.attack == "gidm-plus")


def test_the_cheap_ones_come_first() -> None:
    costs = [each.contender.cost for each in make_plan(Options()).measurements]
    assert costs == sorted(costs)


def test_every_cell_gets_a_victim_before_any_gets_the_next() -> None:
    measurements = [each for each in make_plan(Options(networks=["16"])).measurements if each.contender.cost == 0]
    indices = [each.index for each in measurements]
    assert indices == sorted(indices)
    assert indices[-1] > 0


def test_named_attacks_replace_the_suites_own() -> None:
    plan = make_plan(Options(only=["batch"], attacks=["gidm-plus", "tests.attacks.toy_attacks:Guess", "dlg"]))
    assert {each.contender.name for each in plan.measurements} == {"gidm-plus", "guess"}


@pytest.mark.parametrize(("published", "present"), [(None, True), (True, True), (False, False)])
def test_published_recipes_are_a_matter_of_choice(published: bool | None, present: bool) -> None:
    names = {each.contender.name for each in make_plan(Options(only=["speed"], published=published)).measurements}
    assert ("gidm-published" in names) is present
    assert "residual" in names


def test_quick_and_published_together_race_the_published_recipe() -> None:
    names = {
        each.contender.name for each in make_plan(Options(only=["speed"], quick=True, published=True)).measurements
    }
    assert {"residual", "gidm-published"} <= names


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options(only=["stratta"]), "--only stratta: unknown.*did you mean 'strata'"),
        (Options(networks=["17"]), "--networks 17: unknown; allowed: 16"),
        (Options(networks=["128"]), "nothing to measure"),
        (Options(checkpoints=[Path("gone.safetensors")]), r"'gone\.safetensors'"),
    ],
)
def test_what_is_not_there_is_refused(options: Options, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        make_plan(options)


def test_the_networks_are_as_large_as_they_say() -> None:
    pytest.importorskip("denoising_diffusion_pytorch")
    with torch.device("meta"), trusting():
        trust([NETWORKS[OWN_NETWORK]["_factory"]])
        sizes = {name: count_parameters(build_model(config).parameters()) for name, config in NETWORKS.items()}
    assert {name: round(size / 1e6, 1) for name, size in sizes.items()} == {
        "16": 0.6,
        "16-classes": 0.6,
        "28-grey": 0.6,
        "28-grey-deep": 2.5,
        "32-narrow": 0.6,
        "32-deep": 2.5,
        "32": 3.6,
        "32-wide": 4.2,
        "64-narrow": 9.7,
        "ddpm-cifar10": 35.7,
        "lucidrains": 35.7,
        "64": 55.5,
        "128": 55.5,
    }


def test_every_contender_and_suite_is_one() -> None:
    for entries in SUITES.values():
        assert {name for entry in entries for name in (*entry.contenders, *entry.quick)} <= set(CONTENDERS)
    assert all(entry.case.suite == suite for suite, entries in SUITES.items() for entry in entries)
