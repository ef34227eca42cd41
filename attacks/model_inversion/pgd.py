"""A last step towards the classifier: projected gradient descent within a small ball.

The authors' pipeline ends with it (github.com/Ouxiang-Li/Diff-MI, "translate"). It is an adversarial attack as in Madry
et al. 2018 (arXiv 1706.06083): it raises the attacked classifier's opinion, not the likeness.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.target import Target
from fl_sim import classification


class PGD(Arguments):
    """Targeted L2 steps of pixels in [0, 1]."""

    iterations: int = Field(0, ge=0, description="steps; the authors' 10, 0: leave it out")
    radius: float = Field(0.5, gt=0, description="largest L2 distance from the image, pixels in [0, 1]")
    step: float = Field(0.1, gt=0, description="L2 length of a step")

    def run(self, target: Target, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Images [N,C,H,W] in [-1, 1] near ``images`` with less cross-entropy to ``labels`` int64 [N]."""
        if self.iterations == 0:
            return images
        centre = (images + 1) / 2
        start = torch.randn(images.shape, generator=generator).to(images)
        radius = self.radius * torch.rand(len(images), generator=generator).to(images)
        pixels = (centre + _of_length(start, radius)).clamp(0, 1)
        for _ in range(self.iterations):
            pixels.requires_grad_()
            logits = classification.predict(target.classifier, 2 * pixels - 1)
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), pixels)
            moved = pixels.detach() - _of_length(gradient, torch.full_like(radius, self.step)) - centre
            length = moved.flatten(1).norm(dim=1).clamp(max=self.radius)
            pixels = (centre + _of_length(moved, length)).clamp(0, 1)
        return 2 * pixels - 1


def _of_length(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors [N,C,H,W] scaled to L2 ``lengths`` [N]; those of length 0 stay."""
    norms = vectors.flatten(1).norm(dim=1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return vectors * (lengths / norms).reshape(-1, 1, 1, 1)
