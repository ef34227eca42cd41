import hashlib

import pytest
import torch

from fl_sim.draws import derive_seed, draw_image_indices, draw_noise_and_timesteps


def test_a_derived_seed_is_63_bits_of_sha256_over_json() -> None:
    digest = hashlib.sha256(b'[7, "noise", 3, 1]').hexdigest()
    assert derive_seed(7, "noise", 3, 1) == int(digest[:16], 16) // 2


def test_every_part_of_a_purpose_matters() -> None:
    seeds = {
        derive_seed(0, "noise", 1, 2),
        derive_seed(1, "noise", 1, 2),
        derive_seed(0, "images", 1, 2),
        derive_seed(0, "noise", 2, 1),
        derive_seed(0, "noise", 12),
        derive_seed(0, "noise", "1", 2),
    }
    assert len(seeds) == 6


def test_noise_is_standard_normal_and_timesteps_cover_the_schedule() -> None:
    noise, timesteps = draw_noise_and_timesteps(0, 2000, (3, 4, 4), 10)
    assert noise.shape == (2000, 3, 4, 4)
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert timesteps.unique().tolist() == list(range(10))


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw_noise_and_timesteps(5, 2, (1, 2, 2), 100)
    indices = draw_image_indices(5, 3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw_noise_and_timesteps(5, 2, (1, 2, 2), 100)[0], first[0])
    assert torch.equal(draw_image_indices(5, 3, 4), indices)


@pytest.mark.parametrize(("samples", "population"), [(3, 7), (7, 7), (10, 4), (5, 1)])
def test_images_repeat_only_after_all_were_drawn(samples: int, population: int) -> None:
    indices = draw_image_indices(3, samples, population).tolist()
    assert len(indices) == samples
    for start in range(0, samples, population):
        once = indices[start : start + population]
        assert len(set(once)) == len(once)
        assert set(once) <= set(range(population))
