import pytest
import torch
from torch import nn

from attacks.model_inversion.margin_loss import MarginLoss, feature_centres, top_k_margin
from attacks.model_inversion.target import Target

LOGITS = torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 8.0, 0.0]])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, [-2.0, 0.0]),
        (1, [4.0 - 2.0, 8.0]),
        (2, [3.5 - 2.0, 4.0]),
        (3, [8 / 3 - 2.0, 8 / 3]),
        (20, [8 / 3 - 2, 8 / 3]),
    ],
)
def test_the_margin_is_over_the_k_largest_of_the_others(k: int, expected: list[float]) -> None:
    torch.testing.assert_close(top_k_margin(LOGITS, torch.tensor([2, 1]), k), torch.tensor(expected))


def test_a_classs_centre_is_the_mean_of_the_images_with_its_largest_logits() -> None:
    logits = torch.tensor([[3.0, 0.0], [2.0, 5.0], [0.0, 9.0]])
    features = torch.tensor([[1.0, 1.0], [3.0, 5.0], [7.0, 0.0]])
    assert feature_centres(logits, features, 2).tolist() == [[2.0, 3.0], [5.0, 2.5]]


def test_the_loss_is_margin_plus_weighted_feature_distance(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    monkeypatch.setattr(target, "classifier", nn.Sequential(nn.Flatten(), layer))
    monkeypatch.setattr(target, "public_logits", torch.eye(3))
    monkeypatch.setattr(target, "public_features", torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]]))
    loss = MarginLoss(top_k=1, feature_weight=3.0, feature_images=1).of(target)
    image = torch.tensor([[[[0.5, -1.0]]]])  # logits 0.5, -1.0, -0.5
    # margin: 0.5 + 1.0; features 0.5, -1.0 against 0.5, 0.0: (0 + 1) / 2
    torch.testing.assert_close(loss(image, torch.tensor([1])), torch.tensor(1.5 + 3.0 * 0.5))
