"""What a strategy remembers from round to round, as tensors and JSON: for a run that goes on after it was broken off.

A strategy says itself what it remembers if it has ``state_dict()`` and ``load_state_dict(state)``, as torch's
optimisers do. Of any other, the attributes are taken: numbers, texts, lists, dicts, numpy's arrays, torch's tensors,
Flower's records, and objects that hold these. Functions, classes and loggers are part of how a strategy was made, and
stay as they are. Nothing is pickled.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from strategies.errors import StrategyError
from strategies.layers import layers

Tree = dict[str, Any]
"""A value in the types of JSON; arrays are named by their keys among the tensors."""

_RECORDS = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
_OF_CONSTRUCTION = (Strategy, type, ModuleType, logging.Logger, logging.Handler)


def state_of(strategy: Strategy) -> tuple[list[Tree], dict[str, Tensor]]:
    """What the strategy and those that it wraps remember: a tree for each, the outermost first, and all tensors.

    Raises:
        StrategyError: if one of them remembers something that cannot be written down.
    """
    tensors: dict[str, Tensor] = {}
    return [
        _state_of_layer(layer, f"strategy{depth}", tensors) for depth, layer in enumerate(layers(strategy))
    ], tensors


def restore_state(strategy: Strategy, trees: list[Tree], tensors: Mapping[str, Tensor]) -> None:
    """Let a strategy that was made in the same way remember what ``state_of`` read.

    Raises:
        StrategyError: if the state is of another strategy.
    """
    wrapped = layers(strategy)
    names = [type(layer).__name__ for layer in wrapped]
    if [tree.get("class") for tree in trees] != names:
        raise StrategyError(f"the state that was kept is not of {' around '.join(names)}")
    for layer, tree in zip(wrapped, trees, strict=True):
        if hasattr(layer, "load_state_dict"):
            layer.load_state_dict(_decode(tree["state"], tensors, None))
        else:
            _restore_attributes(layer, tree["state"], tensors)


def encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """The value as a tree; its arrays are put into ``tensors`` under names that begin with ``key``.

    Raises:
        StrategyError: if it is, or holds, something that cannot be written down.
    """
    return _encode(value, key, tensors, ())


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that ``encode`` wrote."""
    return _decode(tree, tensors, None)


def _state_of_layer(layer: Strategy, key: str, tensors: dict[str, Tensor]) -> Tree:
    own = getattr(layer, "state_dict", None)
    state = _encode(own(), key, tensors, ()) if callable(own) else _attributes(layer, key, tensors, ())
    return {"class": type(layer).__name__, "state": state}


def _attributes(owner: Any, key: str, tensors: dict[str, Tensor], above: tuple[Any, ...]) -> Tree:
    values = {name: value for name, value in vars(owner).items() if not _is_of_construction(value)}
    if any(owner is known for known in above):
        raise StrategyError(f"{key} holds itself")
    return {name: _encode(value, f"{key}.{name}", tensors, (*above, owner)) for name, value in values.items()}


def _restore_attributes(owner: Any, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for name, tree in state.items():
        setattr(owner, name, _decode(tree, tensors, getattr(owner, name, None)))


def _is_of_construction(value: Any) -> bool:
    return isinstance(value, _OF_CONSTRUCTION) or callable(value)


def _encode(value: Any, key: str, tensors: dict[str, Tensor], above: tuple[Any, ...]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _keep_array(value, key, tensors)
    if isinstance(value, ArrayRecord):
        arrays = {name: array.numpy() for name, array in value.items()}
        return {"kind": "ArrayRecord", "arrays": _pairs(arrays, key, tensors, above)}
    for kind, record in _RECORDS.items():
        if isinstance(value, record):
            return {"kind": kind, "entries": _pairs(dict(value), key, tensors, above)}
    if isinstance(value, Mapping):
        return {"kind": "dict", "entries": _pairs(value, key, tensors, above)}
    for kind, sequence in _SEQUENCES.items():
        if type(value) is sequence:
            items = [_encode(item, f"{key}.{place}", tensors, above) for place, item in enumerate(value)]
            return {"kind": kind, "items": items}
    if hasattr(value, "__dict__"):
        return {"kind": "object", "class": type(value).__name__, "state": _attributes(value, key, tensors, above)}
    raise StrategyError(f"{key} is a {type(value).__name__}, which cannot be written down")


def _keep_array(value: Any, key: str, tensors: dict[str, Tensor]) -> Tree:
    kind = "tensor" if isinstance(value, Tensor) else "array" if isinstance(value, np.ndarray) else "number"
    try:
        # A copy: the strategy may change its own before this one is written.
        tensors[key] = torch.as_tensor(value).detach().cpu().clone().contiguous()
    except TypeError as error:
        raise StrategyError(f"{key} is an array of {value.dtype}, which cannot be written down") from error
    return {"kind": kind, "key": key}


def _pairs(values: Mapping[Any, Any], key: str, tensors: dict[str, Tensor], above: tuple[Any, ...]) -> list[list[Any]]:
    """Keys and values in order, as the keys of JSON are texts and have none."""
    return [
        [_encode(name, f"{key}.{place}.key", tensors, above), _encode(value, f"{key}.{place}", tensors, above)]
        for place, (name, value) in enumerate(values.items())
    ]


def _decode(tree: Any, tensors: Mapping[str, Tensor], existing: Any) -> Any:
    """The value behind a tree; an object takes its attributes into the ``existing`` one, which is of its class."""
    if not isinstance(tree, dict):
        return tree
    kind = tree["kind"]
    if kind in ("tensor", "array", "number"):
        tensor = tensors[tree["key"]].clone()
        return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy()[()]
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([_decode(item, tensors, None) for item in tree["items"]])
    if kind == "object":
        if type(existing).__name__ != tree["class"]:
            raise StrategyError(f"the state that was kept has a {tree['class']} where there is none")
        _restore_attributes(existing, tree["state"], tensors)
        return existing
    entries = {
        _decode(name, tensors, None): _decode(value, tensors, None)
        for name, value in tree["arrays" if kind == "ArrayRecord" else "entries"]
    }
    if kind == "ArrayRecord":
        return ArrayRecord({name: Array(value) for name, value in entries.items()})
    return entries if kind == "dict" else _RECORDS[kind](entries)
