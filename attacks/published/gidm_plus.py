"""GIDM+, the "triple optimisation" of arXiv 2405.20380: image, noise and timestep are private and searched together.

As in GIDM, phase 1 searches latents of a generative prior and phase 2 pixels; noise and timestep take part in both. The
timestep is relaxed to a real number, t = (T - 1) sigmoid(s), so that s gets a gradient: a sinusoidal embedding takes
any real t, and alphas_cumprod is interpolated. How the three are coordinated is our choice: one Adam moves all of them
in every iteration, with GIDM's learning rate, from normal latents, normal noise and t drawn uniformly. The authors'
code (attacks/published/gidm.py) cannot serve as a reference: its noise starts at the true noise plus 1e-4 times noise
and is not optimised, and its t is an argmax, which gets no gradient. The labels of a class-conditional network, which
the paper does not treat, are read off the gradient (attacks/timesteps/recovery.py) where they are private.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import AttackError, Needs, Outcome
from attacks.inversion.gradient_matching import Derivative, Distance, GradientMatching, squared_error
from attacks.inversion.problem import InversionProblem
from attacks.published.gidm import GIDM
from attacks.timesteps.recovery import timestep_hypotheses
from fl_sim import diffusion


class GIDMPlus(GIDM):
    """GIDM with noise and timesteps among the unknowns, even where the server knows them.

    It takes GIDM's arguments and ``timestep``.
    """

    name: ClassVar[str] = "gidm-plus"
    needs: ClassVar[Needs] = Needs.DIFFUSION_TASK | Needs.GRADIENT | Needs.MAGNITUDES

    timestep: Literal["search", "recovered"] = Field(
        "search",
        description="relaxed and searched for, or read off the gradient (attacks/timesteps/recovery.py) for ablation",
    )

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find pixels, noise and timesteps.

        Raises:
            AttackError: if the model takes integer timesteps only, or they or labels are to be recovered and cannot be.
        """
        latents = problem.randn(generator)
        hidden = draw_hidden(problem, self.timestep, generator)
        matching = match_everything(problem, self.derivative, hidden.timesteps, hidden.labels)
        found = self.two_phases(matching, [latents, *hidden.start], hidden.labels)
        return Outcome(found[0], hidden.told(problem, found[1:]), matching.value(found), hidden.labels)


@dataclass(frozen=True)
class Hidden:
    """What a client drew in private, as a search takes it up.

    Attributes:
        start: the unknowns beside the images, if any: noise [N,C,H,W] and, unless given, relaxed timesteps [N].
        timesteps: int64 [N], taken as given; None where they are searched for, or training uses none.
        labels: int64 [N], revealed or read off; None where training uses none.
    """

    start: list[Tensor]
    timesteps: Tensor | None
    labels: Tensor | None

    def told(self, problem: InversionProblem, found: Sequence[Tensor]) -> Tensor | None:
        """The timesteps [N], whole numbers: those that belong to the unknowns ``found``, else those taken as given."""
        return real_timesteps(problem, found[1]).round() if len(found) > 1 else self.timesteps


def draw_hidden(
    problem: InversionProblem, timestep: Literal["search", "recovered"], generator: torch.Generator
) -> Hidden:
    """Normal noise, and timesteps that are drawn uniformly or read off, with the labels of the images.

    Raises:
        AttackError: if the model takes integer timesteps only, or they or labels are to be recovered and cannot be.
    """
    start, recovered, labels = [problem.randn(generator)], None, problem.labels
    if timestep == "recovered":
        recovered, labels = timestep_hypotheses(problem)[0]
    elif problem.num_classes is not None and labels is None:
        labels = timestep_hypotheses(problem)[0].labels
    if recovered is None:
        if not takes_real_timesteps(problem, labels):
            raise AttackError("timestep = 'search' needs a time embedding of real numbers; this network has none")
        start.append(torch.rand(problem.samples, generator=generator).logit(eps=1e-6).to(problem.device))
    return Hidden(start, recovered, labels)


def match_everything(
    problem: InversionProblem,
    derivative: Derivative,
    timesteps: Tensor | None = None,
    labels: Tensor | None = None,
    distance: Distance = squared_error,
) -> GradientMatching:
    """``distance`` over images and noise [N,C,H,W] and, without ``timesteps`` int64 [N], relaxed ones [N].

    ``labels`` int64 [N] are those of the images, where the network takes them.
    """

    def training_loss(unknowns: Sequence[Tensor]) -> Tensor:
        images, noise, *relaxed = unknowns
        at = real_timesteps(problem, relaxed[0]) if timesteps is None else timesteps
        return problem.loss(images, noise, at, labels)

    return GradientMatching(problem, training_loss, distance, derivative)


def takes_real_timesteps(problem: InversionProblem, labels: Tensor | None = None) -> bool:
    """Whether the network has a derivative with respect to the timestep; with a learned embedding it has none.

    ``labels`` int64 [N] are those of the images, where the network takes them.
    """
    timestep = torch.ones(1, device=problem.device, requires_grad=True)
    image = torch.zeros(1, *problem.image_shape, device=problem.device)
    try:
        prediction = diffusion.predict(problem.model, image, timestep, None if labels is None else labels[:1])
        return torch.autograd.grad(prediction.sum(), timestep, allow_unused=True)[0] is not None
    except Exception:  # an embedding table refuses real numbers, and a network may raise anything
        return False


def real_timesteps(problem: InversionProblem, relaxed: Tensor) -> Tensor:
    """The timesteps t = (T - 1) sigmoid(s) of relaxed ones s, real numbers within the schedule."""
    return (problem.scheduler.config.num_train_timesteps - 1) * relaxed.sigmoid()
