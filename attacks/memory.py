"""How much memory an attack takes: measured while it runs, and estimated before it starts.

Measured is the resident memory of the whole process, python and torch included: a worker process outlives its attacks,
so that its own record of the highest value ever would tell of an earlier one. On CUDA it is what torch has allocated.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil
import torch
from torch import Tensor, nn

from attacks.observation import Circumstances, Observation
from fl_sim import network

MIB = 2**20
FLOAT = 4
"""Bytes of a float32."""
SAMPLED_EVERY = 0.02
"""Seconds between two looks at the resident memory; one evaluation of a network worth asking about takes longer."""
SMALL_THINGS = 32
"""MiB that an attack takes on the smallest network: libraries that are loaded late, and the allocator's reserves."""


class PeakMemory:
    """The peak of memory inside a ``with`` block, on one device.

    Attributes:
        mib: MiB; known when the block is left.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._peak = 0
        self.mib = 0.0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()
            self._look()
        self.mib = self._peak / MIB

    def _sample(self) -> None:
        while not self._done.wait(SAMPLED_EVERY):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)


def estimate_memory(
    observation: Observation, update_copies: int, curvature_pairs: int, at_once: int | None = None
) -> float:
    """MiB that an attack takes beside the observation and the process.

    The sum of the network's weights, vectors of the update's size, for every local step that is simulated three more,
    what the backward pass keeps of the forward pass, and L-BFGS's pairs of two vectors of noisy images and residuals.
    Measured peaks were 0.7 to 0.8 times this, on networks of 0.6, 9.7 and 35.7 million parameters.

    Args:
        observation: what is attacked.
        update_copies: the attack's (attacks/attack.py).
        curvature_pairs: the attack's.
        at_once: images that go through the network together, of an attack that simulates no local steps; unset: all.
    """
    seen = observation.circumstances
    update = FLOAT * sum(value.numel() for value in observation.update.values())
    weights = FLOAT * sum(value.numel() for value in observation.weights.values())
    simulated = 3 * seen.local_steps if seen.local_steps > 1 and at_once is None else 0
    samples = at_once or seen.num_samples
    unknowns = 2 * FLOAT * samples * torch.Size(seen.image_shape).numel()
    history = 2 * curvature_pairs * unknowns
    return (
        weights + (update_copies + simulated) * update + _kept_for_backward(seen, samples) + history
    ) / MIB + SMALL_THINGS


def available_memory(device: str) -> float:
    """MiB that are left on the device: of the machine's memory, or of the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / MIB
    return psutil.virtual_memory().available / MIB


def _kept_for_backward(seen: Circumstances, samples: int) -> int:
    """Bytes that the forward pass of the attacked network leaves for the backward pass, the weights apart."""
    model, labelled = network.outline(seen.model), seen.task.label_count(seen.model) is not None

    def predict(images: Tensor, timesteps: Tensor) -> Tensor:
        return seen.task.predict(model, images, timesteps, timesteps if labelled else None)

    return kept_for_backward(predict, seen.image_shape, samples)


def kept_for_backward(
    predict: Callable[[Tensor, Tensor], Tensor], image_shape: tuple[int, int, int], samples: int
) -> int:
    """Bytes that a forward pass leaves for the backward pass, parameters apart.

    Counted on torch's meta device, on which nothing is computed. A network that cannot be run there counts nothing.

    Args:
        predict: the forward pass, from images [N,C,H,W] and timesteps int64 [N], by a network on that device.
        image_shape: [C,H,W].
        samples: N.
    """
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage, storage.nbytes()  # the storage itself, so that no other gets its address
        return tensor

    images = torch.zeros(samples, *image_shape, device="meta", requires_grad=True)
    timesteps = torch.zeros(samples, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            predict(images, timesteps)
    except Exception:  # numbers are asked for, an operation is unknown there, or whatever somebody's own network raises
        return 0
    return sum(size for _, size in kept.values())
