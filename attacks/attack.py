"""The interface of every attack, and what it returns.

Adding an attack: subclass Attack in a file of its own, give it a ``name`` and what it ``needs``, implement ``search``,
and register it (attacks/registry.py).
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from attacks.inversion.adam_steps import tells_signs
from attacks.inversion.evaluation_log import EvaluationLog
from attacks.inversion.problem import InversionProblem
from attacks.memory import PeakMemory, available_memory, estimate_memory
from attacks.observation import Circumstances, Observation
from attacks.trace import Trace, Watch, to_unit_range
from fl_sim import diffusion
from fl_sim.bounds import check_numbers
from fl_sim.diffusion import DiffusionTask
from fl_sim.errors import UserError
from fl_sim.network import TrainingTask


class AttackError(UserError):
    """An attack that does not exist, has wrong arguments, or cannot work on an observation."""


class Needs(Flag):
    """What an attack must know beyond the update and the model."""

    NOTHING = 0
    NOISE_AND_TIMESTEPS = auto()
    """The known threat model: the server dictated noise and timesteps. Of a classifier, which has neither: nothing."""
    GRADIENT = auto()
    """A gradient (or a delta that determines one: a single SGD step), not the result of several local steps."""
    SGD_STEPS = auto()
    """A gradient, or the delta of any number of local SGD steps."""
    LOCAL_STEPS = auto()
    """A gradient, the delta of any number of local SGD steps, or that of one or two Adam steps of one client
    (attacks/inversion/gradient_estimate.py, attacks/inversion/adam_steps.py)."""
    OWN_SIGNS = auto()
    """Where signs alone were sent, those of one client: a majority of several clients' signs is no gradient's sign."""
    MAGNITUDES = auto()
    """The gradient's entries, not their signs alone."""
    DIFFUSION_TASK = auto()
    """A network that clients train by the loss of diffusion."""


@dataclass(frozen=True)
class Outcome:
    """What a search found: images [N,C,H,W] in [-1, 1] (unclamped), timesteps int64 [N] (-1 = unknown).

    ``labels`` int64 [N] likewise, where training uses labels. None: the search says nothing of them. Of an attack whose
    one image stands for all (``Attack.representative``) each is [1].
    """

    images: Tensor
    timesteps: Tensor | None
    matching_loss: float
    labels: Tensor | None = None


@dataclass(frozen=True)
class Reconstruction:
    """The result of an attack: images float32 [N,C,H,W] in [0, 1], timesteps int64 [N], -1 if unknown; on the CPU.

    ``labels`` int64 [N], -1 if unknown; None if training uses no labels. ``representative``: there is one image, which
    stands for what all images behind the update share; timesteps and labels are then [1] too.
    """

    images: Tensor
    timesteps: Tensor
    matching_loss: float
    evaluations: int
    seconds: float
    device: str
    attack: str
    settings: dict[str, Any]
    seed: int
    peak_memory: float | None = None
    """In MiB (attacks/memory.py); None in files of earlier versions."""
    labels: Tensor | None = None
    representative: bool = False


class Attack(BaseModel, ABC):
    """Gradient inversion: from one Observation to a Reconstruction.

    The fields of a subclass are its arguments, validated when it is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _check_numbers = field_validator("*")(check_numbers)

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    representative: ClassVar[bool] = False
    """Whether it finds one image that stands for all N behind the update."""
    update_copies: ClassVar[int] = 9
    """Vectors of the update's size that the attack holds at its peak, about; to estimate its memory."""

    memory_savers: ClassVar[str] = "a smaller network, fewer images, or a shorter history"
    """What makes the attack fit into less memory, in words."""

    @property
    def curvature_pairs(self) -> int:
        """Pairs of points and derivatives that the attack keeps, at most; to estimate its memory."""
        return 0

    def images_at_once(self, observation: Observation) -> int | None:  # noqa: ARG002
        """Images that it sends through the network together; None: all, whose local steps it may simulate."""
        return None

    def reconstruct(
        self,
        observation: Observation,
        seed: int,
        device: str = "cpu",
        trace: Trace | None = None,
        *,
        log: EvaluationLog | None = None,
        watch: Watch | None = None,
    ) -> Reconstruction:
        """Attack one observation. Same observation, seed, device and thread count: same result, bit for bit.

        A ``trace`` takes down the images on the way, a ``log`` the evaluations, and ``watch`` is told of each; they
        change nothing. From a log of the same attack that was broken off the search goes on where that ended.

        Raises:
            AttackError: if the observation lacks what the attack needs, the attack does not fit into memory, or what is
                found is no number.
            CheckpointError: if the log is not of this attack.
        """
        self.check(observation)
        self._check_memory(observation, device)
        started = time.perf_counter()
        with PeakMemory(device) as memory, repeatable_arithmetic():
            problem = InversionProblem(observation, device, trace, log, watch)
            outcome = self.search(problem, torch.Generator().manual_seed(seed))
        if not (outcome.images.isfinite().all() and math.isfinite(outcome.matching_loss)):
            raise AttackError(f"attack {self.name!r} broke down: {_why_not_finite(observation)}")
        timesteps = _told(problem, outcome.timesteps, problem.timesteps)
        check_signal(problem.task, timesteps)
        return Reconstruction(
            images=to_unit_range(outcome.images),
            timesteps=timesteps,
            matching_loss=outcome.matching_loss,
            evaluations=problem.budget.spent,
            seconds=time.perf_counter() - started + (log.earlier_seconds if log is not None else 0.0),
            device=device,
            attack=self.name,
            settings=self.model_dump(mode="json"),
            seed=seed,
            peak_memory=memory.mib,
            labels=None if problem.num_classes is None else _told(problem, outcome.labels, problem.labels),
            representative=self.representative,
        )

    def further_memory(self, observation: Observation) -> float:  # noqa: ARG002  # for attacks that override it
        """MiB that the attack takes beside those of the attacked network, such as for a second one; to estimate."""
        return 0.0

    def _check_memory(self, observation: Observation, device: str) -> None:
        """Refuse an attack that would not fit into the memory that is left on the device."""
        at_once = self.images_at_once(observation)
        needed = estimate_memory(observation, self.update_copies, self.curvature_pairs, at_once)
        needed += self.further_memory(observation)
        if needed > (available := available_memory(device)):
            raise AttackError(
                f"attack {self.name!r} needs about {needed:.0f} MiB of memory on {device}, {available:.0f} MiB are "
                f"left; allowed: {self.memory_savers}"
            )

    def check(self, observation: Observation) -> None:
        """Refuse an observation that lacks what this attack needs, naming what that is and what there is instead."""
        seen = observation.circumstances
        signs = seen.defence is not None and seen.defence.signs
        lacking = {
            Needs.NOISE_AND_TIMESTEPS: isinstance(seen.task, DiffusionTask) and observation.noise is None,
            Needs.GRADIENT: not _reveals_gradient(seen),
            Needs.SGD_STEPS: not _of_sgd(seen),
            Needs.LOCAL_STEPS: not _reveals_local_steps(seen),
            Needs.OWN_SIGNS: signs and seen.num_clients > 1,
            Needs.MAGNITUDES: signs,
            Needs.DIFFUSION_TASK: not isinstance(seen.task, DiffusionTask),
        }
        missing = [need for need, lacks in lacking.items() if lacks and need in self.needs]
        if missing:
            reasons = "; ".join(f"{MEANING[need]}: {_instead(need, seen)}" for need in missing)
            raise AttackError(f"attack {self.name!r} needs {reasons}")
        if observation.timesteps is not None:
            check_signal(seen.task, observation.timesteps)

    @abstractmethod
    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find images whose gradient is the observed one; all randomness comes from ``generator`` (on the CPU)."""


def check_signal(task: TrainingTask, timesteps: Tensor) -> None:
    """Refuse ``timesteps`` int64 [N], -1 where unknown, at all of which an update tells nothing of the images."""
    if bool((timesteps < 0).any()) or not isinstance(task, DiffusionTask):
        return
    if bool(diffusion.determines_x0(task.noise_schedule(), timesteps.long()).any()):
        return
    where = ", ".join(map(str, sorted(set(timesteps.long().tolist()))))
    raise AttackError(
        f"at t = {where} the noisy image holds nothing of the image: the noise schedule's signal-to-noise ratio is 0 "
        "there, and with prediction_type = 'epsilon' the network is trained to predict the noise alone"
    )


def _told(problem: InversionProblem, found: Tensor | None, known: Tensor | None) -> Tensor:
    """The timesteps or labels int64 [N] that a search found, or else that are known, or else -1."""
    values = known if found is None else found
    return torch.full((problem.samples,), -1) if values is None else values.detach().cpu().long()


MEANING = {
    Needs.NOISE_AND_TIMESTEPS: "noise and timesteps that the server dictated (threat = 'known')",
    Needs.GRADIENT: "a gradient, or the weights after a single SGD step",
    Needs.SGD_STEPS: "a gradient, or the weights after SGD steps",
    Needs.LOCAL_STEPS: "a gradient, or the weights after SGD steps or after one or two Adam steps of one client",
    Needs.OWN_SIGNS: "the signs of one client",
    Needs.MAGNITUDES: "the magnitudes of the update's entries",
    Needs.DIFFUSION_TASK: "clients that train a diffusion model (task = 'diffusion')",
}
"""Every need in words, as a refusal has them."""


def _instead(need: Needs, seen: Circumstances) -> str:
    """What there is in place of what an attack needs, in words."""
    if need is Needs.DIFFUSION_TASK:
        return f"here they train a classifier (task = {seen.task.task!r})"
    if need is Needs.NOISE_AND_TIMESTEPS:
        return "here clients drew their own (threat = 'private')"
    if need is Needs.MAGNITUDES:
        return "here signs alone were sent"
    if need is Needs.OWN_SIGNS:
        return f"here the signs of {seen.num_clients} clients were summed"
    assert seen.local_optimizer is not None  # of a gradient nothing is lacking
    optimizer = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[seen.local_optimizer.name]
    several = f" of {seen.num_clients} clients" if seen.num_clients > 1 else ""
    steps = f"{seen.local_steps} {optimizer} steps" if seen.local_steps > 1 else f"one {optimizer} step"
    adam = ""
    if seen.local_optimizer.adaptive:
        adam = f"; of {optimizer} only a single step reveals its gradient, and two of one client's their signs"
    return f"here are {steps}{several} (local_steps = {seen.local_steps}){adam}"


def _reveals_gradient(seen: Circumstances) -> bool:
    return _of_sgd(seen) and seen.local_steps == 1


def _of_sgd(seen: Circumstances) -> bool:
    return seen.update == "gradient" or (seen.local_optimizer is not None and not seen.local_optimizer.adaptive)


def _reveals_local_steps(seen: Circumstances) -> bool:
    return _of_sgd(seen) or (seen.local_steps == 1 and seen.num_clients == 1) or tells_signs(seen)


def _why_not_finite(observation: Observation) -> str:
    """The reason in words, as far as the update's size tells."""
    largest = max(float(value.abs().max()) for value in observation.update.values())
    if math.isfinite(largest**2) and float(torch.tensor(largest).square()) >= torch.finfo(torch.float32).tiny:
        return "its search ran away to numbers that are not finite; another seed may do"
    return f"the update's largest entry is {largest:.3g}, the square of which leaves the range of float32"


@contextmanager
def repeatable_arithmetic() -> Iterator[None]:
    """Full float32 precision and, on CUDA, the same convolution kernels every time."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
