"""Gradient-guided fine-tuning of a diffusion model (Meng, Huang, Chen and Li 2024, arXiv 2406.09484).

The weights phi of a trained diffusion model are tuned until the image that it makes from a fixed latent z has the
observed gradient,

    min_phi  D(grad_theta L(G_phi(z)), g*) ,

with G the deterministic sampler of arXiv 2010.02502, eq. 12. The network is a parametrisation of the image that starts
at natural images and leaves them as far as the gradient asks for, where a search for latents (attacks/published/
gidm.py) stays among the images that the model can make.

After the abstract of the paper; the paper's text was not at hand. Stated there: a pretrained diffusion model is
fine-tuned under the guidance of the leaked gradient. After others' summaries: by DDIM, on classifiers. Inferred: one
fixed latent, all weights, the squared distance, Adam. Ours: x0 is clipped in every step of the sampler, as where images
are made, since without that a small step of Adam throws the image far out of its range; the best of several latents;
the rule by which the search ends early; a batch (one latent an image, weights in common); and clients that train a
diffusion model, whose noise and timesteps, where private, are searched for as in GIDM+ or read off the gradient.

Not to be confused with attacks/published/gradient_guided_sampling.py, which trains nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.adam import adam_search
from attacks.inversion.gradient_matching import DISTANCES, Derivative, GradientMatching, match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import labels_for_search
from attacks.observation import Observation
from attacks.published.ddim_prior import GLOBAL, WEIGHT_COPIES, check_prior, load_prior, prior_memory
from attacks.published.gidm_plus import Hidden, draw_hidden, match_everything
from fl_sim.diffusion import DDIMSampler, DiffusionTask


class GradientGuidedFineTuning(Attack):
    """Search for the weights of a generative prior."""

    name: ClassVar[str] = "gradient-guided-finetuning"
    needs: ClassVar[Needs] = Needs.GRADIENT | Needs.MAGNITUDES
    memory_savers: ClassVar[str] = "a smaller prior or network, fewer images, fewer sampler_steps, or recompute = true"

    prior: str = Field(GLOBAL, description="model to tune: the global one that was sent, or the path of a checkpoint")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps from the latent to the image")
    iterations: int = Field(300, ge=1, description="most steps of Adam")
    lr: float = Field(3e-4, gt=0, description="Adam's step of the weights")
    hidden_lr: float = Field(0.1, gt=0, description="Adam's step of noise and timesteps, where they are private")
    distance: Literal["squared", "cosine"] = Field("squared", description="distance of the gradients")
    candidates: int = Field(8, ge=1, description="latents of which the one with the smallest matching loss is taken")
    timestep: Literal["recovered", "search"] = Field(
        "recovered", description="private timesteps: read off the gradient, or relaxed and searched for as in GIDM+"
    )
    recompute: bool = Field(
        False, description="compute the sampler's steps twice, so that memory is that of one step and not of all"
    )
    solved_below: float = Field(1e-8, ge=0, description="matching loss at which the search ends")
    patience: int = Field(100, ge=1, description="iterations between which progress is measured")
    stall_ratio: float = Field(
        0.9, gt=0, le=1, description="the search ends if the loss is above so many times that of `patience` ago"
    )
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    @override
    def further_memory(self, observation: Observation) -> float:
        kept = 1 if self.recompute else self.sampler_steps
        return prior_memory(self.prior, observation.circumstances, kept, WEIGHT_COPIES)

    @override
    def check(self, observation: Observation) -> None:
        super().check(observation)
        check_prior(self.name, self.prior, observation.circumstances)

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the weights, and with them the images.

        Raises:
            AttackError: if labels or timesteps are private and cannot be read off, or timesteps are to be searched for
                in a model that takes integers only.
        """
        problem.budget.plan(self.candidates + self.iterations + 1)
        latents = [problem.randn(generator) for _ in range(self.candidates)]
        matching, hidden = self.matching(problem, generator)
        prior = load_prior(problem, self.prior, self.sampler_steps, hidden.labels, clip=True, recompute=self.recompute)
        prior.model.requires_grad_(True)
        images, found = self.fine_tune(matching, prior, latents, hidden.start)
        return Outcome(images, hidden.told(problem, found), matching.value([images, *found]), hidden.labels)

    def matching(self, problem: InversionProblem, generator: torch.Generator) -> tuple[GradientMatching, Hidden]:
        """The matching loss over images and what is hidden beside them."""
        distance = DISTANCES[self.distance]
        if isinstance(problem.task, DiffusionTask) and problem.noise is None:
            hidden = draw_hidden(problem, self.timestep, generator)
            return match_everything(problem, self.derivative, hidden.timesteps, hidden.labels, distance), hidden
        hidden = Hidden([], problem.timesteps, labels_for_search(problem))
        return match_pixels(problem, self.derivative, distance, hidden.labels), hidden

    def fine_tune(
        self, matching: GradientMatching, prior: DDIMSampler, latents: Sequence[Tensor], start: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The images [N,C,H,W] and other unknowns of the smallest matching loss; ``prior`` is left tuned to them.

        Of several ``latents``, each [N,C,H,W], the one whose images match best is kept fixed. ``start`` are the
        unknowns of ``matching`` beside the images.
        """

        def images(latent: Tensor) -> Tensor:
            with torch.no_grad():
                return prior(latent)

        latent = latents[0]
        if len(latents) > 1:
            latent = min(latents, key=lambda candidate: matching.value([images(candidate), *start]))
        weights = list(prior.model.parameters())
        found = adam_search(
            partial(tuned, matching, prior, latent),
            [*weights, *start],
            self.iterations,
            [self.lr] * len(weights) + [self.hidden_lr] * len(start),
            solved_below=self.solved_below,
            patience=self.patience,
            stall_ratio=self.stall_ratio,
        )
        set_parameters(prior, found[: len(weights)])
        return images(latent), found[len(weights) :]


def tuned(
    matching: GradientMatching, prior: DDIMSampler, latent: Tensor, unknowns: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``matching`` with its first unknown, the images, replaced by the weights with which ``prior`` makes them.

    The first of ``unknowns`` are these weights, in the network's order, the others those of ``matching``. What goes
    into a log of evaluations is the matching loss with its derivative for the images, a thousandth of the weights'.
    """
    weights = list(prior.model.parameters())
    set_parameters(prior, unknowns[: len(weights)])
    images = prior(latent)
    value, (derivative, *rest) = matching([images.detach().requires_grad_(), *unknowns[len(weights) :]])
    by_weights = torch.autograd.grad(images, weights, derivative, allow_unused=True, materialize_grads=True)
    return value, [*by_weights, *rest]


def set_parameters(prior: DDIMSampler, values: Sequence[Tensor]) -> None:
    """Copy ``values`` into the parameters of the prior's network, in its order."""
    with torch.no_grad():
        torch._foreach_copy_(list(prior.model.parameters()), list(values))
