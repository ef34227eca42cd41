import dataclasses
import math

import pytest
import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim

CLIP_NORM = 0.5


def scale_known(
    norm: float, defence: DefenceDisclosure, noise_std: float = 0.0, clients: int = 1, **victim: object
) -> bool:
    """Whether an attacker who knows of ``defence`` takes an update scaled to ``norm``, with noise, for unclipped."""
    generator = torch.Generator().manual_seed(4)

    def defend(update: dict[str, Tensor]) -> dict[str, Tensor]:
        factor = norm / math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
        return {
            name: value * factor + noise_std * torch.randn(value.shape, generator=generator)
            for name, value in update.items()
        }

    observation = make_victim(defend=defend, defence=defence, **victim).observation  # type: ignore[arg-type]
    changes = {"num_clients": clients, "client": -1 if clients > 1 else 0}
    circumstances = observation.circumstances.model_copy(update=changes)
    return InversionProblem(dataclasses.replace(observation, circumstances=circumstances), "cpu").scale_known


def test_rounding_to_16_bits_is_noise() -> None:
    noisy = {
        dtype: InversionProblem(make_victim(dtype=dtype).observation, "cpu").noisy for dtype in ("float32", "float16")
    }
    assert noisy == {"float32": False, "float16": True}


@pytest.mark.parametrize("optimizer", [None, LocalOptimizer(lr=0.1)], ids=["gradient", "delta"])
def test_an_update_as_long_as_the_clipping_norm_was_clipped_and_a_shorter_one_was_not(optimizer) -> None:
    clipped = DefenceDisclosure(clip_norm=CLIP_NORM)
    assert scale_known(0.9 * CLIP_NORM, clipped, optimizer=optimizer)
    assert not scale_known(CLIP_NORM, clipped, optimizer=optimizer)


def test_what_noise_adds_to_the_norm_is_told_from_what_the_update_has() -> None:
    little, much = 1e-3, 1e-1
    assert scale_known(0.5 * CLIP_NORM, DefenceDisclosure(clip_norm=CLIP_NORM, noise_std=little), little)
    assert not scale_known(CLIP_NORM, DefenceDisclosure(clip_norm=CLIP_NORM, noise_std=little), little)
    assert not scale_known(0.5 * CLIP_NORM, DefenceDisclosure(clip_norm=CLIP_NORM, noise_std=much), much)


def test_of_a_sum_every_term_may_have_been_clipped() -> None:
    assert not scale_known(0.1 * CLIP_NORM, DefenceDisclosure(clip_norm=CLIP_NORM), clients=2)


def test_where_samples_were_clipped_one_sample_is_like_one_update_and_several_have_scales_of_their_own() -> None:
    clipped = DefenceDisclosure(sample_clip_norm=CLIP_NORM)
    assert scale_known(0.9 * CLIP_NORM, clipped)
    assert not scale_known(CLIP_NORM, clipped)
    assert not scale_known(0.1 * CLIP_NORM, clipped, timesteps=(100, 400))
    delta = LocalOptimizer(lr=0.1)
    assert scale_known(0.9 * CLIP_NORM * 0.1, clipped, optimizer=delta)
    assert not scale_known(CLIP_NORM * 0.1, clipped, optimizer=delta)


def test_signs_have_no_scale() -> None:
    assert not scale_known(1.0, DefenceDisclosure(signs=True))
