"""The inverse problem that an Observation poses: the model at the observed weights and the gradient to be matched."""

import torch
from torch import Tensor

from attacks.observation import Observation
from fl_sim import diffusion


class InversionProblem:
    """Everything an attack searches with, rebuilt from an Observation on one device.

    Attributes:
        model: the network at the observed weights, in evaluation mode.
        scheduler: the noise schedule.
        parameters: the parameters whose update was observed, by name.
        gradient: the observed mean gradient by parameter name, or its best estimate from a weight delta.
        samples: N, the number of images behind the update.
        image_shape: (C, H, W).
        noise, timesteps: dictated by the server in the known threat model, else None.
        evaluations: how many gradients of the training loss the attack has spent; the budget of every attack.
    """

    def __init__(self, observation: Observation, device: str) -> None:
        circumstances = observation.circumstances
        self.circumstances = circumstances
        self.device = torch.device(device)
        self.model = diffusion.build_model(circumstances.model)
        self.model.load_state_dict(observation.weights)
        self.model.to(self.device).eval()
        self.scheduler = diffusion.build_scheduler(circumstances.scheduler)
        self.parameters = {
            name: parameter for name, parameter in self.model.named_parameters() if name in observation.update
        }
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        self.gradient = {name: _mean_gradient(observation, name).to(self.device) for name in self.parameters}
        self.samples = circumstances.num_samples
        self.image_shape = circumstances.image_shape
        self.noise = None if observation.noise is None else observation.noise.to(self.device)
        self.timesteps = None if observation.timesteps is None else observation.timesteps.to(self.device)
        self.evaluations = 0

    def randn(self, generator: torch.Generator, samples: int | None = None) -> Tensor:
        """Standard normal images [samples or N,C,H,W] on the device, drawn on the CPU so that devices agree."""
        shape = (samples or self.samples, *self.image_shape)
        return torch.randn(shape, generator=generator).to(self.device)


def _mean_gradient(observation: Observation, name: str) -> Tensor:
    """The mean gradient of one parameter.

    A gradient is one already (a sum over clients is divided by their number). K local SGD steps with momentum mu from
    an empty buffer move the weights by -lr times the sum of the step gradients, step k = 0..K-1 weighing
    (1 - mu**(K-k)) / (1 - mu); dividing by the sum of those weights gives a mean gradient, exact for K = 1 as is the
    share of weight decay taken off.
    """
    circumstances = observation.circumstances
    mean_update = observation.update[name] / circumstances.num_clients
    optimizer = circumstances.local_optimizer
    if circumstances.update == "gradient" or optimizer is None:
        return mean_update
    steps, momentum = circumstances.local_steps, optimizer.momentum
    total = sum((1 - momentum ** (steps - k)) / (1 - momentum) for k in range(steps))
    return mean_update / (-optimizer.lr * total) - optimizer.weight_decay * observation.weights[name]
