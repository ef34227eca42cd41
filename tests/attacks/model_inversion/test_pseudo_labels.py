import torch

from attacks.model_inversion.pseudo_labels import most_confident


def test_the_most_probable_images_of_every_class_come_first() -> None:
    logits = torch.tensor([[5.0, 5.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [9.0, 0.0, 9.0]])
    assert most_confident(logits, 2).tolist() == [[1, 3], [2, 0], [3, 1]]


def test_probabilities_of_one_are_told_apart() -> None:
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0], [25.0, 0.0]])
    assert most_confident(logits, 3)[0].tolist() == [1, 2, 0]


def test_there_are_no_more_than_there_are_images() -> None:
    assert most_confident(torch.zeros(2, 4), 30).shape == (4, 2)
