import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import chance, metrics
from experiments.chance import chance_level, nearest_public, public_pool
from experiments.public_images import image_hashes
from fl_sim.images.bundled import PHOTOGRAPHS
from fl_sim.images.partition import partition
from fl_sim.images.sources import list_images
from tests.experiments.made_up_run import pictures, tiny_settings


def images(count: int, seed: int, side: int = 6) -> Tensor:
    """Images of whole eight-bit values, as clients hold them."""
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)) / 255


def test_the_nearest_public_image_has_the_smallest_mse_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "CHUNK", 7)
    truth, public = images(20, 0), images(45, 1)
    errors = torch.stack([metrics.mse(image.expand_as(public), public) for image in truth])
    nearest = nearest_public(truth, public)
    assert torch.equal(nearest, public[errors.argmin(dim=1)])
    assert torch.equal(metrics.mse(truth, nearest), errors.amin(dim=1))


def test_an_image_that_a_client_holds_is_no_public_image() -> None:
    truth, public = images(4, 0), images(9, 1)
    nearest = nearest_public(truth, torch.cat([public, truth]))
    assert torch.equal(nearest, nearest_public(truth, public))
    with pytest.raises(ValueError, match="no public image is left"):
        nearest_public(truth, truth)


def test_a_thousand_images_among_ten_thousand_take_seconds() -> None:
    truth, public = images(1_000, 0, 32), images(10_000, 1, 32)
    started = time.process_time()
    nearest = nearest_public(truth, public)
    assert time.process_time() - started < 30
    assert nearest.shape == truth.shape


def test_chance_is_the_median_over_images_that_are_not_the_own() -> None:
    truth = images(5, 0)
    reconstructed = (truth + 0.01).clamp(0, 1)
    pairs = [
        metrics.psnr(truth[None, other], reconstructed[None, found])
        for found in range(5)
        for other in range(5)
        if found != other
    ]
    assert chance_level(metrics.psnr, reconstructed, truth) == torch.cat(pairs).quantile(0.5).item()


def test_an_image_that_was_attacked_twice_is_its_own_both_times() -> None:
    truth = images(3, 0)[[0, 1, 0, 2, 0]]
    level = chance_level(metrics.mse, truth, truth)
    apart = [
        metrics.mse(truth[[i]], truth[[j]]) for i in range(5) for j in range(5) if not torch.equal(truth[i], truth[j])
    ]
    assert level == torch.cat(apart).median().item() > 0
    assert math.isnan(chance_level(metrics.mse, truth[[0, 2]], truth[[0, 2]]))


def test_of_many_images_some_pairs_are_drawn_always_the_same() -> None:
    truth = images(200, 0)
    seen: list[int] = []

    def counted(first: Tensor, second: Tensor) -> Tensor:
        seen.append(len(first))
        return metrics.mse(first, second)

    levels = {chance_level(counted, truth, truth, pairs=300) for _ in range(2)}
    assert len(levels) == 1
    assert 290 < sum(seen) / 2 <= 300
    assert levels.pop() == pytest.approx(1 / 6, rel=0.1)  # of two uniform values


def test_public_are_the_images_of_the_same_set_that_no_client_holds() -> None:
    settings = tiny_settings()  # two clients hold two of the four photographs
    pool = public_pool(settings, 3)
    assert pool is not None
    assert pool.name == f"{len(pool.images)} images of data.name = 'bundled' that no client holds"
    listed = list_images(settings.data)
    held = {index for each in partition(settings.data, 2, 11) for index in each}
    private = (listed.decode(sorted(held), 3) + 1) / 2
    assert len(pool.images) == len(listed) - len(held)
    assert not set(image_hashes(pool.images * 2 - 1)) & set(image_hashes(private * 2 - 1))
    assert (pool.images.min(), pool.images.max()) >= (0, 0.5)


def test_where_clients_hold_all_images_other_photographs_are_public() -> None:
    pool = public_pool(tiny_settings("data.partition=iid"), 1, most=10)
    assert pool is not None
    assert pool.name.startswith("10 tiles of the bundled photographs motorcycle, ")
    assert "astronaut" not in pool.name
    assert pool.images.shape == (10, 1, 16, 16)


def test_where_clients_hold_all_photographs_nothing_is_public() -> None:
    assert public_pool(tiny_settings("data.partition=iid", f"data.photographs={list(PHOTOGRAPHS)}"), 3) is None


def test_a_public_folder_comes_first(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "private", 0, 6)
    held_out = tiny_settings(*folder, "data.held_out=0.5")
    pool = public_pool(held_out, 3)
    assert pool is not None
    assert len(pool.images) == 3
    pictures(tmp_path / "public", 3, 0)
    inverted = {"name": "folder", "path": tmp_path / "public"}
    data = held_out.data.model_copy(update={"public": held_out.data.public.model_copy(update=inverted)})
    pool = public_pool(held_out.model_copy(update={"data": data}), 3)
    assert pool is not None
    assert pool.name == "the 3 images of data.public.name = 'folder'"
