import pytest
import torch

from experiments.bench import one_class_each
from experiments.bench.one_class_each import train_one_class_each
from fl_sim.classification import accuracy, predict
from fl_sim.client_app import local_training

CONFIG = {"_class_name": "ConvNet", "num_classes": 3, "image_size": [6, 6], "in_channels": 1, "channels": [4]}


def test_no_client_sees_another_class_and_the_global_model_knows_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(recipe, weights, draw, device):
        seen.append(draw.labels.unique().tolist())
        return local_training(recipe, weights, draw, device)

    monkeypatch.setattr(one_class_each, "local_training", watched)
    images, labels = _stripes(60)
    model = train_one_class_each(CONFIG, images, labels, rounds=20, seed=1)
    assert seen == [[0], [1], [2]] * 20
    assert accuracy(predict(model, images), labels) > 0.9


def test_a_round_is_the_mean_of_the_clients_weighted_by_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter((1.0, 2.0, 4.0))

    def constant(recipe, weights, draw, device):
        value = next(values)
        return {name: torch.full_like(weight, value) for name, weight in weights.items()}, 0.0

    monkeypatch.setattr(one_class_each, "local_training", constant)
    labels = torch.tensor([0, 0, 1, 2])
    model = train_one_class_each(CONFIG, torch.zeros(4, 1, 6, 6), labels, rounds=1, seed=1)
    assert all((weight == 0.5 * 1 + 0.25 * 2 + 0.25 * 4).all() for weight in model.state_dict().values())


def test_it_repeats_and_leaves_the_global_generator_alone() -> None:
    images, labels = _stripes(12)
    before = torch.get_rng_state()
    model, again = (train_one_class_each(CONFIG, images, labels, rounds=1, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def _stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright row, which one says the class."""
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 1
    images[torch.arange(count), 0, 2 * labels] = 1.0
    return images, labels
