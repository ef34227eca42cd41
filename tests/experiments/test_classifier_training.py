import torch

from experiments.classifier_training import train_classifier
from fl_sim.classification import accuracy, predict

CONFIG = {"_class_name": "ConvNet", "num_classes": 2, "image_size": [6, 6], "in_channels": 1, "channels": [4]}


def test_it_learns_and_repeats_and_leaves_the_global_generator_alone() -> None:
    labels = torch.arange(40) % 2
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - labels[:, None, None, None]
    before = torch.get_rng_state()
    model, again = (train_classifier(CONFIG, images, labels, 60, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert accuracy(predict(model, images), labels) > 0.95
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
