"""Strategies by name: Flower's own, FedSGD, Gossip, or any other Flower ``Strategy`` by its dotted path."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import TypeAdapter, ValidationError

from fl_sim.errors import explain, first_error, nearest
from fl_sim.registry import import_by_path
from strategies.errors import ArgumentError, StrategyError
from strategies.fed_sgd import FedSGD
from strategies.gossip import Gossip

_OF_TREES = ("FedXgbBagging", "FedXgbCyclic")
"""Flower's strategies for gradient boosted trees, which cannot train a network."""

_OLD_API = "flwr.server.strategy"


def available() -> list[str]:
    """Names of the strategies that need no dotted path, sorted."""
    return sorted(_named())


def build_strategy(
    name: str, args: Mapping[str, Any] | None = None, offers: Mapping[str, Any] | None = None
) -> Strategy:
    """The strategy ``name`` with its constructor's arguments.

    A wrapper is a strategy whose constructor takes a ``strategy``, such as FedSGD or Flower's differential privacy. It
    wraps the strategy named by ``args["inner"]``, by default FedAvg, and passes on arguments that it does not take.
    A constructor that passes ``**kwargs`` on also takes the arguments of the constructor that gets them.

    Args:
        name: Flower's class name, ``FedSGD``, or ``package.module:Class``.
        args: arguments by name.
        offers: defaults by name, for every constructor on the way that takes them; ``args`` come before them.

    Raises:
        StrategyError: naming the argument, the value and what is allowed.
    """
    args, offers = dict(args or {}), offers or {}
    cls = strategy_class(name)
    own = _constructor(cls)
    if "strategy" not in own.parameters:
        _refuse_unknown(args, own.parameters, name, own.takes_any)
        return _construct(cls, args, offers)
    if "strategy" in args:
        raise StrategyError(f"strategy = {args['strategy']!r}: {name} wraps the strategy whose name is given as inner")
    inner = args.pop("inner", "FedAvg")
    others = _constructor(strategy_class(inner, "inner"))
    if "strategy" in others.parameters and inner != FedSGD.__name__:
        raise ArgumentError("inner", f"= {inner!r}: wraps a strategy itself; allowed: one that wraps none, or FedSGD")
    known = {"inner", *own.parameters, *others.parameters} - {"strategy"}
    _refuse_unknown(args, known, f"{name} around {inner}", own.takes_any or others.takes_any)
    mine = {
        key: value
        for key, value in args.items()
        if key in own.parameters or (own.takes_any and key not in others.parameters)
    }
    wrapped = build_strategy(inner, {key: value for key, value in args.items() if key not in mine}, offers)
    return _construct(cls, mine | {"strategy": wrapped}, offers)


def strategy_class(name: str, argument: str = "name") -> type[Strategy]:
    """The class behind ``name``.

    Raises:
        StrategyError: about ``argument``: there is no such name, with the nearest one, or why it is no strategy.
    """
    if not isinstance(name, str):
        raise ArgumentError(argument, f"= {name!r}: must be the name of a strategy")
    if ":" in name:
        return _imported(name, argument)
    if name not in _named():
        allowed = f"{', '.join(available())}, or package.module:Class"
        raise ArgumentError(argument, f"= {name!r}: unknown; allowed: {allowed}{nearest(name, available())}")
    return _named()[name]


def _named() -> dict[str, type[Strategy]]:
    exported = {name: getattr(flower, name) for name in flower.__all__ if name not in _OF_TREES}
    ours: dict[str, type[Strategy]] = {"FedSGD": FedSGD, "Gossip": Gossip}
    return ours | {name: cls for name, cls in exported.items() if _why_no_strategy(cls) is None}


def _imported(path: str, argument: str) -> type[Strategy]:
    try:
        found = import_by_path(path)
    except ImportError as error:
        raise ArgumentError(argument, f"= {path!r}: {error}") from error
    if (reason := _why_no_strategy(found)) is not None:
        raise ArgumentError(argument, f"= {path!r}: {reason}")
    return found


def _why_no_strategy(found: Any) -> str | None:
    """Why ``found`` is not the class of a strategy; None if it is."""
    needed = "needed is a subclass of flwr.serverapp.strategy.Strategy"
    cls = found if inspect.isclass(found) else type(found)
    if any(base.__module__.startswith(_OLD_API) for base in cls.__mro__):
        return f"is of Flower's old API ({_OLD_API}); {needed}, such as flwr.serverapp.strategy.FedAvg"
    if not inspect.isclass(found):
        return f"is no class, but of type {cls.__name__}; {needed}"
    if not issubclass(found, Strategy):
        return f"is no strategy; {needed}"
    if missing := sorted(found.__abstractmethods__):
        return f"is abstract: it lacks {', '.join(missing)}"
    return None


@dataclass(frozen=True)
class _Constructor:
    """The arguments that a class takes by name, and whether it takes any other name as well."""

    parameters: dict[str, Parameter]
    takes_any: bool


def _constructor(cls: type[Strategy]) -> _Constructor:
    """The arguments of a class: its constructor's, and those of its bases' as long as each takes ``**kwargs``."""
    parameters: dict[str, Parameter] = {}
    constructors = [vars(base)["__init__"] for base in cls.__mro__[:-1] if "__init__" in vars(base)]
    for depth, constructor in enumerate(constructors):
        declared = list(_signature(constructor).values())[1:]
        by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        usable = by_name if depth else (*by_name, Parameter.POSITIONAL_ONLY)
        parameters = {parameter.name: parameter for parameter in declared if parameter.kind in usable} | parameters
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in declared):
            return _Constructor(parameters, takes_any=False)
    return _Constructor(parameters, takes_any=bool(constructors))


def _signature(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # annotations that only type checkers can read
        return inspect.signature(function).parameters


def _refuse_unknown(args: Mapping[str, Any], known: Iterable[str], owner: str, takes_any: bool) -> None:
    for key, value in args.items():
        if key not in known and not takes_any:
            allowed = sorted(known)
            listed = f"allowed: {', '.join(allowed)}" if allowed else "it takes none"
            raise ArgumentError(key, f"= {value!r}: unknown to {owner}; {listed}{nearest(key, allowed)}")


_GIVEN_TWICE = re.compile(r"multiple values for (?:keyword )?argument '(\w+)'")


def _construct(cls: type[Strategy], args: Mapping[str, Any], offers: Mapping[str, Any]) -> Strategy:
    parameters = _constructor(cls).parameters
    for key, value in args.items():
        if key in parameters:
            _refuse_wrong_type(key, value, parameters[key].annotation)
    offered = {key: value for key, value in offers.items() if key in parameters and key not in args}
    while True:
        try:
            return _call(cls, {**offered, **args})
        except StrategyError:
            raise
        except Exception as error:  # whatever a stranger's constructor raises
            twice = _GIVEN_TWICE.search(str(error)) if isinstance(error, TypeError) else None
            if twice and twice[1] in offered:
                del offered[twice[1]]  # the class itself passes it on to the next constructor
            elif twice and twice[1] in args:
                raise ArgumentError(twice[1], f"= {args[twice[1]]!r}: {cls.__name__} sets it itself") from error
            else:
                raise StrategyError(f"{cls.__name__}: {explain(error)}") from error


def _call(cls: type[Strategy], args: dict[str, Any]) -> Strategy:
    """``cls(**args)``, with positional-only parameters given by position."""
    own = list(_signature(cls).values())
    for parameter in own:
        named = parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if named and parameter.default is Parameter.empty and parameter.name not in args:
            raise ArgumentError(parameter.name, f"is not set; {cls.__name__} needs it")
    first = [parameter for parameter in own if parameter.kind is Parameter.POSITIONAL_ONLY]
    positional = [args.pop(parameter.name, parameter.default) for parameter in first]
    return cls(*positional, **args)


_PLAIN = (bool, int, float, str, NoneType)


def _refuse_wrong_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of the wrong type: Flower's strategies do not check it and would fail in the middle of a round."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(part in _PLAIN or get_origin(part) in (Literal, Callable) for part in parts):
        return
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise ArgumentError(key, f"= {value!r}: {first_error(error)['msg']}") from error
