import pytest
import torch
from torch import nn

from attacks.attack import AttackError
from attacks.model_inversion import fine_tuning
from attacks.model_inversion.conditional_prior import ConditionalPrior, train_prior
from attacks.model_inversion.fine_tuning import FineTuning, fine_tune
from attacks.model_inversion.margin_loss import MarginLoss
from attacks.model_inversion.target import Target
from fl_sim.diffusion import build_scheduler, scheduler_config
from tests.attacks.model_inversion.conftest import diff_mi

CLASSES = torch.tensor([0, 1, 2])


@pytest.fixture
def prior(target: Target) -> ConditionalPrior:
    training = diff_mi().training
    return train_prior(target, torch.arange(12).reshape(3, 4), training, target.generator("training"))


def tune(target: Target, prior: ConditionalPrior, **arguments):
    tuning = FineTuning(**{"epochs": 2, "steps": 4, "accuracy": 1.0, **arguments})
    return fine_tune(prior, MarginLoss().of(target), CLASSES, tuning, target.generator("fine-tuning"))


def changed(target: Target, prior: ConditionalPrior, **arguments) -> set[str]:
    before = {name: value.clone() for name, value in prior.model.state_dict().items()}
    tuned = tune(target, prior, **arguments).model
    assert all(torch.equal(value, before[name]) for name, value in prior.model.state_dict().items())
    return {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}


def test_only_the_named_parameters_are_trained_and_those_of_a_copy(target: Target, prior: ConditionalPrior) -> None:
    assert changed(target, prior) == {
        "class_embedding.weight",
        *(
            f"mid_block.resnets.{block}.conv{layer}.{kind}"
            for block in (0, 1)
            for layer in (1, 2)
            for kind in ("weight", "bias")
        ),
        "mid_block.attentions.0.to_out.0.weight",
        "mid_block.attentions.0.to_out.0.bias",
    }
    assert changed(target, prior, trainable=["conv_out.*"]) == {"conv_out.weight", "conv_out.bias"}


def test_no_such_parameter_is_one_line(target: Target, prior: ConditionalPrior) -> None:
    with pytest.raises(AttackError, match=r"fine_tuning.trainable = \['gone.\*'\]: no parameter"):
        tune(target, prior, trainable=["gone.*"])


class Remembering(nn.Module):
    """Knows one image for every label, which is all that it can learn; grey at first."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(4, 64)
        nn.init.zeros_(self.class_embedding.weight)

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        signal = build_scheduler(scheduler_config()).alphas_cumprod[timesteps][:, None, None, None]
        known = self.class_embedding(labels).reshape(-1, 1, 8, 8)
        return (x_t - signal.sqrt() * known) / (1 - signal).sqrt()


def test_the_classifier_comes_to_take_what_the_prior_samples_for_the_class(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConditionalPrior, "copy", lambda self, _: self)
    prior = ConditionalPrior(Remembering(), build_scheduler(scheduler_config()), null_label=3, config={})
    margin = MarginLoss(feature_weight=0).of(target)

    def loss() -> float:
        images = prior.model.class_embedding(CLASSES).reshape(3, 1, 8, 8).clamp(-1, 1)
        return margin(images, CLASSES).item()

    before = loss()
    tuning = FineTuning(epochs=40, steps=4, accuracy=1.0, lr=0.05, guidance=1.0)
    fine_tune(prior, margin, CLASSES, tuning, target.generator("fine-tuning"))
    assert loss() < before - 0.2


def test_late_predictions_are_judged_with_the_sample(target: Target, prior: ConditionalPrior) -> None:
    tuning = FineTuning(steps=10)
    judged = fine_tuning._judged(prior, CLASSES, torch.Size((1, 8, 8)), tuning, torch.Generator())
    assert len(judged) == 8
    few = fine_tuning._judged(prior, CLASSES, torch.Size((1, 8, 8)), FineTuning(steps=2), torch.Generator())
    assert len(few) == 1


@pytest.mark.parametrize(("accuracy", "epochs"), [(0.0, 1), (1.0, 3)])
def test_it_ends_once_the_classifier_names_enough(
    target: Target, prior: ConditionalPrior, accuracy, epochs, monkeypatch
) -> None:
    drawn: list[int] = []
    judged = fine_tuning._judged
    monkeypatch.setattr(fine_tuning, "_judged", lambda *args: drawn.append(1) or judged(*args))
    monkeypatch.setattr(fine_tuning.classification, "predict", lambda _, images: torch.zeros(len(images), 3))
    tune(target, prior, accuracy=accuracy, epochs=3)
    assert len(drawn) == epochs
