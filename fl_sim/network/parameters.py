"""A network's parameters by name: which train, which a pattern chooses, which tensors fit them."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice

import torch
from torch import Tensor, nn


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that receive gradients, by name, in the model's own order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def weight_gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """dL/dw by trainable parameter's name, of a scalar ``loss`` of the model; the model's ``.grad`` is untouched."""
    parameters = trainable_parameters(model)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Number of scalars in all of ``parameters`` together."""
    return sum(parameter.numel() for parameter in parameters)


def matching_names(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match at least one of the glob patterns, in their own order.

    >>> matching_names(["conv_in.weight", "conv_in.bias", "conv_out.bias"], ["conv_in.*", "*.bias"])
    ['conv_in.weight', 'conv_in.bias', 'conv_out.bias']
    """
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def misfit(tensors: Mapping[str, Tensor], model: nn.Module, required: Iterable[str], where: str = "") -> str | None:
    """Why ``tensors`` do not fit the state of ``model``, in one line; None if they do.

    They do not if one has a name or a shape that the model does not have, or one of the ``required`` names is missing.
    ``where`` is a prefix of the names in the message.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if name not in own:
            return f"{where}{name} is no parameter of the model{_naming(tensors, own)}"
        if value.shape != own[name]:
            return f"{where}{name} has shape {list(value.shape)}, the model has {list(own[name])}"
    missing = [name for name in required if name not in tensors]
    return f"{where}{missing[0]} is missing" if missing else None


def _naming(came: Iterable[str], own: Iterable[str]) -> str:
    """The names that came, the model's names, and the prefix to take off if all names that came share one."""
    came, own = list(came), list(own)
    prefixes = {name.removesuffix(known) for name in came for known in own if name.endswith(f".{known}")}
    shortest = min(prefixes, key=len, default="")
    prefixed = bool(shortest) and all(name.startswith(shortest) for name in came)
    without = f", without {shortest!r} in front" if prefixed else ""
    return f"; came: {_some(came)}; the model's: {_some(own)}; allowed: the network's own state_dict() names{without}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(islice(names, 3))}, … ({len(names)})" if len(names) > 3 else ", ".join(names)
