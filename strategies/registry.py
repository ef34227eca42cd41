"""Strategies by name: Flower's own, FedSGD, Gossip, or any other Flower ``Strategy`` by its dotted path."""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import TypeAdapter, ValidationError

from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from strategies.gossip import Gossip

_OF_TREES = ("FedXgbBagging", "FedXgbCyclic")
"""Flower's strategies for gradient boosted trees, which no diffusion model is made of."""


def available() -> list[str]:
    """Names of the strategies that need no dotted path, sorted."""
    return sorted(_named())


def build_strategy(name: str, args: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy ``name`` with its constructor's arguments.

    A wrapper, that is a strategy whose constructor takes a ``strategy`` (FedSGD, Flower's differential privacy), gets
    the one that ``args["inner"]`` names, FedAvg unless told; arguments unknown to the wrapper are the inner one's.

    Args:
        name: Flower's class name, ``FedSGD``, or ``package.module:Class``.
        args: arguments by name.

    Raises:
        StrategyError: naming the key, the value and what is allowed.
    """
    args = dict(args or {})
    cls = strategy_class(name)
    own = _arguments(cls)
    if "strategy" not in own:
        _refuse_unknown(args, own, name)
        return _construct(cls, args)
    inner = args.pop("inner", "FedAvg")
    _refuse_unknown(args, {"inner", *own, *_arguments(strategy_class(inner))} - {"strategy"}, f"{name} around {inner}")
    wrapped = build_strategy(inner, {key: value for key, value in args.items() if key not in own})
    return _construct(cls, {key: value for key, value in args.items() if key in own} | {"strategy": wrapped})


def strategy_class(name: str) -> type[Strategy]:
    """The class behind ``name``; StrategyError with the nearest name if there is none."""
    if ":" in name:
        return _imported(name)
    if name not in _named():
        raise StrategyError(
            f"strategy.name {name!r} is unknown; allowed: {', '.join(available())}, or package.module:Class"
            f"{_nearest(name, available())}"
        )
    return _named()[name]


def _named() -> dict[str, type[Strategy]]:
    exported = {name: getattr(flower, name) for name in flower.__all__ if name not in _OF_TREES}
    ours: dict[str, type[Strategy]] = {"FedSGD": FedSGD, "Gossip": Gossip}
    return ours | {name: cls for name, cls in exported.items() if _is_strategy(cls)}


def _is_strategy(candidate: Any) -> bool:
    return inspect.isclass(candidate) and issubclass(candidate, Strategy) and not inspect.isabstract(candidate)


def _imported(path: str) -> type[Strategy]:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise StrategyError(f"strategy.name {path!r} cannot be imported: {error}") from error
    if not _is_strategy(cls):
        raise StrategyError(f"strategy.name {path!r} is no concrete subclass of flwr.serverapp.strategy.Strategy")
    return cls


def _arguments(cls: type[Strategy]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def _refuse_unknown(args: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    for key, value in args.items():
        if key not in known:
            allowed = sorted(known)
            raise StrategyError(
                f"strategy.args.{key} = {value!r} is unknown to {owner}; "
                f"allowed: {', '.join(allowed)}{_nearest(key, allowed)}"
            )


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _construct(cls: type[Strategy], args: dict[str, Any]) -> Strategy:
    for key, value in args.items():
        _refuse_wrong_type(key, value, _arguments(cls)[key].annotation)
    try:
        return cls(**args)
    except StrategyError:
        raise
    except (TypeError, ValueError) as error:
        raise StrategyError(f"strategy.args for {cls.__name__}: {' '.join(str(error).split())}") from error


def _refuse_wrong_type(key: str, value: Any, annotation: Any) -> None:
    """Flower's strategies check no types and would fail in the middle of a round."""
    if annotation not in (bool, int, float, str):
        return
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise StrategyError(f"strategy.args.{key} = {value!r}: {error.errors()[0]['msg']}") from error
