"""One measurement: one attack on one victim, and the row that is written about it."""

import json
import platform
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.attack import Reconstruction, create
from attacks.observation import ThreatModel
from attacks.trace import Snapshot, Trace
from attacks.workers import failure_reason
from experiments import metrics
from experiments.bench.cases import Case, Contender
from experiments.bench.victims import Victim, make_victim
from experiments.leakage import OK, match
from fl_sim.diffusion import count_parameters
from fl_sim.draws import derive_seed

Row = dict[str, Any]

REACHED_DB = 40.0
"""The PSNR that seconds and evaluations are counted up to."""

WORST_DB = 0.0
"""PSNR of a failure: the lowest that two images in [0, 1] can have."""

_SOFTWARE = ("fl-sim", "torch", "diffusers", "flwr")


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


def row_key(row: Row) -> str:
    """A row's identity as text, the same for a row that was written to a file and read again."""
    identity = ("cell", "victim", "seed", "checkpoint", "device", "software")
    return json.dumps([row[name] for name in identity], sort_keys=True)


def measure(job: Job) -> Row:
    """Attack the victim with one torch thread and compare what comes out with the truth.

    An attack that fails gives a row with its reason as status.
    """
    torch.set_num_threads(1)
    victim = make_victim(job.case, job.checkpoint, job.seed, job.index)
    attack_seed = derive_seed(job.seed, "attack", job.contender.attack, job.index)
    trace = Trace()
    try:
        attack = create(job.contender.attack, job.contender.arguments)
        found: Reconstruction | str = attack.reconstruct(victim.observation, attack_seed, job.device, trace)
    except Exception as error:
        found = failure_reason(error)
    return (
        job.identity()
        | {
            "photographs": victim.photographs,
            "parameters": count_parameters(victim.observation.weights.values()),
            "timesteps": victim.timesteps.tolist(),
        }
        | (_failure(found, job.case) if isinstance(found, str) else _findings(victim, found, trace))
    )


def _failure(reason: str, case: Case) -> Row:
    return {
        "status": reason,
        "psnr": [WORST_DB] * case.samples,
        "timesteps_recovered": [-1] * case.samples,
        "timesteps_verdict": _verdict([-1] * case.samples, [-1] * case.samples, case.threat),
    }


def _findings(victim: Victim, found: Reconstruction, trace: Trace) -> Row:
    seconds = found.seconds - trace.own_seconds
    way = [*trace.snapshots, Snapshot(found.evaluations, seconds, found.images)]
    reached = next((step for step in way if psnr(victim.images, step.images).median() >= REACHED_DB), None)
    recovered = found.timesteps.tolist()
    return {
        "status": OK,
        "psnr": psnr(victim.images, found.images).tolist(),
        "timesteps_recovered": recovered,
        "timesteps_verdict": _verdict(victim.timesteps.tolist(), recovered, victim.observation.threat),
        "matching_loss": found.matching_loss,
        "evaluations": found.evaluations,
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


@cache
def software() -> str:
    """The versions that a result depends on, in one line."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _SOFTWARE)])


@cache
def device_name(device: str) -> str:
    """The model of the processor behind a torch device, as far as the machine tells."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
