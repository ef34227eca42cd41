from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure, Observation
from attacks.timesteps.conditions import Conditions
from attacks.timesteps.duplicates import plausible_timesteps
from attacks.timesteps.recovery import MINIMAL_MARGIN, RecoveredTimesteps, recover_timesteps
from attacks.timesteps.time_layers import time_projections
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import MODEL, Victim, make_victim

WIDE = MODEL | {"block_out_channels": [32, 32]}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "flipped": {"flip_sin_to_cos": False},
    "shifted": {"freq_shift": 1},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
}
NOISE = 7


def recover(observation: Observation) -> RecoveredTimesteps:
    return recover_timesteps(InversionProblem(observation, "cpu"))


def draw(samples: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:samples].tolist())


def defended(victim: Victim, update: dict[str, Tensor], **defence: Any) -> Observation:
    circumstances = victim.observation.circumstances.model_copy(update={"defence": DefenceDisclosure(**defence)})
    return replace(victim.observation, update=update, circumstances=circumstances)


def noisy(victim: Victim, relative: float, seed: int = NOISE) -> tuple[dict[str, Tensor], float]:
    """The update with noise of ``relative`` times its norm, and the noise's standard deviation."""
    update = victim.observation.update
    flat = torch.cat([value.flatten() for value in update.values()])
    deviation = relative * float(flat.norm()) / flat.numel() ** 0.5
    generator = torch.Generator().manual_seed(seed)
    return {k: v + deviation * torch.randn(v.shape, generator=generator) for k, v in update.items()}, deviation


def without(victim: Victim, *parts: str) -> Observation:
    update = {k: v for k, v in victim.observation.update.items() if not any(part in k for part in parts)}
    return replace(victim.observation, update=update)


def assert_unknown(recovered: RecoveredTimesteps, samples: int) -> None:
    assert not recovered.known
    assert recovered.timesteps.tolist() == [-1] * samples
    assert not len(recovered.distinct)
    assert recovered.margin < MINIMAL_MARGIN


@pytest.mark.parametrize("samples", [1, 2, 4, 16])
def test_the_timesteps_of_a_batch_are_exact(samples):
    timesteps = draw(samples)
    recovered = recover(make_victim(timesteps, model_config=WIDE).observation)
    assert recovered.timesteps.tolist() == sorted(timesteps)
    assert recovered.distinct.equal(recovered.timesteps)
    assert recovered.margin > MINIMAL_MARGIN


@pytest.mark.parametrize("first", [0, 984])
def test_consecutive_timesteps_are_told_apart(first):
    timesteps = tuple(range(first, first + 16))
    assert recover(make_victim(timesteps, model_config=WIDE).observation).timesteps.tolist() == list(timesteps)


@pytest.mark.parametrize("timestep", [0, 1, 998, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_ends_of_the_schedule_are_told_from_their_neighbours(timestep, prediction_type):
    victim = make_victim((timestep,), prediction_type=prediction_type)
    assert recover(victim.observation).timesteps.tolist() == [timestep]


def test_samples_that_all_share_a_timestep_are_told():
    assert recover(make_victim((300,) * 3).observation).timesteps.tolist() == [300] * 3


@pytest.mark.parametrize("shared", [90, 350, 777])
def test_which_timestep_is_shared_is_ranked_but_not_claimed(shared):
    problem = InversionProblem(make_victim((90, 350, 777, shared)).observation, "cpu")
    recovered = recover_timesteps(problem)
    assert not recovered.known
    assert recovered.distinct.tolist() == [90, 350, 777]
    answers = [answer.timesteps.tolist() for answer in plausible_timesteps(problem, Conditions(recovered.distinct))]
    assert answers[0] == sorted([90, 350, 777, shared])
    assert sorted(answers) == [[90, 90, 350, 777], [90, 350, 350, 777], [90, 350, 777, 777]]


def test_two_surplus_samples_are_ranked_together():
    problem = InversionProblem(make_victim((90, 350, 350, 350)).observation, "cpu")
    answers = plausible_timesteps(problem, Conditions(torch.tensor([90, 350])), most=2)
    assert [answer.timesteps.tolist() for answer in answers] == [[90, 350, 350, 350], [90, 90, 350, 350]]


@pytest.mark.parametrize(("steps", "lr", "momentum"), [(2, 1e-2, 0.9), (2, 1e-3, 0.0), (4, 1e-2, 0.0), (4, 1e-3, 0.9)])
def test_local_steps_do_not_hide_them(steps, lr, momentum):
    timesteps = draw(steps, seed=steps)
    optimizer = LocalOptimizer(lr=lr, momentum=momentum)
    victim = make_victim(timesteps, local_steps=steps, optimizer=optimizer, model_config=WIDE)
    assert recover(victim.observation).timesteps.tolist() == sorted(timesteps)


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_one_step_of_adam_does_not_hide_them(samples):
    timesteps = draw(samples)
    victim = make_victim(timesteps, optimizer=LocalOptimizer(name="adam", lr=1e-3), model_config=WIDE)
    assert recover(victim.observation).timesteps.tolist() == sorted(timesteps)


def test_where_adam_leaves_only_signs_they_tell():
    victim = make_victim((437,), optimizer=LocalOptimizer(name="adam", lr=1e-3, eps=1e-14), model_config=WIDE)
    assert recover(victim.observation).timesteps.tolist() == [437]


@pytest.mark.parametrize(("timesteps", "lr"), [((90, 350), 1e-3), ((350, 90), 1e-4), ((700, 700), 1e-3)])
def test_two_steps_of_adam_tell_theirs_in_order(timesteps, lr):
    victim = make_victim(timesteps, local_steps=2, optimizer=LocalOptimizer(name="adam", lr=lr), model_config=WIDE)
    recovered = recover(victim.observation)
    assert recovered.timesteps.tolist() == list(timesteps)
    assert recovered.distinct.tolist() == sorted(set(timesteps))


@pytest.mark.parametrize(("steps", "batch_size"), [(3, 1), (2, 2)])
def test_more_steps_or_images_of_adam_are_unknown(steps, batch_size):
    timesteps = draw(steps * batch_size)
    victim = make_victim(timesteps, local_steps=steps, optimizer=LocalOptimizer(name="adam", lr=1e-3))
    assert_unknown(recover(victim.observation), steps * batch_size)


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_signs_tell_one_timestep(timestep):
    victim = make_victim((timestep,), model_config=WIDE)
    signs = {name: value.sign() for name, value in victim.observation.update.items()}
    assert recover(defended(victim, signs, signs=True)).timesteps.tolist() == [timestep]


def test_signs_of_two_tell_nothing_even_if_one_outweighs_the_other():
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise[1] *= 1000
    victim = make_victim((90, 350), noise=noise, model_config=WIDE)
    signs = {name: value.sign() for name, value in victim.observation.update.items()}
    assert_unknown(recover(defended(victim, signs, signs=True)), 2)


@pytest.mark.parametrize("told", [True, False])
def test_noise_of_a_tenth_of_the_gradient_does_not_hide_one(told):
    victim = make_victim((200,), model_config=WIDE)
    update, deviation = noisy(victim, 0.1)
    recovered = recover(defended(victim, update, noise_std=deviation if told else 0))
    assert recovered.timesteps.tolist() == [200]


def test_a_pair_that_no_single_exchange_improves_is_found_out():
    victim = make_victim((680, 682), seed=29, model_config=WIDE)
    update, deviation = noisy(victim, 0.1)
    # Without exchanges of pairs the answer is 681 and 683, by 5.2 standard deviations.
    assert recover(defended(victim, update, noise_std=deviation)).timesteps.tolist() == [680, 682]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 3),
    gap=st.integers(0, 2),
    relative=st.sampled_from([0.03, 0.1, 0.3, 1, 3]),
    told=st.booleans(),
    signs=st.booleans(),
    seed=st.integers(0, 99),
)
def test_under_noise_they_are_exact_or_unknown(samples, gap, relative, told, signs, seed):
    timesteps = [200 + gap * i for i in range(samples)]
    victim = make_victim(tuple(timesteps), seed=seed % 3)
    update, deviation = noisy(victim, relative, seed)
    if signs:
        update = {name: value.sign() for name, value in update.items()}
    recovered = recover(defended(victim, update, noise_std=deviation if told else 0, signs=signs))
    assert not recovered.known or recovered.timesteps.tolist() == timesteps
    assert recovered.distinct.tolist() in ([], sorted(set(timesteps)))


def test_a_factor_on_the_update_does_not_matter():
    victim = make_victim((90, 350))
    clipped = {name: 1e-4 * value for name, value in victim.observation.update.items()}
    assert recover(defended(victim, clipped, clip_norm=1e-3)).timesteps.tolist() == [90, 350]


@pytest.mark.parametrize("samples", [1, 3])
def test_a_fifth_of_the_entries_is_enough(samples):
    timesteps = draw(samples)
    victim = make_victim(timesteps, model_config=WIDE)
    update = victim.observation.update
    top = {k: torch.where(v.abs() > v.abs().flatten().quantile(0.8), v, 0) for k, v in update.items()}
    assert recover(defended(victim, top, sparsified=True)).timesteps.tolist() == sorted(timesteps)


@pytest.mark.parametrize("columns", [[], [15]])
def test_entries_that_several_timesteps_explain_equally_are_unknown(columns):
    # The slowest cosine of the embedding rounds to 1 for the first timesteps, as the bias' input is for all.
    victim = make_victim((1,), model_config=WIDE)
    first = "time_embedding.linear_1"
    kept = {f"{first}.{part}": victim.observation.update[f"{first}.{part}"] for part in ("weight", "bias")}
    chosen = torch.zeros(32).index_fill(0, torch.tensor(columns, dtype=torch.int64), 1)
    kept[f"{first}.weight"] = kept[f"{first}.weight"] * chosen
    assert_unknown(recover(defended(victim, kept, sparsified=True)), 1)


def test_inputs_that_are_a_little_off_count_against_the_margin(victim):
    problem = InversionProblem(victim.observation, "cpu")
    exact = recover_timesteps(problem)
    with torch.no_grad():
        problem.model.time_embedding.linear_1.weight *= 1.001
    off = recover_timesteps(problem)
    assert off.timesteps.equal(exact.timesteps)
    assert off.margin < exact.margin / 100


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_embedding_of_diffusers(embedding):
    timesteps = (5, 90, 91, 350, 777)
    victim = make_victim(timesteps, model_config=WIDE | EMBEDDINGS[embedding])
    assert recover(victim.observation).timesteps.tolist() == list(timesteps)


def test_a_learned_embedding_tells_alone():
    victim = make_victim((90, 350), model_config=WIDE | EMBEDDINGS["learned"])
    assert recover(without(victim, "time_emb")).timesteps.tolist() == [90, 350]


def test_the_timestep_0_that_a_fourier_embedding_cannot_take_is_no_candidate():
    victim = make_victim((437,), model_config=WIDE | EMBEDDINGS["fourier"])
    signs = {name: value.sign() for name, value in victim.observation.update.items()}
    assert recover(defended(victim, signs, signs=True)).timesteps.tolist() == [437]


def test_a_learned_embedding_tells_although_local_steps_move_it():
    model_config = WIDE | EMBEDDINGS["learned"]
    victim = make_victim((90, 350), local_steps=2, optimizer=LocalOptimizer(lr=0.3), model_config=model_config)
    assert recover(victim.observation).timesteps.tolist() == [90, 350]


def test_layers_that_were_not_trained_are_not_missed():
    victim = make_victim((90, 350, 777), model_config=WIDE)
    assert recover(without(victim, "time_embedding")).timesteps.tolist() == [90, 350, 777]
    assert recover(without(victim, "time_emb_proj", "linear_2")).timesteps.tolist() == [90, 350, 777]


def test_no_time_layer_at_all_is_unknown(victim):
    assert_unknown(recover(without(victim, "time_emb")), 1)


def test_local_steps_that_move_a_layers_input_leave_it_out():
    victim = make_victim((90, 350), local_steps=2, optimizer=LocalOptimizer(lr=0.3), model_config=WIDE)
    whole, first = recover(victim.observation), recover(without(victim, "time_emb_proj", "linear_2"))
    assert whole.timesteps.tolist() == [90, 350]
    assert whole.margin == first.margin


def test_more_samples_than_the_layers_have_inputs_are_unknown():
    assert_unknown(recover(make_victim(tuple(range(0, 1000, 14))).observation), 72)


def test_a_gradient_of_no_timestep_is_unknown(victim):
    problem = InversionProblem(victim.observation, "cpu")
    generator = torch.Generator().manual_seed(0)
    problem.gradient = {k: torch.randn(v.shape, generator=generator) for k, v in problem.gradient.items()}
    assert_unknown(recover_timesteps(problem), 1)


def test_time_projections_are_fed_what_the_model_feeds_them(victim):
    problem = InversionProblem(victim.observation, "cpu")
    seen = []
    problem.model.mid_block.resnets[0].time_emb_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    timesteps = torch.tensor([3, 400])
    diffusion.predict(problem.model, torch.zeros(2, 3, 8, 8), timesteps)
    projections = time_projections(problem, timesteps)
    assert projections is not None
    assert torch.allclose(projections.inputs, seen[0].double(), atol=1e-6)
