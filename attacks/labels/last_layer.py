"""What an update says of the linear layer that makes the logits.

With features h_i, probabilities p_i = softmax(W h_i + b) and one-hot labels y_i the mean cross-entropy of N samples has

    dL/dW = (1/N) sum_i (p_i - y_i) h_i^T,    dL/db = (1/N) sum_i (p_i - y_i)

(iDLG, arXiv 2001.02610). Everything here rests on three facts: probabilities lie strictly between 0 and 1, those of a
sample sum to 1, and a label is one class.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.inversion.gradient_estimate import step_weights
from attacks.inversion.image_prior import random_smooth_images
from attacks.inversion.problem import InversionProblem
from fl_sim import classification

FLOAT32_ERROR = 2e-7
"""Error of a float32 gradient's entries, relative to the terms they are sums of."""
OWN_IMAGES = 64
"""Random images by which the attacker learns what features look like."""


@dataclass(frozen=True)
class LastLayer:
    """The last layer's gradient and weights, float64 on the CPU; the bias is the last column of each.

    Attributes:
        gradient: [K,F+1], the mean over all samples; 0 where nothing is known.
        std: [K,F+1], standard deviation of every entry; infinite where nothing is known.
        weights: [K,F+1], those that were sent.
        features: [M,F+1], of the attacker's own random images; the last column is 1.
        samples: N, the number of images behind the update.
        counts: whether every sample has the same known weight in ``gradient``, so that labels can be counted.
        one_point: whether all samples were seen by the weights that were sent, and none by later ones.
    """

    gradient: Tensor
    std: Tensor
    weights: Tensor
    features: Tensor
    samples: int
    counts: bool = True
    one_point: bool = True

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.gradient)

    @property
    def bias_gradient(self) -> Tensor:
        """The gradient of the bias, [K]."""
        return self.gradient[:, -1]

    @property
    def complete(self) -> bool:
        """Whether something is known of every entry."""
        return bool(self.std.isfinite().all())


def last_layer_of(problem: InversionProblem) -> LastLayer | None:
    """The last layer of the problem's classifier; None where the update tells nothing of it.

    That is so where the layer was not sent, of a sum of several clients' signs or Adam steps and of several Adam steps,
    which are not linear in gradients, and of Adam with L2 decay, which may turn signs.
    """
    seen, optimizer = problem.circumstances, problem.circumstances.local_optimizer
    adam = optimizer is not None and optimizer.adaptive
    if (problem.signs_only and seen.num_clients > 1) or (adam and seen.num_clients * seen.local_steps > 1):
        return None
    if optimizer is not None and optimizer.name == "adam" and optimizer.weight_decay:
        return None
    name, layer = classification.last_layer(problem.model)
    prefix = f"{name}." if name else ""
    if not {f"{prefix}weight", f"{prefix}bias"} & set(problem.parameters):
        return None
    gradient = _with_bias(layer, prefix, problem.gradient, 0.0)
    std = _with_bias(layer, prefix, problem.std, math.inf)
    if adam:
        # Of entries far above Adam's eps the sign is known, and nothing else.
        std = torch.where(std.isinf() & (gradient != 0), 0.0, std)
    elif not problem.signs_only:
        std = torch.maximum(std, _noise_seen(gradient, std))
    weights = _with_bias(layer, prefix, dict(problem.model.named_parameters()), 0.0)
    equal_steps = optimizer is None or len(set(step_weights(seen))) == 1
    return LastLayer(
        torch.where(std.isfinite(), gradient, 0.0),
        std,
        weights,
        _own_features(problem),
        problem.samples,
        counts=problem.scale_known and equal_steps and not adam,
        one_point=seen.local_steps == 1,
    )


def _with_bias(layer: nn.Linear, prefix: str, values: Mapping[str, Tensor], missing: float) -> Tensor:
    """The layer's weight and bias among ``values`` as one matrix [K,F+1]."""
    joined = torch.full((layer.out_features, layer.in_features + 1), missing, dtype=torch.float64)
    if (weight := values.get(f"{prefix}weight")) is not None:
        joined[:, :-1] = weight.detach().cpu()
    if (bias := values.get(f"{prefix}bias")) is not None:
        joined[:, -1] = bias.detach().cpu()
    return joined


def _noise_seen(gradient: Tensor, std: Tensor) -> Tensor:
    """Standard deviation of the entries' noise, as far as it shows; a scalar.

    p_i - y_i sums to 0, and so does every column of an exact gradient. The server need not be told of the noise.
    """
    sums = gradient[:, std.isfinite().all(dim=0)].sum(dim=0)
    return (sums.square().sum() / max(len(sums), 1) / len(gradient)).sqrt()


def _own_features(problem: InversionProblem) -> Tensor:
    images = random_smooth_images(OWN_IMAGES, problem.image_shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = classification.features(problem.model, images.to(problem.device)).cpu().double()
    return torch.cat([features, features.new_ones(OWN_IMAGES, 1)], dim=1)
