import math
import re
from dataclasses import replace

import pytest
import torch

from attacks.attack import MEANING, AttackError, Needs, Outcome
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure, Observation
from attacks.registry import ATTACKS, create
from fl_sim import registry
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import MODEL, Victim, make_classification_victim, make_victim, psnr, summed
from tests.attacks.toy_attacks import Guess

_GRADIENT = Needs.GRADIENT | Needs.MAGNITUDES
BUILT_IN = {
    "dlg": Needs.NOISE_AND_TIMESTEPS | _GRADIENT,
    "gidm": Needs.NOISE_AND_TIMESTEPS | _GRADIENT,
    "gidm-plus": Needs.DIFFUSION_TASK | _GRADIENT,
    "gradient-guided-finetuning": _GRADIENT,
    "gradient-guided-sampling": Needs.NOISE_AND_TIMESTEPS | _GRADIENT,
    "inverting-gradients": Needs.NOISE_AND_TIMESTEPS | Needs.SGD_STEPS | Needs.OWN_SIGNS,
    "residual": Needs.DIFFUSION_TASK | Needs.LOCAL_STEPS | Needs.OWN_SIGNS,
    "user-level": Needs.NOTHING,
}


def test_the_built_in_attacks_are_registered_under_their_names():
    assert set(BUILT_IN) == set(ATTACKS.built_in) <= set(ATTACKS.names())
    assert [create(name).name for name in BUILT_IN] == list(BUILT_IN)


def test_a_dotted_path_names_an_attack():
    assert ATTACKS.find("tests.attacks.toy_attacks:Guess") is Guess


def test_an_entry_point_names_an_attack(monkeypatch):
    monkeypatch.setattr(registry, "plugins", lambda _: {"guess": "tests.attacks.toy_attacks:Guess"})
    assert "guess" in ATTACKS.names()
    assert isinstance(create("guess"), Guess)


def test_entry_points_of_the_documented_group_are_read(monkeypatch):
    groups = []
    monkeypatch.setattr(registry, "entry_points", lambda group: groups.append(group) or [])
    registry.plugins.__wrapped__("fl_sim.attacks")
    assert groups == ["fl_sim.attacks"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("residuel", "did you mean 'residual'"),
        ("nothing:Here", "cannot be imported"),
        ("attacks.attack:Nothing", "cannot be imported"),
        ("attacks.attack:Outcome", "no subclass"),
        ("attacks.attack:Attack", "abstract, it lacks search"),
    ],
)
def test_an_attack_that_is_none_is_refused(name, message):
    with pytest.raises(AttackError, match=message):
        ATTACKS.find(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "residual",
            {"max_evaluation": 5},
            "attack 'residual': max_evaluation = 5: .*residual takes: starts, max_eval",
        ),
        ("dlg", {"max_evaluations": 0}, "attack 'dlg': max_evaluations = 0: .*greater than or equal to 1"),
        ("gidm", {"recipe": "long"}, "attack 'gidm': recipe = 'long': .*'short' or 'published'"),
        ("gidm-plus", {"timestep": "guess"}, "attack 'gidm-plus': timestep = 'guess'"),
        ("residual", {"derivative": "none"}, "attack 'residual': derivative = 'none'"),
    ],
)
def test_a_wrong_argument_is_one_line(name, arguments, message):
    with pytest.raises(AttackError, match=message) as caught:
        create(name, arguments)
    assert "\n" not in str(caught.value)


def test_what_came_from_settings_is_named_as_there():
    with pytest.raises(AttackError, match=r"^attack\.name = 'residuel': unknown; .*did you mean 'residual'"):
        create("residuel", table="attack")
    with pytest.raises(AttackError, match=r"^attack\.args\.gidm\.recipe = 'long': .*'short' or 'published'"):
        create("gidm", {"recipe": "long"}, table="attack")


def observation_lacking(need: Needs) -> Observation:
    if need is Needs.NOISE_AND_TIMESTEPS:
        return make_victim().observation
    if need is Needs.DIFFUSION_TASK:
        return make_classification_victim().observation
    if need is Needs.MAGNITUDES:
        return make_victim(known=True, defence=DefenceDisclosure(signs=True)).observation
    if need is Needs.OWN_SIGNS:
        return summed(make_victim((1, 2), known=True, defence=DefenceDisclosure(signs=True)).observation)
    if need in (Needs.LOCAL_STEPS, Needs.SGD_STEPS):
        return summed(make_victim((1, 2), known=True, optimizer=LocalOptimizer(name="adam", lr=0.1)).observation)
    return make_victim((1, 2), known=True, local_steps=2, optimizer=LocalOptimizer(lr=0.1)).observation


@pytest.mark.parametrize("need", Needs)
def test_an_observation_that_lacks_what_an_attack_needs_is_refused_by_name(need, monkeypatch):
    observation = observation_lacking(need)
    Guess().reconstruct(observation, seed=100)
    monkeypatch.setattr(Guess, "needs", need)
    with pytest.raises(AttackError, match=f"attack 'guess' needs {re.escape(MEANING[need])}: "):
        Guess().reconstruct(observation, seed=100)


def test_a_single_sgd_step_is_as_good_as_a_gradient_and_an_adam_step_is_not(monkeypatch):
    monkeypatch.setattr(Guess, "needs", Needs.GRADIENT)
    Guess().reconstruct(make_victim(optimizer=LocalOptimizer(lr=0.1)).observation, seed=100)
    adam = LocalOptimizer(name="adam", lr=0.1)
    with pytest.raises(AttackError, match="needs a gradient"):
        Guess().reconstruct(make_victim(optimizer=adam).observation, seed=100)


@pytest.mark.parametrize(("name", "needs"), BUILT_IN.items())
def test_the_built_in_attacks_say_what_they_need(name, needs):
    assert ATTACKS.find(name).needs == needs
    if Needs.NOISE_AND_TIMESTEPS in needs:
        with pytest.raises(AttackError, match="needs noise and timesteps"):
            create(name).reconstruct(make_victim().observation, seed=100)


def test_one_client_s_adam_step_or_signs_are_no_sum_of_several(victim):
    for optimizer, defence in ((LocalOptimizer(name="adam", lr=0.1), None), (None, DefenceDisclosure(signs=True))):
        seen = make_victim((1, 2), optimizer=optimizer, defence=defence).observation
        create("residual").check(seen)
        with pytest.raises(AttackError, match=r"needs (a gradient|the signs)"):
            create("residual").check(summed(seen))


@pytest.mark.parametrize(
    "name", ["dlg", "gidm", "gradient-guided-finetuning", "gradient-guided-sampling", "inverting-gradients"]
)
def test_an_update_below_float32_s_range_is_one_line(name, short_recipe, known_victim):
    update = {key: value * 1e-30 for key, value in known_victim.observation.update.items()}
    with pytest.raises(AttackError, match=f"^attack '{name}' broke down: .*$"):
        create(name, ARGUMENTS.get(name)).reconstruct(replace(known_victim.observation, update=update), seed=101)


def test_what_is_no_number_is_no_result(monkeypatch, victim):
    broken = Outcome(torch.full((1, 3, 8, 8), math.nan), torch.tensor([400]), 0.1)
    monkeypatch.setattr(Guess, "search", lambda *_: broken)
    with pytest.raises(AttackError, match="attack 'guess' broke down"):
        Guess().reconstruct(victim.observation, seed=100)


def test_the_search_runs_in_full_precision_and_the_old_settings_come_back(monkeypatch, victim):
    seen = []
    cudnn = torch.backends.cudnn

    def settings() -> tuple:
        return torch.get_float32_matmul_precision(), cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32

    search = Guess.search
    monkeypatch.setattr(Guess, "search", lambda *args: (seen.append(settings()), search(*args))[1])
    torch.set_float32_matmul_precision("medium")
    try:
        before = settings()
        Guess().reconstruct(victim.observation, seed=100)
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", True, False, False)]


def test_the_result_is_an_image_with_everything_about_the_attack(victim):
    result = create("residual", {"max_evaluations": 3}).reconstruct(victim.observation, seed=9)
    assert result.images.shape == (1, 3, 8, 8)
    assert result.images.dtype == torch.float32
    assert 0 <= float(result.images.min()) <= float(result.images.max()) <= 1
    assert result.timesteps.dtype == torch.int64
    assert (result.attack, result.seed, result.device) == ("residual", 9, "cpu")
    assert result.settings["max_evaluations"] == 3
    assert result.evaluations >= 3


ARGUMENTS = {
    "gidm": {"phases": "latent"},
    "gradient-guided-finetuning": {"sampler_steps": 2, "iterations": 5},
    "gradient-guided-sampling": {"steps": 10},
    "dlg": {"max_evaluations": 10},
    "inverting-gradients": {"iterations": 24},
    "residual": {"max_evaluations": 10},
    "user-level": {"steps": 12, "draws": 2},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(name, short_recipe, known_victim):
    runs = [create(name, ARGUMENTS.get(name)).reconstruct(known_victim.observation, seed) for seed in (5, 5, 6)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert torch.equal(runs[0].timesteps, runs[1].timesteps)
    assert runs[0].matching_loss == runs[1].matching_loss
    assert not torch.equal(runs[0].images, runs[2].images)


@pytest.fixture
def random_update(known_victim) -> Observation:
    generator = torch.Generator().manual_seed(3)
    honest = known_victim.observation
    update = {name: torch.randn(value.shape, generator=generator) for name, value in honest.update.items()}
    return replace(honest, update=update)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_random_update_tells_nothing(name, short_recipe, known_victim, random_update):
    # In 100 steps the user-level attack finds the image of the honest update, in 30 not yet.
    arguments = ARGUMENTS | {"user-level": {"steps": 100, "draws": 2}}
    result = create(name, arguments.get(name)).reconstruct(random_update, seed=101)
    chance = known_victim.psnr(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4)))
    assert known_victim.psnr(result.images) < chance + 6


def test_no_timestep_is_read_off_a_random_update(random_update):
    with pytest.raises(AttackError, match="timesteps cannot be read off"):
        create("residual", {"search_timestep": False}).reconstruct(
            replace(random_update, noise=None, timesteps=None), seed=1
        )


@pytest.mark.parametrize(
    ("need", "changes", "reason"),
    [
        (
            Needs.LOCAL_STEPS,
            {"local_steps": 4},
            r"here are 4 Adam steps \(local_steps = 4\); of Adam only a single step reveals",
        ),
        (Needs.GRADIENT, {"local_steps": 2, "optimizer": "sgd"}, r"here are 2 SGD steps \(local_steps = 2\)$"),
        (
            Needs.LOCAL_STEPS,
            {"local_steps": 4, "optimizer": "adamw"},
            r"here are 4 AdamW steps \(local_steps = 4\); of AdamW only a single step",
        ),
        (Needs.SGD_STEPS, {"local_steps": 1}, r"here are one Adam step \(local_steps = 1\); of Adam"),
        (Needs.GRADIENT, {"local_steps": 1}, r"here are one Adam step \(local_steps = 1\); of Adam"),
        (Needs.NOISE_AND_TIMESTEPS, {"local_steps": 1}, r"the server dictated \(threat = 'known'\): here clients drew"),
    ],
)
def test_a_refusal_says_what_there_is_instead(monkeypatch, need, changes, reason):
    monkeypatch.setattr(Guess, "needs", need)
    optimizer = LocalOptimizer(name=changes.get("optimizer", "adam"), lr=0.1)
    steps = changes["local_steps"]
    seen = make_victim(tuple(range(steps)), local_steps=steps, optimizer=optimizer).observation
    with pytest.raises(AttackError, match=reason) as caught:
        Guess().check(seen)
    assert f"needs {MEANING[need]}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def at_zero_snr(prediction_type: str, timesteps: tuple[int, ...] = (999,), known: bool = False) -> Victim:
    """A client whose noisy image at t = 999 holds nothing of the image."""
    return make_victim(timesteps, prediction_type=prediction_type, known=known, zero_snr=True)


@pytest.mark.parametrize("known", [False, True])
def test_noise_that_hides_the_image_whole_is_the_reason_in_one_line(known):
    seen = at_zero_snr("epsilon", known=known).observation
    with pytest.raises(
        AttackError, match=r"at t = 999 the noisy image holds nothing of the image: .*ratio is 0"
    ) as line:
        create("residual", {"max_evaluations": 3}).reconstruct(seen, seed=100)
    assert "\n" not in str(line.value)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_what_the_network_predicts_tells_the_image_that_noise_hides(prediction_type, known):
    victim = at_zero_snr(prediction_type, known=known)
    assert victim.psnr(create("residual").reconstruct(victim.observation, seed=100).images) > 60


def test_beside_a_hidden_image_the_others_are_found():
    victim = at_zero_snr("epsilon", (999, 400), known=True)
    result = create("residual").reconstruct(victim.observation, seed=100)
    assert torch.equal(result.images[0], torch.full((3, 8, 8), 0.5))
    assert psnr(result.images[1], (victim.images[1] + 1) / 2) > 40


def test_the_attack_evaluates_without_the_dropout_that_it_knows_of():
    dropped = make_victim(model_config=MODEL | {"dropout": 0.5})
    problem = InversionProblem(dropped.observation, "cpu")
    assert not any(module.training for module in problem.model.modules())
    assert problem.circumstances.model["dropout"] == 0.5
    assert set(vars(dropped.observation)) == {"circumstances", "weights", "update", "noise", "timesteps", "labels"}
    assert dropped.observation.noise is dropped.observation.labels is None


@pytest.mark.parametrize(("factor", "reason"), [(1e-30, "the update's largest entry is"), (1.0, "ran away")])
def test_a_breakdown_has_a_reason(monkeypatch, victim, factor, reason):
    broken = Outcome(torch.full((1, 3, 8, 8), math.nan), torch.tensor([400]), 0.1)
    monkeypatch.setattr(Guess, "search", lambda *_: broken)
    update = {name: value * factor for name, value in victim.observation.update.items()}
    with pytest.raises(AttackError, match=f"attack 'guess' broke down: .*{reason}"):
        Guess().reconstruct(replace(victim.observation, update=update), seed=100)


def test_an_attack_that_raises_while_it_is_made_is_one_line() -> None:
    with pytest.raises(AttackError, match=r"attack '.*:Breaks' failed: RuntimeError: no luck today"):
        create("tests.attacks.toy_attacks:Breaks")
