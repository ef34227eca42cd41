import pytest
import torch

from attacks.attack import AttackError
from attacks.model_inversion import fine_tuning
from attacks.model_inversion.conditional_prior import ConditionalPrior, train_prior
from attacks.model_inversion.fine_tuning import FineTuning, fine_tune
from attacks.model_inversion.margin_loss import MarginLoss
from attacks.model_inversion.target import Target
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


def test_it_lowers_the_loss_of_what_the_prior_samples(target: Target, prior: ConditionalPrior) -> None:
    loss, generator = MarginLoss().of(target), torch.Generator().manual_seed(5)
    latents = torch.randn(12, 1, 8, 8, generator=generator)
    labels = CLASSES.repeat(4)

    def value(of):
        with torch.no_grad():
            *_, sample = fine_tuning.dpm_solver(of, latents, labels, 4, 3.0)
            return loss(sample.clamp(-1, 1), labels).item()

    tuned = tune(target, prior, epochs=10, lr=1e-2)
    assert value(tuned) < value(prior) - 0.01


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
