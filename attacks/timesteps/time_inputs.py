"""Which layers of a network see nothing but timestep and label, which of them share an input, and what that input is.

The network runs on images without numbers (attacks/timesteps/ghost.py). A layer whose input still has numbers never
sees an image; if it has numbers without those of the timesteps too, it sees the label alone. What the network calls its
layers does not matter.
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
class KnownInput:
    """An input x of linear layers for C candidates, float64 [C,D] on the CPU, and the layers that it goes into.

    A candidate is a timestep, a label, or a pair of both. ``layers``: names of linear layers, or of embedding tables,
    which are linear layers of one-hot inputs; in the model's own order.
    """

    layers: list[str]
    inputs: Tensor


def time_inputs(
    problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None, moved: Collection[str] = ()
) -> list[KnownInput]:
    """All inputs that depend on the timestep and on no image, at ``timesteps`` int64 [C], in the order of computation.

    In a network that takes labels those that depend on the label too count only if the candidates have ``labels`` int64
    [C]. The inputs are computed by the model's own arithmetic, at the weights that were sent. What depends on the
    parameters ``moved`` is left out. There are none if the network cannot run without the images' numbers.
    """
    seen = _inputs(problem, timesteps, labels, moved)
    of_labels = {} if labels is None else _inputs(problem, None, labels)
    known = {name: inputs for name, inputs in seen.items() if name not in of_labels}
    return _shared(problem, _moving(known, timesteps))


def label_inputs(problem: InversionProblem, labels: Tensor) -> list[KnownInput]:
    """All inputs that depend on the label alone, at ``labels`` int64 [C], like ``time_inputs``."""
    return _shared(problem, _moving(_inputs(problem, None, labels), labels))


def _inputs(
    problem: InversionProblem, timesteps: Tensor | None, labels: Tensor | None, moved: Collection[str] = ()
) -> dict[str, Tensor]:
    """By layer, in the order of computation, the inputs [C,D] that have numbers where the images have none.

    Nor have the timesteps, the labels and the parameters that are not given.
    """
    [count] = {len(given) for given in (timesteps, labels) if given is not None}
    seen: dict[str, list[Tensor | None]] = {}

    def note(name: str, layer: nn.Linear | nn.Embedding, arguments: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, []).append(_by_candidate(layer, arguments[0], count) if arguments else None)

    modules = problem.model.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, nn.Linear | nn.Embedding)}
    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            _run_without_images(problem, count, timesteps, labels, moved)
    except Exception as error:  # a network may do anything, also what needs numbers
        logger.warning("whether layers see the timestep alone is not known: %s", explain(error))
        return {}
    finally:
        for handle in handles:
            handle.remove()
    # A layer that is used twice has a gradient of two inputs.
    return {name: inputs[0] for name, inputs in seen.items() if len(inputs) == 1 and inputs[0] is not None}


def _run_without_images(
    problem: InversionProblem, count: int, timesteps: Tensor | None, labels: Tensor | None, moved: Collection[str]
) -> None:
    def given(numbers: Tensor | None) -> Tensor:
        whole = torch.empty(count, dtype=torch.int64, device="meta")
        return Ghost(whole, problem.device) if numbers is None else numbers.to(problem.device)

    images = Ghost(torch.empty(count, *problem.image_shape, device="meta"), problem.device)
    told = [timesteps] if problem.num_classes is None else [timesteps, labels]
    unknown: dict[str, Tensor] = {name: Ghost.of(problem.model.get_parameter(name)) for name in moved}
    functional_call(problem.model, unknown, (images, *map(given, told)))


def _by_candidate(layer: nn.Linear | nn.Embedding, given: Tensor, count: int) -> Tensor | None:
    """What a layer was given as a row for each of ``count`` candidates, [C,D]; None if it is not that."""
    if isinstance(given, Ghost) or given.shape[:1] != (count,):
        return None
    width = 1 if isinstance(layer, nn.Embedding) else layer.in_features
    if given.numel() != count * width:
        return None
    if isinstance(layer, nn.Embedding):
        given = nn.functional.one_hot(given.reshape(count).long(), layer.num_embeddings)
    return given.reshape(count, -1).double().cpu()


def _moving(inputs: dict[str, Tensor], candidates: Tensor) -> dict[str, Tensor]:
    """Those of the inputs that are not the same for all candidates, if these differ."""
    several = len(candidates.unique()) > 1
    return {name: own for name, own in inputs.items() if not (several and (own == own[:1]).all())}


def _shared(problem: InversionProblem, inputs: dict[str, Tensor]) -> list[KnownInput]:
    """The layers with equal inputs together, their names in the model's own order."""
    order = [name for name, _ in problem.model.named_modules()]
    groups: list[KnownInput] = []
    for name, own in inputs.items():
        group = next((group for group in groups if torch.equal(group.inputs, own)), None)
        if group is None:
            groups.append(KnownInput([name], own))
        else:
            group.layers.append(name)
    return [KnownInput(sorted(group.layers, key=order.index), group.inputs) for group in groups]
