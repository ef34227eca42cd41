"""How many runs of a sweep are carried out at a time."""

import os
from collections.abc import Sequence

import torch

from experiments.settings import ExperimentSettings
from fl_sim.federation import clients_at_once


def jobs_that_fit(settings: Sequence[ExperimentSettings]) -> int:
    """How many such runs keep the processors of this machine busy: one where they share a GPU.

    A run counts with the clients that train at once, or with its attack workers if these are more: attacks lag behind
    the rounds and go on after them.
    """
    if torch.cuda.is_available():
        return 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // max(_busy(each, cpus) for each in settings))


def _busy(settings: ExperimentSettings, cpus: int) -> int:
    attack = settings.attack
    return max(clients_at_once(settings.federation, cpus), attack.workers * attack.threads if attack.in_run else 0)
