"""The layers of a strategy that wraps others."""

from flwr.serverapp.strategy import Strategy


def layers(strategy: Strategy) -> list[Strategy]:
    """A strategy and those that it wraps, the outermost first, each once."""
    found = [strategy]
    for layer in found:  # grows on the way
        for held in vars(layer).values():
            if isinstance(held, Strategy) and not any(held is known for known in found):
                found.append(held)
    return found


def own_start(strategy: Strategy) -> str | None:
    """Class name of the outermost layer that overrides ``start``; a wrapper would run Flower's rounds instead."""
    own = (layer for layer in layers(strategy) if getattr(layer.start, "__func__", None) is not Strategy.start)
    return next((type(layer).__name__ for layer in own), None)
