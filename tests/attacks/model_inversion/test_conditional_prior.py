import pytest
import torch

from attacks.model_inversion.conditional_prior import PriorTraining, train_prior
from attacks.model_inversion.diff_mi import DiffMI
from attacks.model_inversion.target import Target
from fl_sim.network import ConfigError, count_parameters, outline

TINY = {"batch_size": 16, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "unet": {}}
CHOSEN = torch.tensor([[0, 1], [2, 3], [4, 4]])


def trained(target: Target, **arguments: object) -> torch.nn.Module:
    training = PriorTraining(**{**TINY, "steps": 2, **arguments})
    return train_prior(target, CHOSEN, training, target.generator("training")).model


def labels_told(target: Target, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> torch.Tensor:
    told: list[torch.Tensor] = []

    def loss(model, scheduler, x0, noise, timesteps, labels):
        told.append(labels)
        return sum(p.sum() for p in model.parameters()) * 0

    monkeypatch.setattr("attacks.model_inversion.conditional_prior.diffusion.loss", loss)
    trained(target, **arguments)
    return torch.cat(told)


def test_labels_are_dropped_one_by_one(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    told = labels_told(target, monkeypatch, steps=12, label_dropout=0.25)
    shares = (told.reshape(12, 16) == 3).float().mean(dim=1)
    assert 0.1 < shares.mean() < 0.4
    assert len(set(shares.tolist())) > 2  # not whole batches
    assert set(told.tolist()) == {0, 1, 2, 3}


def test_without_dropout_no_label_is_the_null_label(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(labels_told(target, monkeypatch, steps=5, label_dropout=0.0).tolist()) == {0, 1, 2}


def test_the_weights_are_the_moving_average_of_the_steps(target: Target) -> None:
    """After two steps it is d ema + (1 - d) w with d = 2/11: diffusers' warm-up; without decay the last weights."""
    first, second, average = (
        trained(target, **arguments).state_dict()
        for arguments in ({"steps": 1}, {"steps": 2, "ema_decay": 0}, {"steps": 2, "ema_decay": 0.9})
    )
    name = "conv_in.weight"
    torch.testing.assert_close(average[name], torch.lerp(second[name], first[name], 2 / 11))
    assert not torch.equal(first[name], second[name])


def test_a_copy_has_parameters_of_its_own_and_is_counted(target: Target) -> None:
    prior = train_prior(target, CHOSEN, PriorTraining(**TINY, steps=1), target.generator("training"))
    copied = prior.copy(target)
    before = target.evaluations
    noise = [p.noise(target.public[:2], 10, torch.tensor([0, 1]), 2.0) for p in (prior, copied)]
    assert torch.equal(*noise)
    assert target.evaluations == before + 8
    with torch.no_grad():
        next(copied.model.parameters()).add_(1)
    assert not torch.equal(next(copied.model.parameters()), next(prior.model.parameters()))


def test_the_published_network_is_that_of_the_recipe() -> None:
    config = DiffMI(recipe="published").training.unet_config(torch.Size((3, 64, 64)), 1000)
    network = outline(config)
    assert 5e7 < count_parameters(network.parameters()) < 3e8
    assert network.class_embedding.num_embeddings == 1001
    names = {name for name, _ in network.named_parameters()}
    attention = {name.split(".attentions.")[0] for name in names if ".attentions." in name}
    assert attention == {"down_blocks.2", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1"}


def test_a_size_that_does_not_go_through_the_network_is_one_line(target: Target) -> None:
    with pytest.raises(ConfigError, match="images of 8x8 pixels do not go through a network of 5 levels"):
        trained(target, block_out_channels=(8, 8, 8, 8, 8))
