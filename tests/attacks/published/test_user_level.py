import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.memory import estimate_memory
from attacks.observation import DefenceDisclosure
from attacks.published.denoising_prior import load_denoising_prior
from attacks.published.user_level import SharedGradient, UserLevel
from attacks.registry import create
from fl_sim import diffusion, network
from fl_sim.checkpoint import Checkpoint
from fl_sim.diffusion import DiffusionTask
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import (
    CLASS_CONDITIONAL,
    MODEL,
    SHAPE,
    Victim,
    draw_images,
    make_classification_victim,
    make_victim,
    psnr,
)
from tests.attacks.finite_differences import assert_derivative, double_problem

ADAM = LocalOptimizer(name="adam", lr=1e-3)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    """A small diffusion model that has learnt 300 smooth images; it takes seconds."""
    torch.manual_seed(3)
    model, schedule = network.build_model(MODEL), diffusion.scheduler_config()
    scheduler, optimizer = diffusion.build_scheduler(schedule), torch.optim.Adam(model.parameters(), lr=3e-3)
    images = draw_pictures(torch.Generator().manual_seed(77), 300)
    for _ in range(120):
        batch = images[torch.randint(len(images), (16,))]
        optimizer.zero_grad()
        diffusion.loss(model, scheduler, batch, torch.randn_like(batch), torch.randint(1000, (16,))).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    Checkpoint(model.state_dict(), MODEL, DiffusionTask.on(schedule), {}).save(path)
    return str(path)


def draw_pictures(generator: torch.Generator, count: int = 1) -> torch.Tensor:
    """Smooth images of high contrast: no two are alike."""
    return (2.5 * draw_images(generator, count)).clamp(-1, 1)


def like_minded(count: int = 8, seed: int = 0) -> Victim:
    """A client whose images of one class are one picture, each with a detail of its own."""
    generator = torch.Generator().manual_seed(seed + 40)
    picture = draw_pictures(generator)
    images = (picture + 0.3 * torch.randn(count, *SHAPE, generator=generator)).clamp(-1, 1)
    return make_classification_victim((1,) * count, classifier="ConvNet", num_classes=2, images=images)


def shared(victim: Victim, draws: int = 4) -> SharedGradient:
    return SharedGradient(
        InversionProblem(victim.observation, "cpu"), draws, "one-sided", torch.Generator().manual_seed(0)
    )


def to_mean(victim: Victim, images: torch.Tensor) -> float:
    return psnr(images, (victim.images.mean(dim=0, keepdim=True) + 1) / 2)


def test_the_constraint_is_the_cosine_distance_of_the_gradient_under_the_soft_label():
    victim = make_classification_victim((3, 8, 8), classifier="ConvNet", known=True)
    image = draw_images(torch.Generator().manual_seed(9))
    problem = InversionProblem(victim.observation, "cpu")
    logits = problem.model(image)
    loss = -(logits.log_softmax(dim=1) @ torch.tensor([0, 0, 0, 1 / 3, 0, 0, 0, 0, 2 / 3, 0])).sum()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(problem.parameters.values()))])
    observed = torch.cat([victim.observation.update[name].flatten() for name in problem.parameters])
    cosine = torch.nn.functional.cosine_similarity(gradient, observed, dim=0)
    assert shared(victim).value([image]) == pytest.approx(1 - float(cosine), abs=1e-5)


def test_the_constraint_has_its_derivative():
    victim = make_classification_victim((3, 8, 8), classifier="LeNet", known=True)
    problem = double_problem(victim.observation)
    matching = SharedGradient(problem, 1, "double-backward", torch.Generator())
    matching.soft_label = matching.soft_label.double()
    assert_derivative(matching, [(1, *SHAPE)], relative=1e-4, step=1e-5)


def test_a_batch_of_one_image_under_several_labels_is_matched_exactly():
    image = draw_images(torch.Generator().manual_seed(9))
    victim = make_classification_victim((1, 3, 3, 3), images=image.repeat(4, 1, 1, 1), known=True)
    assert shared(victim).value([image]) < 1e-6


def test_dictated_noise_and_timesteps_are_used_as_they_are():
    image = draw_images(torch.Generator().manual_seed(9))
    victim = make_victim((80, 300, 600), images=image.repeat(3, 1, 1, 1), known=True)
    assert shared(victim).value([image]) < 1e-6


def test_private_noise_is_drawn_anew_at_the_timesteps_that_the_update_shows():
    victim = make_victim((600, 80, 300))
    matching, image = shared(victim), draw_images(torch.Generator().manual_seed(9))
    assert matching.conditions.timesteps.tolist() == [80, 300, 600]
    seen = [(matching.value([image]), matching._noise.clone(), matching._drawn.timesteps.tolist()) for _ in range(2)]
    assert seen[0][0] != seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert set(seen[0][2]) == {80, 300, 600}
    assert len(seen[0][2]) == 4


def test_labels_are_drawn_with_their_timesteps():
    victim = make_victim((600, 80), model_config=CLASS_CONDITIONAL, labels=(2, 7))
    matching = shared(victim, draws=2)
    matching._draw()
    pairs = set(zip(*(values.tolist() for values in matching._drawn), strict=True))
    assert pairs == {(600, 2), (80, 7)}
    assert matching.common_label.tolist() == [-1]


def test_the_timestep_falls_as_the_formula_says():
    attack = UserLevel(prior="global", timestep_jitter=0)
    generator = torch.Generator()
    assert attack.timestep(0, 200, 1000, generator) == 999
    for step in (1, 60, 100, 199):
        wave = (200 - step) / 1.5 + (200 - step) / 3 * math.cos(step / 10)
        assert attack.timestep(step, 200, 1000, generator) == int(wave / 200 * 800 + 200) - 1
    assert attack.timestep(199, 200, 1000, generator) == 202
    jittered = [UserLevel(prior="global").timestep(100, 200, 1000, generator) for _ in range(200)]
    assert min(jittered) >= 353 - 50
    assert max(jittered) <= 353 + 50
    assert len(set(jittered)) > 50
    early = [UserLevel(prior="global").timestep(0, 200, 1000, generator) for _ in range(50)]
    assert max(early) == 999


def test_an_ancestral_step_between_neighbours_is_ddpms_own():
    problem = InversionProblem(make_victim().observation, "cpu")
    prior = load_denoising_prior(problem, "global", None)
    x_t, x0, fresh = (torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    table, betas = problem.scheduler.alphas_cumprod, problem.scheduler.betas
    mean = table[499].sqrt() * betas[500] / (1 - table[500]) * x0
    mean = mean + (1 - betas[500]).sqrt() * (1 - table[499]) / (1 - table[500]) * x_t
    variance = (1 - table[499]) / (1 - table[500]) * betas[500]
    torch.testing.assert_close(prior.step(x_t, x0, 500, 499, fresh), mean + variance.sqrt() * fresh)
    assert torch.equal(prior.step(x_t, x0, 0, -1, fresh), x0)


def test_every_step_asks_the_prior(prior, monkeypatch):
    asked = []
    predict = diffusion.predict

    def note(model, x_t, timesteps, labels=None):
        asked.append(int(timesteps[0]))
        return predict(model, x_t, timesteps, labels)

    monkeypatch.setattr("attacks.published.denoising_prior.diffusion.predict", note)
    observation = like_minded().observation
    create("user-level", {"prior": prior, "method": "dps", "steps": 12}).reconstruct(observation, seed=1)
    assert (len(asked), asked[0], asked[-1]) == (12, 999, 0)
    asked.clear()
    create("user-level", {"prior": prior, "steps": 8, "final_steps": 5}).reconstruct(observation, seed=1)
    assert len(asked) == 8 + 5
    assert asked[8:] == [99, 74, 50, 25, 0]


@pytest.mark.parametrize("method", ["none", "plug-and-play", "dps", "prior-only"])
def test_the_same_seed_gives_one_image_bit_for_bit(method, prior):
    arguments = {"method": method, "steps": 8} | ({} if method == "none" else {"prior": prior})
    first, again = (create("user-level", arguments).reconstruct(like_minded().observation, seed=7) for _ in range(2))
    other = create("user-level", arguments).reconstruct(like_minded().observation, seed=8)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (1, *SHAPE)
    assert (first.timesteps.tolist(), first.labels.tolist(), first.representative) == ([-1], [1], True)
    assert first.evaluations == (1 if method == "prior-only" else 9)


def test_it_finds_what_a_clients_images_share(prior):
    """Chance is what the prior makes without the update; on images this small no prior is needed."""
    victim = like_minded()
    reached = {
        method: to_mean(victim, create("user-level", arguments).reconstruct(victim.observation, seed=7).images)
        for method, arguments in {
            "none": {"steps": 200},
            "plug-and-play": {"prior": prior, "steps": 60},
            "dps": {"prior": prior, "method": "dps", "steps": 60},
            "prior-only": {"prior": prior, "method": "prior-only", "steps": 60},
        }.items()
    }
    assert reached["none"] > 15
    assert reached["plug-and-play"] > reached["prior-only"] + 4
    assert reached["dps"] > reached["prior-only"] + 1


def test_prior_alone_does_not_depend_on_the_update(prior):
    attack = create("user-level", {"prior": prior, "method": "prior-only", "steps": 8})
    one, other = (attack.reconstruct(like_minded(seed=seed).observation, seed=7) for seed in (0, 1))
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    "victim",
    [
        make_classification_victim((1,) * 6, num_classes=2, local_steps=3, optimizer=ADAM),
        make_classification_victim((1,), num_classes=2, optimizer=ADAM),
        make_classification_victim((0, 1, 1), num_classes=2, defence=DefenceDisclosure(signs=True)),
        make_victim((80, 600), local_steps=2, optimizer=ADAM),
    ],
    ids=["adam-steps", "adam-step", "signs", "diffusion-adam"],
)
def test_it_takes_any_update(victim):
    result = create("user-level", {"steps": 8, "draws": 2}).reconstruct(victim.observation, seed=7)
    assert result.images.shape == (1, *SHAPE)
    assert 0 < result.matching_loss < 1.5


def test_entries_that_were_not_sent_do_not_count():
    generator = torch.Generator().manual_seed(1)

    def drop(update):
        return {name: torch.where(torch.rand(v.shape, generator=generator) < 0.5, v, 0.0) for name, v in update.items()}

    image = draw_images(torch.Generator().manual_seed(9))
    images = image.repeat(4, 1, 1, 1)
    sparse = {"images": images, "known": True, "defend": drop}
    known = make_classification_victim((1, 3, 3, 3), **sparse, defence=DefenceDisclosure(sparsified=True))
    assert shared(known).value([image]) < 1e-6
    assert shared(make_classification_victim((1, 3, 3, 3), **sparse)).value([image]) > 0.05


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"method": "dps"}, r"method = 'dps': .*needs a prior"),
        ({"method": "prior-only"}, r"method = 'prior-only': .*needs a prior"),
        ({"method": "none", "prior": "global"}, r"method = 'none': .*uses no prior"),
        ({"method": "gan", "prior": "global"}, r"method = 'gan'"),
        ({"steps": 0}, r"steps = 0"),
        ({"draws": 0}, r"draws = 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, reason):
    with pytest.raises(AttackError, match=reason):
        create("user-level", arguments)


def test_a_prior_that_is_none_is_refused(tmp_path: Path):
    observation = like_minded().observation
    with pytest.raises(AttackError, match="that is a classifier; allowed: the path of a checkpoint"):
        create("user-level", {"prior": "global"}).reconstruct(observation, seed=1)
    with pytest.raises(AttackError, match="is no usable checkpoint"):
        create("user-level", {"prior": str(tmp_path / "nowhere")}).reconstruct(observation, seed=1)


def test_the_global_model_may_be_the_prior():
    result = create("user-level", {"prior": "global", "steps": 8, "draws": 2}).reconstruct(
        make_victim((80, 600)).observation, seed=7
    )
    assert result.labels is None
    assert result.images.shape == (1, *SHAPE)


def test_a_large_batch_takes_no_more_memory_than_the_draws():
    victim = make_victim((400,), optimizer=ADAM)
    one = victim.observation
    many = replace(one, circumstances=one.circumstances.model_copy(update={"batch_size": 5000, "local_steps": 20}))
    attack = UserLevel(draws=4)
    needed = [estimate_memory(seen, attack.update_copies, 0, attack.images_at_once(seen)) for seen in (one, many)]
    assert needed[0] == needed[1] < 100 < estimate_memory(many, attack.update_copies, 0)
    assert attack.images_at_once(like_minded().observation) == 1
    assert attack.images_at_once(make_victim((80, 300, 600), known=True).observation) == 3
