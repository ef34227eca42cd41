"""Networks of a user's own: the key ``_factory`` of a model's configuration names the function that builds one.

``{"_factory": "package.module:build", …}``: the function is called with all keys that do not begin with ``_`` and
returns a ``torch.nn.Module``. For diffusion it has ``forward(x_t, timesteps)``, or ``forward(x_t, timesteps, labels)``
if the configuration has the key ``num_class_embeds``, the number of classes, which the function gets like any other;
for classification it has ``forward(images)``, which returns logits.

A configuration may come from elsewhere, in a capture, a checkpoint or a message, and must never choose what code runs.
So a factory is imported only where the process trusts it by name.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fl_sim.errors import explain, nearest
from fl_sim.network.configuration import ConfigError
from fl_sim.network.lora import LORA
from fl_sim.registry import import_by_path, plugins

FACTORY = "_factory"
"""Key of a model's configuration: the path of the function that builds the network."""
GROUP = "fl_sim.models"
"""Entry points that give a factory a name."""

_trusted: set[str] = set()


def trust(factories: Iterable[str]) -> None:
    """From now on this process may import these factories, each a path or an entry point's name.

    It imports none of them yet.

    Raises:
        ConfigError: if one is neither.
    """
    _trusted.update([factory_path(factory) for factory in factories])


def trusted() -> list[str]:
    """The paths of the factories that this process may import, sorted: what to hand on to a process of its own."""
    return sorted(_trusted)


def factory_path(factory: str) -> str:
    """``package.module:build`` of a factory, given as that or as the name of an entry point of ``fl_sim.models``.

    Raises:
        ConfigError: if it is neither.
    """
    module, _, function = factory.partition(":")
    if module and function:
        return factory
    if factory in plugins(GROUP):
        return plugins(GROUP)[factory]
    names = sorted(plugins(GROUP))
    raise ConfigError(
        f"{factory!r} is no factory; allowed: package.module:build, or the name of an entry point of {GROUP} "
        f"(installed: {', '.join(names) or 'none'}){nearest(factory, names)}"
    )


def factory_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the factory that ``config`` names."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != LORA}


def build_by_factory(config: Mapping[str, Any]) -> nn.Module:
    """The network that the factory of ``config`` builds.

    Raises:
        ConfigError: if the factory is not trusted (then nothing is imported), cannot be imported, raises, or returns
            anything but a module.
    """
    factory = config[FACTORY]
    if not isinstance(factory, str) or not all(factory.partition(":")):
        raise ConfigError(f"model.{FACTORY} = {factory!r}; allowed: 'package.module:build'")
    if factory not in _trusted:
        raise ConfigError(
            f"the network is built by {factory!r}, code that is imported only where it is trusted by name; allowed: "
            f"fl-sim attack --trust {factory!r}, or model.factory = {factory!r} in a run's own settings"
        )
    try:
        build = import_by_path(factory)
    except ImportError as error:
        raise ConfigError(f"factory {factory!r} {error}") from error
    try:
        network = build(**factory_arguments(config))
    except Exception as error:  # a factory may raise anything
        raise ConfigError(f"factory {factory!r} with {factory_arguments(config)!r}: {explain(error)}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"factory {factory!r} returns a {type(network).__name__}; allowed: a torch.nn.Module")
    for name, buffer in list(network.named_buffers()):
        if name.endswith("num_batches_tracked"):  # of batch normalisation: a count that evaluation mode does not use
            network.get_submodule(name.rpartition(".")[0]).num_batches_tracked = buffer.float()
    return network
