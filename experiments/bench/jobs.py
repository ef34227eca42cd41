"""One measurement: one attack on one victim, and the row that is written about it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import Observation, ThreatModel
from attacks.registry import create
from attacks.trace import Snapshot, Trace
from experiments import metrics
from experiments.bench.cases import Case, Contender
from experiments.bench.measuring import Row, device_name, software
from experiments.bench.victims import make_victim
from experiments.leakage import OK, match
from fl_sim.diffusion import count_parameters
from fl_sim.draws import derive_seed
from fl_sim.errors import explain

REACHED_DB = 40.0
"""The PSNR that seconds and evaluations are counted up to."""

WORST_DB = 0.0
"""PSNR of a failure: the lowest that two images in [0, 1] can have."""


@dataclass(frozen=True)
class Job:
    """One contender on victim ``index`` of a case; ``checkpoint`` is None for an untrained model."""

    case: Case
    contender: Contender
    index: int
    seed: int
    device: str
    checkpoint: Path | None = None

    def identity(self) -> Row:
        """What makes two measurements the same one, as the first part of their row."""
        return {
            "cell": self.case.model_dump(mode="json")
            | {"attack": self.contender.name, "arguments": self.contender.arguments},
            "victim": self.index,
            "seed": self.seed,
            "checkpoint": self.checkpoint.name if self.checkpoint else None,
            "device": device_name(self.device),
            "software": software(),
        }


def measure(job: Job) -> Row:
    """Attack the victim with one torch thread and compare what comes out with the truth.

    An attack that fails gives a row with its reason as status.
    """
    torch.set_num_threads(1)
    victim = make_victim(job.case, job.checkpoint, job.seed, job.index)
    attack_seed = derive_seed(job.seed, "attack", job.contender.attack, job.index)
    trace = Trace()
    contender = job.contender
    found = attempt(contender.attack, contender.arguments, victim.observation, attack_seed, job.device, trace)
    return (
        job.identity()
        | {
            "photographs": victim.photographs,
            "parameters": count_parameters(victim.observation.weights.values()),
            "timesteps": victim.timesteps.tolist(),
        }
        | compared(victim.images, victim.timesteps, found, victim.observation.threat)
        | ({} if isinstance(found, str) else _way(victim.images, found, trace))
    )


def attempt(
    attack: str,
    arguments: dict[str, Any],
    observation: Observation,
    seed: int,
    device: str,
    trace: Trace | None = None,
) -> Reconstruction | str:
    """What the attack finds, or the reason why it fails."""
    try:
        return create(attack, arguments).reconstruct(observation, seed, device, trace)
    except Exception as error:
        return explain(error)


def compared(images: Tensor, timesteps: Tensor, found: Reconstruction | str, threat: ThreatModel) -> Row:
    """What was found beside the truth: ``images`` [N,C,H,W] in [0, 1] and ``timesteps`` [N].

    A failure, whose reason is the status, counts as the worst reconstruction there is.
    """
    truth = timesteps.tolist()
    if isinstance(found, str):
        unknown = [-1] * len(truth)
        return {
            "status": found,
            "psnr": [WORST_DB] * len(truth),
            "timesteps_recovered": unknown,
            "timesteps_verdict": _verdict(truth, unknown, threat),
        }
    recovered = found.timesteps.tolist()
    return {
        "status": OK,
        "psnr": psnr(images, found.images).tolist(),
        "timesteps_recovered": recovered,
        "timesteps_verdict": _verdict(truth, recovered, threat),
        "matching_loss": found.matching_loss,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
    }


def _way(images: Tensor, found: Reconstruction, trace: Trace) -> Row:
    """How long it took, without the time that watching took, and how long to get close to the truth."""
    seconds = found.seconds - trace.own_seconds
    way = [*trace.snapshots, Snapshot(found.evaluations, seconds, found.images)]
    reached = next((step for step in way if psnr(images, step.images).median() >= REACHED_DB), None)
    return {
        "seconds": seconds,
        "evaluations_to_40_db": reached.evaluations if reached else None,
        "seconds_to_40_db": reached.seconds if reached else None,
    }


def psnr(truth: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB of each true image [N] under the best pairing; the worst there is if the images are not finite."""
    if not torch.isfinite(images).all():
        return torch.full((len(truth),), WORST_DB, dtype=torch.float64)
    return metrics.psnr(truth, match(truth, images))


def _verdict(truth: list[int], recovered: list[int], threat: ThreatModel) -> dict[str, int] | None:
    """How many timesteps were told exactly, not at all, or wrongly, in any order; None if the attack was given them."""
    if threat is ThreatModel.KNOWN:
        return None
    told = Counter(timestep for timestep in recovered if timestep >= 0)
    exact = (Counter(truth) & told).total()
    return {"exact": exact, "unknown": len(recovered) - told.total(), "wrong": told.total() - exact}
