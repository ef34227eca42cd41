"""The mode in which clients train a network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_training_mode(model: nn.Module) -> None:
    """Training mode, in which dropout acts, but evaluation mode for batch normalisation.

    The statistics of a batch would couple its images, and clients would change buffers that they do not send.
    """
    for module in model.modules():
        module.training = not isinstance(module, _BatchNorm)
