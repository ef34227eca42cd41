"""The soft label of an update: which share of its images has each label."""

from torch import Tensor
from torch.nn.functional import one_hot

from attacks.inversion.problem import InversionProblem
from attacks.labels.last_layer import last_layer_of
from attacks.labels.recovery import HiddenLabelsError, labels_behind
from attacks.labels.soft_counts import soft_counts
from fl_sim import classification


def soft_label(problem: InversionProblem) -> Tensor:
    """The label counts over N, float32 [K] on the problem's device, sum 1; the problem's task is classification.

    Of labels that were revealed or can be read off these are exact. Else they are estimated: the real-numbered counts
    of ``soft_counts``, or ``raised_classes`` where samples count differently, as in several steps of Adam.

    Raises:
        HiddenLabelsError: if labels are private and the update lacks the last layer.
    """
    assert problem.num_classes is not None
    if problem.labels is not None:
        return _shares(problem.labels, problem.num_classes)
    layer = last_layer_of(problem)
    if layer is not None:
        recovered = labels_behind(layer)
        if recovered.known:
            return _shares(recovered.labels.to(problem.device), problem.num_classes)
        if layer.complete and layer.counts and layer.bias_gradient.any():
            counts = soft_counts(layer)[0].clamp_min(0)
            return (counts / counts.sum()).float().to(problem.device)
    return raised_classes(problem)


def raised_classes(problem: InversionProblem) -> Tensor:
    """The classes whose logits the update raises, each by how much it raises the bias, float32 [K], sum 1.

    The bias has the gradient p - y in the mean (attacks/labels/last_layer.py), which is negative for labels that occur
    more often than the network expects. Where the bias was not sent the row sums of the weight gradient take its place,
    as features are seldom negative.

    Raises:
        HiddenLabelsError: if neither was sent, or no class is raised.
    """
    name, _ = classification.last_layer(problem.model)
    prefix = f"{name}." if name else ""
    sent = [problem.gradient.get(f"{prefix}{kind}") for kind in ("bias", "weight")]
    gradient = next((value.flatten(1).sum(1) if value.ndim > 1 else value for value in sent if value is not None), None)
    raised = None if gradient is None else (-gradient).clamp_min(0)
    if raised is None or not raised.any():
        raise HiddenLabelsError("labels cannot be estimated: the update tells nothing of the last layer")
    return raised / raised.sum()


def _shares(labels: Tensor, classes: int) -> Tensor:
    return one_hot(labels, classes).float().mean(dim=0)
