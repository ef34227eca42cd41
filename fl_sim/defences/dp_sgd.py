"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1) through Opacus, inside the local training."""

import warnings
from typing import Any, ClassVar

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from pydantic import Field
from torch import nn
from typing_extensions import override

from fl_sim import network
from fl_sim.config import SettingsError
from fl_sim.defences.defence import Defence, Update
from fl_sim.defences.privacy import Privacy, gaussian_privacy
from fl_sim.draws import Draw
from fl_sim.task import Task
from fl_sim.wire import Recipe


class DPSGD(Defence):
    """Clip every image's gradient, add Gaussian noise to each batch's sum, and train with that.

    The privacy is that of one image which a client has or has not. It holds if each batch takes every image of the
    client independently with the same probability, and nobody sees which images it takes.
    """

    name: ClassVar[str] = "dp-sgd"

    clip_norm: float = Field(1.0, gt=0, description="largest L2 norm of an image's gradient")
    noise_multiplier: float = Field(
        1.0, ge=0, description="standard deviation of the noise on a batch's sum, over clip_norm"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="of the (epsilon, delta) in the table of rounds")

    @override
    def check(self, recipe: Recipe) -> None:
        if recipe.gradient_accumulation > 1:
            raise SettingsError(
                f"client.gradient_accumulation = {recipe.gradient_accumulation}: {self.name} noises every batch, for "
                f"which alone its privacy is computed; allowed: 1"
            )

    @override
    def batch_gradient(
        self,
        model: nn.Module,
        task: Task,
        batch: Draw,
        generator: torch.Generator,
    ) -> tuple[Update, float]:
        parameters = network.trainable_parameters(model)
        # Opacus' own rule for convolutions gives wrong gradients for the channels-last tensors behind an attention
        # layer, without an error; functorch is right everywhere.
        per_image = GradSampleModule(model, force_functorch=True)
        optimizer = DPOptimizer(
            torch.optim.SGD(parameters.values()),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.clip_norm,
            expected_batch_size=len(batch.images),
            generator=_on(batch.images.device, generator),
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                loss = task.loss(per_image, batch.images, *batch[1:])
                loss.backward()
            optimizer.pre_step()
            gradient = {name: parameter.grad.clone() for name, parameter in parameters.items()}  # type: ignore[union-attr]
        finally:
            optimizer.zero_grad(set_to_none=True)
            per_image.to_standard_module()
        return gradient, loss.item()

    @override
    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        noise = self.noise_multiplier * self.clip_norm / recipe.batch_size
        return {"sample_clip_norm": self.clip_norm, "gradient_noise_std": noise}

    @override
    def privacy(self, recipe: Recipe, images: int, rounds: int) -> Privacy:
        # With fewer images than a batch takes, a batch takes some of them several times.
        repetitions = -(-recipe.batch_size // images)
        rate = min(1.0, recipe.batch_size / images)
        steps = rounds * recipe.samples(images) // recipe.batch_size
        return gaussian_privacy(self.noise_multiplier / repetitions, steps, self.delta, rate)


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on ``device``, as Opacus needs it, seeded from ``generator``."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
