import math
from collections.abc import Iterator

import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fl_sim import diffusion
from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.defences.defence import Defence
from fl_sim.defences.registry import create
from fl_sim.draws import Draw
from fl_sim.network import build_model, unet_config
from fl_sim.wire import ARRAYS
from tests.fl_sim.defences.stub import flat, train_message
from tests.fl_sim.federations import node_context, tiny_recipe, tiny_settings, weights_recipe

TASK = diffusion.DiffusionTask.on(diffusion.scheduler_config())
SCHEDULER = diffusion.build_scheduler(diffusion.scheduler_config())


def network(attention: bool = True, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = unet_config(16, block_out_channels=(8, 16), norm_num_groups=4, attention=attention)
    return build_model(config | changes)


def batch(samples: int = 3, labels: Tensor | None = None) -> Draw:
    generator = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(samples, 3, 16, 16, generator=generator) for _ in range(2))
    return Draw(images, noise, torch.tensor([20, 400, 900])[:samples], labels)


def one_by_one(model: nn.Module) -> Iterator[Tensor]:
    """The gradient of every image by itself, without Opacus."""
    for index in range(3):
        yield flat(diffusion.gradient(model, SCHEDULER, *list(batch().batches(1))[index]))


def private_gradient(model: nn.Module, defence: Defence, seed: int = 2, samples: int = 3) -> Tensor:
    gradient, _ = defence.batch_gradient(model, TASK, batch(samples), torch.Generator().manual_seed(seed))
    return flat(gradient)


@pytest.mark.parametrize(
    "changes",
    [{"attention": False}, {"attention": True}, {"time_embedding_type": "learned", "num_train_timesteps": 1000}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_without_noise_it_is_the_mean_of_every_images_clipped_gradient(changes: dict[str, object]) -> None:
    model = network(**changes)  # type: ignore[arg-type]
    assert ModuleValidator.validate(model) == []
    gradients = list(one_by_one(model))
    norms = sorted(float(gradient.norm()) for gradient in gradients)
    clip_norm = (norms[0] + norms[1]) / 2  # one is left alone, two are clipped
    expected = sum(gradient * min(1.0, clip_norm / float(gradient.norm())) for gradient in gradients) / 3
    found = private_gradient(model, create("dp-sgd", {"clip_norm": clip_norm, "noise_multiplier": 0.0}))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * clip_norm)


def test_without_clipping_or_noise_it_is_the_gradient_and_the_loss() -> None:
    model, defence = network(), create("dp-sgd", {"clip_norm": 1e6, "noise_multiplier": 0.0})
    expected, expected_loss = diffusion.gradient_and_loss(model, SCHEDULER, *batch())
    found, loss = defence.batch_gradient(model, TASK, batch(), torch.Generator())
    assert list(found) == list(expected)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-3, atol=1e-6)
    assert loss == pytest.approx(expected_loss)


def test_labels_of_a_class_conditional_network_take_part() -> None:
    model, defence = network(num_class_embeds=4), create("dp-sgd", {"clip_norm": 1e6, "noise_multiplier": 0.0})
    told = batch(labels=torch.tensor([2, 0, 2]))
    expected, _ = diffusion.gradient_and_loss(model, SCHEDULER, *told)
    found, _ = defence.batch_gradient(model, TASK, told, torch.Generator())
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-3, atol=1e-6)
    assert found["class_embedding.weight"].any(dim=1).tolist() == [True, False, True, False]


def test_with_dropout_it_is_the_gradient_under_the_masks_of_the_loss() -> None:
    model, defence = network(dropout=0.5), create("dp-sgd", {"clip_norm": 1e6, "noise_multiplier": 0.0})
    torch.manual_seed(3)
    expected, expected_loss = diffusion.gradient_and_loss(model, SCHEDULER, *batch())
    torch.manual_seed(3)
    found, loss = defence.batch_gradient(model, TASK, batch(), torch.Generator())
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-3, atol=1e-6)
    assert loss == pytest.approx(expected_loss)
    assert loss != pytest.approx(diffusion.gradient_and_loss(model, SCHEDULER, *batch())[1])


def test_the_noise_has_the_promised_deviation_over_many_draws() -> None:
    model = network(attention=False)
    clean = private_gradient(model, create("dp-sgd", {"clip_norm": 0.5, "noise_multiplier": 0.0}))
    noisy = create("dp-sgd", {"clip_norm": 0.5, "noise_multiplier": 2.0})
    draws = torch.stack([private_gradient(model, noisy, seed) - clean for seed in range(10)])
    assert float(draws.std()) == pytest.approx(0.5 * 2.0 / 3, rel=5e-3)
    assert abs(float(draws.mean())) < 5 * float(draws.std()) / math.sqrt(draws.numel())
    assert torch.equal(private_gradient(model, noisy, 0) - clean, draws[0])
    told = noisy.disclosure(tiny_recipe(batch_size=3))
    assert told == {"sample_clip_norm": 0.5, "gradient_noise_std": pytest.approx(1 / 3)}


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    private_gradient(model, create("dp-sgd"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(next(one_by_one(model)), next(one_by_one(network())))


def test_every_local_step_has_noise_of_its_own_and_a_run_repeats() -> None:
    recipe = weights_recipe(2)

    def state(*overrides: str) -> Tensor:
        settings = tiny_settings("defence.name=dp-sgd", "defence.args.noise_multiplier=5.0", *overrides)
        reply = build_client_app(settings)(train_message(recipe), node_context(1))
        return flat(reply.content.array_records[ARRAYS].to_torch_state_dict())

    sent = flat(train_message(recipe).content.array_records[ARRAYS].to_torch_state_dict())
    moved = state() - sent
    # lr 0.01 times two independent draws of deviation 5; the same draw twice would make it 0.1.
    assert float(moved.std()) == pytest.approx(0.05 * math.sqrt(2), rel=0.02)
    assert torch.equal(state(), state())
    assert not torch.equal(state(), state("client.seed=12"))


def test_accumulated_gradients_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"client\.gradient_accumulation = 2: dp-sgd .*allowed: 1"):
        create("dp-sgd").check(tiny_recipe(batch_size=4, gradient_accumulation=2))
    create("dp-sgd").check(tiny_recipe(batch_size=4))


def test_without_clipping_or_noise_it_is_the_weighted_gradient() -> None:
    model, defence = network(), create("dp-sgd", {"clip_norm": 1e6, "noise_multiplier": 0.0})
    expected = diffusion.gradient(model, SCHEDULER, *batch(), min_snr_gamma=5.0)
    weighted = TASK.model_copy(update={"min_snr_gamma": 5.0})
    found, _ = defence.batch_gradient(model, weighted, batch(), torch.Generator())
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-3, atol=1e-6)


def test_the_privacy_spent_is_opacus_figure_for_poisson_sampling() -> None:
    defence = create("dp-sgd", {"noise_multiplier": 1.1, "delta": 1e-5})
    recipe = weights_recipe(4).model_copy(update={"batch_size": 2})
    accountant = RDPAccountant()
    for _ in range(3 * 4):
        accountant.step(noise_multiplier=1.1, sample_rate=2 / 50)
    spent = defence.privacy(recipe, images=50, rounds=3)
    assert spent is not None
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(1e-5))
    by_round = [defence.privacy(recipe, 50, rounds).epsilon for rounds in (0, 1, 2, 3, 30)]  # type: ignore[union-attr]
    assert by_round == sorted(set(by_round))


def test_an_image_that_a_batch_takes_twice_counts_twice() -> None:
    recipe = tiny_recipe(batch_size=4)
    once, twice = (
        create("dp-sgd", {"noise_multiplier": multiplier}).privacy(recipe, images, 1)
        for multiplier, images in ((1.0, 4), (2.0, 2))
    )
    assert once == twice
