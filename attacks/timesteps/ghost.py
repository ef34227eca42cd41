"""A tensor without numbers, with which a network runs at the cost of what does not depend on that tensor."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class Ghost(Tensor):
    """A tensor that has a shape, a type and a device, but no numbers, as has every tensor computed from it."""

    shape_alone: Tensor

    @staticmethod
    def __new__(cls, shape_alone: Tensor, device: torch.device) -> "Ghost":
        """A ghost on ``device`` of the shape and type of a tensor on torch's meta device."""
        ghost: Ghost = torch.Tensor._make_wrapper_subclass(
            cls,
            shape_alone.shape,
            strides=shape_alone.stride(),
            storage_offset=shape_alone.storage_offset(),
            dtype=shape_alone.dtype,
            device=device,
        )
        ghost.shape_alone = shape_alone
        return ghost

    @classmethod
    def of(cls, tensor: Tensor) -> "Ghost":
        """The ghost of a tensor."""
        return cls(tensor.detach().to("meta"), tensor.device)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` on torch's meta device; the result is a ghost.

        Raises:
            TypeError: if it would write into a tensor with numbers.
        """
        in_place = func._schema.is_mutable
        if in_place and not isinstance(args[0], Ghost):
            raise TypeError(f"{func} writes a ghost into a tensor with numbers")
        device = next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Ghost))
        shapes, named = tree_map_only(Tensor, _without_numbers, (args, kwargs or {}))
        if named.get("device") is not None:
            named["device"] = torch.device("meta")
        found = func(*shapes, **named)
        return args[0] if in_place else tree_map_only(Tensor, lambda shape: cls(shape, device), found)


def _without_numbers(tensor: Tensor) -> Tensor:
    return tensor.shape_alone if isinstance(tensor, Ghost) else tensor.detach().to("meta")
