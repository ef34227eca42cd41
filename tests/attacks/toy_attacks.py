"""Attacks that find nothing, each misbehaving in its own way, and an observation to set them on."""

import os
import time
from pathlib import Path

import torch

from attacks.attack import Attack, Outcome
from attacks.inversion.problem import InversionProblem
from attacks.observation import Circumstances, Observation
from fl_sim.diffusion import scheduler_config
from fl_sim.network import build_model, trainable_parameters, unet_config

MODEL = unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
SHAPE = (3, 8, 8)


def tiny_observation(server_round: int = 1, client: int = 0) -> Observation:
    torch.manual_seed(client)
    model = build_model(MODEL)
    return Observation(
        Circumstances(round=server_round, client=client, image_shape=SHAPE, scheduler=scheduler_config(), model=MODEL),
        weights=dict(model.state_dict()),
        update={name: torch.randn_like(value) for name, value in trainable_parameters(model).items()},
    )


class Guess(Attack):
    """Noise as image; the matching loss tells the number of torch threads."""

    name = "guess"

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        unknown = torch.full((problem.samples,), -1)
        return Outcome(problem.randn(generator), unknown, matching_loss=float(torch.get_num_threads()))


class Breaks(Guess):
    """Cannot even be made."""

    name = "breaks"

    def model_post_init(self, _: object) -> None:
        raise RuntimeError("no luck today")


class Sleep(Guess):
    name = "sleep"

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        time.sleep(600)
        return super().search(problem, generator)


class Fail(Guess):
    name = "fail"

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        raise RuntimeError("no luck\ntoday")


class Die(Guess):
    """Takes its process down as often as told; every death leaves a file in ``graves``."""

    name = "die"
    graves: Path
    times: int

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        if len(list(self.graves.iterdir())) < self.times:
            (self.graves / str(os.getpid())).touch()
            os._exit(1)
        return super().search(problem, generator)
