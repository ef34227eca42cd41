"""Strategies that wrap others, seen from outside."""

from flwr.serverapp.strategy import Strategy


def layers(strategy: Strategy) -> list[Strategy]:
    """A strategy and those that it holds, the outermost first, each once."""
    found = [strategy]
    for layer in found:  # grows on the way
        for held in vars(layer).values():
            if isinstance(held, Strategy) and not any(held is known for known in found):
                found.append(held)
    return found


def own_start(strategy: Strategy) -> str | None:
    """Name of the outermost layer with a ``start`` of its own, which whoever wraps it replaces by Flower's rounds."""
    own = (layer for layer in layers(strategy) if getattr(layer.start, "__func__", None) is not Strategy.start)
    return next((type(layer).__name__ for layer in own), None)
