import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm

from experiments.experiment import prepare
from experiments.report import build_report
from experiments.utility import DISTANCE, LOSS, STRATA, Utility, column, heldout_loss, patch_distance, sample, strata
from fl_sim.diffusion import build_scheduler, scheduler_config
from fl_sim.images.bundled import HELD_OUT_PHOTOGRAPHS
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings


class Zero(torch.nn.Module):
    """Predicts nothing; its loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return 0 * x + self.offset


def bundled(*overrides: str) -> tuple[Utility, dict[str, torch.Tensor]]:
    settings = tiny_settings("model.checkpoint=bundled", "attack.name=none", *overrides)
    experiment = prepare(settings)
    return Utility(settings, experiment.recipe), experiment.weights


@pytest.mark.parametrize("steps", [1, 7, 16, 50, 1000])
def test_strata_cover_every_timestep_once(steps: int) -> None:
    assert [timestep for stratum in strata(steps) for timestep in stratum] == list(range(steps))


def test_strata_of_a_thousand_timesteps() -> None:
    assert tuple(stratum.start for stratum in strata(1000)) == STRATA
    assert column(strata(1000)[1]) == "heldout_loss_21_200"


def test_the_loss_of_a_model_that_predicts_nothing_is_known() -> None:
    images = torch.zeros(64, 3, 16, 16)
    found = heldout_loss(Zero(), build_scheduler(scheduler_config()), images)
    assert list(found) == [LOSS, *map(column, strata(1000))]
    assert all(loss == pytest.approx(1, abs=0.03) for loss in found.values()), "noise has variance 1"
    widths = [len(stratum) / 1000 for stratum in strata(1000)]
    assert found[LOSS] == pytest.approx(np.dot(widths, [found[column(s)] for s in strata(1000)]))
    # x0-prediction: the target is the image, the same at every timestep.
    clean = heldout_loss(Zero(), build_scheduler(scheduler_config(50, "sample")), images + 0.5)
    assert all(loss == pytest.approx(0.25) for loss in clean.values())


def test_a_broken_model_measures_worse_and_the_same_model_measures_the_same() -> None:
    utility, weights = bundled()
    generator = torch.Generator().manual_seed(0)
    broken = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    before = torch.get_rng_state()
    loss, (samples, distance) = utility.measure(weights), utility.sample(weights)
    assert utility.measure(weights) == loss
    assert utility.sample(weights)[1] == distance
    assert torch.equal(torch.get_rng_state(), before), "a measurement must not move the federation's own draws"
    assert samples.shape == (16, 3, 16, 16)
    assert all(utility.measure(broken)[name] > 1.05 * value for name, value in loss.items())
    assert utility.sample(broken)[1][DISTANCE] > 2 * distance[DISTANCE]


def test_a_model_of_nan_is_measured_as_such() -> None:
    utility, weights = bundled("utility.samples=1")
    nowhere = {name: torch.full_like(value, math.nan) for name, value in weights.items()}
    assert math.isnan(utility.measure(nowhere)[LOSS])
    assert math.isnan(utility.sample(nowhere)[1][DISTANCE])


def test_the_patch_distance_is_the_frechet_distance_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(5, 3, 8, 8, generator=generator)
    second = 0.5 * torch.rand(4, 3, 8, 8, generator=generator) + 0.1
    patches = [
        np.stack(
            [np.asarray(image[:, y : y + 4, x : x + 4]).ravel() for image in some for y in range(5) for x in range(5)]
        )
        for some in (first.double(), second.double())
    ]
    means, covariances = [p.mean(0) for p in patches], [np.cov(p.T, bias=True) for p in patches]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert patch_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert patch_distance(first, first.flip(0)) == pytest.approx(0, abs=1e-9)


def test_samples_of_a_model_that_predicts_the_images_are_those() -> None:
    model = Zero()
    torch.nn.init.constant_(model.offset, 0.5)
    samples = sample(model, build_scheduler(scheduler_config(1000, "sample")), (3, 8, 8), 2)
    assert torch.allclose(samples, torch.full((2, 3, 8, 8), 0.75), atol=0.02)


def test_nobody_holds_the_photographs_that_are_held_out() -> None:
    assert bundled()[0].photographs == HELD_OUT_PHOTOGRAPHS
    assert bundled('data.photographs=["ihc", "rocket"]')[0].photographs == ("hopper", "retina", "hubble")
    utility, weights = bundled(f"data.photographs={list(HELD_OUT_PHOTOGRAPHS)}")
    assert utility.measure(weights) == {}
    assert "clients hold all" in utility.not_computed()[LOSS]


def test_a_run_measures_as_often_as_told_and_trains_the_same(tmp_path: Path) -> None:
    runs = {
        every: run_in_process(
            tmp_path / str(every),
            tiny_settings("federation.rounds=3", "attack.name=none", f"utility.every={every}", *samples),
        )
        for every, samples in ((0, ()), (2, ("utility.samples=2",)))
    }
    without, measured = (pd.read_parquet(runs[every].rounds) for every in (0, 2))
    assert LOSS not in without
    assert measured[LOSS].notna().tolist() == [False, True, True]
    assert measured[DISTANCE].notna().tolist() == [False, False, True]
    assert without["weights_sha256"].tolist() == measured["weights_sha256"].tolist()
    assert json.loads(runs[2].utility.read_text())["before"][LOSS] > 0
    assert runs[2].samples.is_file()
    assert not runs[0].samples.exists()
    assert "samples from the final model" in build_report(runs[2].path).read_text()
    assert "How good the model is" not in build_report(runs[0].path).read_text()
