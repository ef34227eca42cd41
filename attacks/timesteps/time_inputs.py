"""Which layers of a network see nothing but the timestep, which of them share an input, and what that input is.

The network runs on images without numbers (attacks/timesteps/ghost.py). A layer whose input still has numbers never
sees an image. What the network calls its layers does not matter.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.ghost import Ghost
from fl_sim.errors import explain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimeInput:
    """An input x(t) for C timesteps, float64 [C,D] on the CPU, and the layers that it goes into.

    ``layers``: names of linear layers, or of embedding tables, which are linear layers of one-hot inputs; in the
    model's own order.
    """

    layers: list[str]
    inputs: Tensor


def time_inputs(problem: InversionProblem, timesteps: Tensor, moved: Collection[str] = ()) -> list[TimeInput]:
    """All inputs that depend on the timestep alone, at ``timesteps`` int64 [C], in the order of their computation.

    They are computed by the model's own arithmetic, at the weights that were sent. What depends on the parameters
    ``moved`` is left out. There are none if the network cannot run without the images' numbers.
    """
    seen: dict[str, list[Tensor | None]] = {}

    def note(name: str, layer: nn.Linear | nn.Embedding, arguments: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, []).append(_by_timestep(layer, arguments[0], len(timesteps)) if arguments else None)

    modules = dict(problem.model.named_modules())
    layers = {name: layer for name, layer in modules.items() if isinstance(layer, nn.Linear | nn.Embedding)}
    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            _run_without_images(problem, timesteps.to(problem.device), moved)
    except Exception as error:  # a network may do anything, also what needs numbers
        logger.warning("whether layers see the timestep alone is not known: %s", explain(error))
        return []
    finally:
        for handle in handles:
            handle.remove()
    # A layer that is used twice has a gradient of two inputs.
    known = {name: inputs[0] for name, inputs in seen.items() if len(inputs) == 1 and inputs[0] is not None}
    several = len(timesteps.unique()) > 1
    moving = {name: inputs for name, inputs in known.items() if not (several and _constant(inputs))}
    return _shared(moving, list(modules))


def _run_without_images(problem: InversionProblem, timesteps: Tensor, moved: Collection[str]) -> None:
    images = Ghost(torch.empty(len(timesteps), *problem.image_shape, device="meta"), problem.device)
    unknown: dict[str, Tensor] = {name: Ghost.of(problem.model.get_parameter(name)) for name in moved}
    functional_call(problem.model, unknown, (images, timesteps))


def _by_timestep(layer: nn.Linear | nn.Embedding, given: Tensor, count: int) -> Tensor | None:
    """What a layer was given as a row for each of ``count`` timesteps, [C,D]; None if it is not that."""
    if isinstance(given, Ghost) or given.shape[:1] != (count,):
        return None
    width = 1 if isinstance(layer, nn.Embedding) else layer.in_features
    if given.numel() != count * width:
        return None
    if isinstance(layer, nn.Embedding):
        given = nn.functional.one_hot(given.reshape(count).long(), layer.num_embeddings)
    return given.reshape(count, -1).double().cpu()


def _constant(inputs: Tensor) -> bool:
    return bool((inputs == inputs[:1]).all())


def _shared(inputs: dict[str, Tensor], order: list[str]) -> list[TimeInput]:
    """The layers with equal inputs together, their names sorted by ``order``."""
    groups: list[TimeInput] = []
    for name, own in inputs.items():
        group = next((group for group in groups if torch.equal(group.inputs, own)), None)
        if group is None:
            groups.append(TimeInput([name], own))
        else:
            group.layers.append(name)
    return [TimeInput(sorted(group.layers, key=order.index), group.inputs) for group in groups]
