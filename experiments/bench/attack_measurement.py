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
from experiments.bench.benchmark import Measurement, Row
from experiments.bench.cases import Case, Contender
from experiments.bench.victims import make_victim
from experiments.leakage import OK, match
from fl_sim.draws import derive_seed
from fl_sim.errors import explain
from fl_sim.network import count_parameters

REACHED_DB = 40.0
"""The PSNR that seconds and evaluations are counted up to."""

WORST_DB = 0.0
"""PSNR of a failure: the lowest that two images in [0, 1] can have."""


@dataclass(frozen=True)
class AttackMeasurement(Measurement):
    """One contender on victim ``index`` of a case; ``checkpoint`` is None for an untrained model."""

    case: Case
    contender: Contender
    index: int
    seed: int
    device: str
    checkpoint: Path | None = None

    def subject(self) -> Row:
        """The cell of the benchmark, the victim and the seed."""
        return {
            "cell": self.case.model_dump(mode="json")
            | {"attack": self.contender.name, "arguments": self.contender.arguments},
            "victim": self.index,
            "seed": self.seed,
            "checkpoint": self.checkpoint.name if self.checkpoint else None,
        }

    def measure(self) -> Row:
        """Attack the victim and compare what comes out with the truth; the status of a failure is its reason."""
        victim = make_victim(self.case, self.checkpoint, self.seed, self.index)
        attack, arguments = self.contender.attack, self.contender.arguments
        attack_seed = derive_seed(self.seed, "attack", attack, self.index)
        trace = Trace()
        found = attempt(attack, arguments, victim.observation, attack_seed, self.device, trace)
        facts = {
            "photographs": victim.photographs,
            "parameters": count_parameters(victim.observation.weights.values()),
            "timesteps": victim.timesteps.tolist(),
        }
        threat = victim.observation.threat
        result = compared(victim.images, victim.timesteps, found, threat)
        if victim.labels is not None:
            labels = victim.labels.tolist()
            recovered = [-1] * len(labels) if isinstance(found, str) else _labels(found)
            facts["labels"], result["labels_verdict"] = labels, _verdict(labels, recovered, threat)
        return facts | result | ({} if isinstance(found, str) else time_to_threshold(victim.images, found, trace))


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


def _labels(found: Reconstruction) -> list[int]:
    """The labels that an attack found, -1 for each that it did not."""
    return [-1] * len(found.timesteps) if found.labels is None else found.labels.tolist()


def time_to_threshold(images: Tensor, found: Reconstruction, trace: Trace) -> Row:
    """Seconds without those that tracing took, and evaluations and seconds until REACHED_DB, as median over images."""
    seconds = found.seconds - trace.own_seconds
    steps = [*trace.snapshots, Snapshot(found.evaluations, seconds, found.images)]
    reached = next((step for step in steps if psnr(images, step.images).median() >= REACHED_DB), None)
    return {
        "seconds": seconds,
        "evaluations_to_40_db": reached.evaluations if reached else None,
        "seconds_to_40_db": reached.seconds if reached else None,
    }


def psnr(truth: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB of each true image [N] under the best pairing; the worst there is if the images are not finite.

    One image that stands for several is compared with their mean, [1].
    """
    if len(images) == 1:
        truth = truth.mean(dim=0, keepdim=True)
    if not torch.isfinite(images).all():
        return torch.full((len(truth),), WORST_DB, dtype=torch.float64)
    return metrics.psnr(truth, match(truth, images))


def _verdict(truth: list[int], recovered: list[int], threat: ThreatModel) -> dict[str, int] | None:
    """How many values were recovered exactly, not at all, or wrongly, in any order; None if they were given."""
    if threat is ThreatModel.KNOWN:
        return None
    claimed = Counter(value for value in recovered if value >= 0)
    exact = (Counter(truth) & claimed).total()
    return {"exact": exact, "unknown": len(recovered) - claimed.total(), "wrong": claimed.total() - exact}
