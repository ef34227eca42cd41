"""What holds for every registered attack, whatever it is set on; an attack gets a row in TINY to take part."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from attacks.attack import MEANING, AttackError, Needs
from attacks.observation import CaptureError, Circumstances, DefenceDisclosure, Observation
from attacks.published.gidm import RECIPES, Phases
from attacks.registry import ATTACKS, create
from attacks.timesteps.recovery import HiddenTimestepsError
from experiments.cli import app
from fl_sim import diffusion, network
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim

NAMES = sorted(ATTACKS.built_in)
LINE_SEARCH = 26
"""Evaluations by which torch's strong Wolfe search may overrun, and the one for the final matching loss."""

TINY: dict[str, tuple[dict[str, Any], int]] = {
    "dlg": ({"max_evaluations": 8}, 8 + LINE_SEARCH),
    "gidm": ({}, 7),
    "gidm-plus": ({}, 7),
    "gradient-guided-finetuning": ({"sampler_steps": 2, "iterations": 3, "candidates": 3}, 7),
    "gradient-guided-sampling": ({"steps": 4}, 4),
    "inverting-gradients": ({"iterations": 8}, 9),
    "residual": ({"max_evaluations": 8}, 14 + LINE_SEARCH),
    "user-level": ({"steps": 8, "draws": 2}, 9),
}
"""Arguments with a budget that takes no time, and the evaluations that it comes to for up to three images."""

few = settings(
    deadline=None,
    derandomize=True,
    max_examples=3,
    phases=[Phase.generate],  # looking for a simpler failure takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
many = settings(few, max_examples=25)


@pytest.fixture(scope="module", autouse=True)
def _tiny_recipe() -> Any:
    recipe = Phases(sampler_steps=2, latent_iterations=3, pixel_iterations=3, lr=0.1, solved_below=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "short", recipe)
        yield


@st.composite
def victims(draw: st.DrawFn) -> Victim:
    """A client, or the sum of two, of any image shape, prediction type, schedule and batch; images are noise."""
    shape = draw(st.sampled_from([1, 3])), *draw(st.sampled_from([(8, 8), (4, 8), (8, 6)]))
    # Hypothesis begins with what stands first, so that the few examples have a sum of clients among them.
    clients, batch_size = draw(st.sampled_from([(2, 1), (1, 1), (1, 2), (1, 3)]))
    prediction_type = draw(st.sampled_from(diffusion.PREDICTION_TYPES))
    samples, schedule = clients * batch_size, draw(st.sampled_from([20, 1000]))
    steps = draw(st.lists(st.integers(0, schedule - 1), min_size=samples, max_size=samples))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    model_config = network.unet_config(8, shape[0], block_out_channels=(8, 8), norm_num_groups=4)
    scheduler_config = diffusion.scheduler_config(schedule, prediction_type)
    model, scheduler = network.build_model(model_config), diffusion.build_scheduler(scheduler_config)
    images, noise, timesteps = torch.rand(samples, *shape) * 2 - 1, torch.randn(samples, *shape), torch.tensor(steps)
    mean = diffusion.gradient(model, scheduler, images, noise, timesteps)
    circumstances = Circumstances(
        round=1,
        client=0 if clients == 1 else -1,
        num_clients=clients,
        batch_size=batch_size,
        prediction_type=prediction_type,
        image_shape=shape,
        scheduler=scheduler_config,
        model=model_config,
    )
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    update = {name: value * clients for name, value in mean.items()}
    return Victim(Observation(circumstances, weights, update, noise, timesteps), images, noise, timesteps)


CASES = [(name, True) for name in NAMES] + [
    (name, False) for name in NAMES if Needs.NOISE_AND_TIMESTEPS not in ATTACKS.find(name).needs
]


@pytest.mark.parametrize(("name", "known"), CASES)
@few
@given(victim=victims(), seed=st.integers(0, 2**63 - 1))
def test_a_result_is_an_image_within_the_budget_and_repeatable(name: str, known: bool, victim: Victim, seed: int):
    observation = victim.observation if known else replace(victim.observation, noise=None, timesteps=None)
    arguments, budget = TINY[name]
    attack = create(name, arguments)
    try:
        result = attack.reconstruct(observation, seed)
    except HiddenTimestepsError:
        if known:
            raise
        reject()  # images that share a timestep, or have timesteps that cannot be told apart
    found = 1 if attack.representative else len(victim.images)
    assert result.images.shape == (found, *victim.images.shape[1:])
    assert result.representative == attack.representative
    assert result.images.dtype == torch.float32
    assert ((result.images >= 0) & (result.images <= 1)).all()
    assert result.timesteps.shape == (found,)
    assert result.timesteps.dtype == torch.int64
    schedule = observation.circumstances.task.scheduler["num_train_timesteps"]
    assert ((result.timesteps >= -1) & (result.timesteps < schedule)).all()
    assert math.isfinite(result.matching_loss)
    assert 1 <= result.evaluations <= budget
    again = attack.reconstruct(observation, seed)
    assert torch.equal(again.images, result.images)
    assert torch.equal(again.timesteps, result.timesteps)
    assert (again.matching_loss, again.evaluations) == (result.matching_loss, result.evaluations)


LOCAL_TRAINING = {
    "gradient": (None, 1),
    "one SGD step": (LocalOptimizer(lr=0.1, momentum=0.9), 1),
    "SGD steps": (LocalOptimizer(lr=0.1), 2),
    "one Adam step": (LocalOptimizer(name="adam", lr=0.1), 1),
    "two Adam steps": (LocalOptimizer(name="adam", lr=0.1), 2),
    "three Adam steps": (LocalOptimizer(name="adam", lr=0.1), 3),
}


def lacking(needs: Needs, known: bool, training: str, signs: bool, num_clients: int) -> list[str]:
    several = num_clients > 1
    lacks = {
        Needs.NOISE_AND_TIMESTEPS: not known,
        Needs.GRADIENT: training not in ("gradient", "one SGD step"),
        Needs.SGD_STEPS: "Adam" in training,
        Needs.LOCAL_STEPS: training == "three Adam steps"
        or (training == "two Adam steps" and (several or signs))
        or (training == "one Adam step" and several),
        Needs.OWN_SIGNS: signs and several,
        Needs.MAGNITUDES: signs,
        Needs.DIFFUSION_TASK: False,
    }
    return [need.name or "" for need in needs if lacks[need]]


@pytest.mark.parametrize("name", NAMES)
@many
@given(
    known=st.booleans(),
    training=st.sampled_from(list(LOCAL_TRAINING)),
    batch_size=st.integers(1, 3),
    signs=st.booleans(),
    num_clients=st.integers(1, 2),
)
def test_an_attack_refuses_exactly_what_lacks_its_needs(
    name: str, known: bool, training: str, batch_size: int, signs: bool, num_clients: int, known_victim: Victim
):
    optimizer, local_steps = LOCAL_TRAINING[training]
    circumstances = known_victim.observation.circumstances.model_copy(
        update={
            "update": "gradient" if optimizer is None else "delta",
            "local_optimizer": optimizer,
            "local_steps": local_steps,
            "batch_size": batch_size,
            "num_clients": num_clients,
            "client": 0 if num_clients == 1 else -1,
            "defence": DefenceDisclosure(signs=True) if signs else None,
        }
    )
    samples = batch_size * local_steps * num_clients
    dictated = {
        "noise": known_victim.noise.expand(samples, -1, -1, -1) if known else None,
        "timesteps": known_victim.timesteps.expand(samples) if known else None,
    }
    observation = replace(known_victim.observation, circumstances=circumstances, **dictated)
    attack = create(name, TINY[name][0])
    missing = lacking(attack.needs, known, training, signs, num_clients)
    if not missing:
        attack.check(observation)
        return
    with pytest.raises(AttackError) as caught:
        attack.reconstruct(observation, seed=100)
    assert all(MEANING[Needs[need]] in str(caught.value) for need in missing)
    assert "\n" not in str(caught.value)


@many
@given(data=st.data(), value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_entry_anywhere_that_is_no_number_spoils_an_update(data: st.DataObject, value: float, known_victim: Victim):
    update = known_victim.observation.update
    name = data.draw(st.sampled_from(sorted(update)))
    spoilt = update[name].clone()
    spoilt.view(-1)[data.draw(st.integers(0, spoilt.numel() - 1))] = value
    with pytest.raises(CaptureError, match=f"update/{name} holds NaN or infinite values"):
        replace(known_victim.observation, update=update | {name: spoilt})


@many
@given(data=st.data())
def test_no_tensor_of_an_update_may_have_another_shape(data: st.DataObject, known_victim: Victim):
    update = known_victim.observation.update
    name = data.draw(st.sampled_from(sorted(update)))
    right = tuple(update[name].shape)
    shape = data.draw(st.lists(st.integers(0, 4), max_size=5).map(tuple).filter(lambda shape: shape != right))
    with pytest.raises(CaptureError, match=rf"update/{name} has shape .*, the model has ") as caught:
        replace(known_victim.observation, update=update | {name: torch.zeros(shape)})
    assert "\n" not in str(caught.value)


WEIGHT = "conv_in.weight"
SPOILT: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "holds NaN or infinite": lambda update: update | {WEIGHT: update[WEIGHT] * math.nan},
    "update/conv_in.weight holds": lambda update: update | {WEIGHT: update[WEIGHT] * math.inf},
    "zero everywhere": lambda update: {name: value * 0 for name, value in update.items()},
    "update/conv_in.weight has shape": lambda update: update | {WEIGHT: update[WEIGHT][:1].contiguous()},
}


@pytest.mark.parametrize("complaint", SPOILT)
@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_says_in_one_line_what_is_wrong_with_an_update(
    name: str, complaint: str, known_victim: Victim, tmp_path: Path
):
    capture, out = tmp_path / "update.safetensors", tmp_path / "out"
    known_victim.observation.save(capture)
    with safe_open(capture, framework="pt") as file:
        metadata = file.metadata()
    update = SPOILT[complaint](known_victim.observation.update)
    save_file(load_file(capture) | {f"update/{key}": value for key, value in update.items()}, capture, metadata)
    result = CliRunner().invoke(app, ["attack", str(capture), "--attack", name, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert not out.exists()
