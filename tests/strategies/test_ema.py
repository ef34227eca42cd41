import torch

from strategies.ema import WeightAverage


def test_it_starts_at_the_first_weights_and_follows_the_others_slowly():
    average = WeightAverage(0.75)
    average.update({"w": torch.tensor([4.0, 0.0]), "steps": torch.tensor(1)})
    first = average.weights["w"].clone()
    average.update({"w": torch.tensor([0.0, 4.0]), "steps": torch.tensor(2)})
    assert torch.equal(first, torch.tensor([4.0, 0.0]))
    assert torch.equal(average.weights["w"], torch.tensor([3.0, 1.0]))
    assert average.weights["steps"] == 2
    average.update({"w": torch.tensor([3.0, 1.0]), "steps": torch.tensor(3)})
    assert torch.equal(average.weights["w"], torch.tensor([3.0, 1.0]))


def test_weights_that_change_afterwards_do_not_change_it():
    average, weights = WeightAverage(0.5), {"w": torch.tensor([1.0])}
    average.update(weights)
    weights["w"].fill_(9.0)
    assert average.weights["w"] == 1.0
