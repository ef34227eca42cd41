from pathlib import Path

import pytest
import torch

from experiments.metrics import Metric
from experiments.metrics.lpips import LPIPS
from experiments.metrics.metric import AT_ONCE
from experiments.metrics.registry import METRICS, create_metrics
from experiments.settings import MetricsSettings
from fl_sim.config import SettingsError
from tests.experiments.metrics.pairs import pair, waves
from tests.experiments.metrics.test_lpips import trained

COMPUTED = [name for name in METRICS.names() if not issubclass(METRICS.find(name), LPIPS)]


class Brightness(Metric):
    """How far the mean values are apart."""

    better = "smaller"
    range = "0 to 1"
    definition = "distance of the means"

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.mean((1, 2, 3)) - second.mean((1, 2, 3))).abs()


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_says_what_it_is(name: str) -> None:
    metric = METRICS.find(name)
    assert metric.better in ("larger", "smaller")
    assert all((metric.range, metric.definition, metric.needs, metric.__doc__))


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_metric_is_per_image_symmetric_and_best_for_equal_images(name: str, channels: int) -> None:
    metric = METRICS.create(name)
    first, second = pair(channels, 16)
    values = metric(first, second)
    assert values.dtype == torch.float64
    alone = [metric(first[[i]], second[[i]]).item() for i in range(4)]
    assert values.tolist() == pytest.approx(alone, rel=1e-5)
    assert metric(second, first).tolist() == pytest.approx(values.tolist(), rel=1e-4)
    worse = values if metric.better == "smaller" else -values
    assert worse.tolist() == sorted(worse.tolist())  # pairs come with more and more noise
    equal = metric(first, first)
    assert (equal < values if metric.better == "smaller" else equal > values).all()


def test_many_images_are_compared_some_at_a_time() -> None:
    seen = []

    class Counted(Brightness):
        def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            seen.append(len(first))
            return super().compare(first, second)

    first = torch.rand(2 * AT_ONCE + 1, 1, 11, 11)
    assert Counted()(first, first).tolist() == [0.0] * len(first)
    assert seen == [AT_ONCE, AT_ONCE, 1]


def test_mse_and_psnr_are_always_there_and_nothing_twice() -> None:
    assert list(create_metrics(MetricsSettings())) == ["mse", "psnr", "ssim", "lpips"]
    assert list(create_metrics(MetricsSettings(names=("fsim", "psnr", "fsim")))) == ["mse", "psnr", "fsim"]


def test_a_metric_of_somebody_elses_has_a_path() -> None:
    path = f"{__name__}:Brightness"
    found = create_metrics(MetricsSettings(names=(path,)))[path]
    first, second = waves()
    assert found(first, second).tolist() == pytest.approx((first - second).mean((1, 2, 3)).abs().tolist())


def test_an_entry_point_gives_it_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = {"fl_sim.metrics": {"brightness": f"{__name__}:Brightness"}}
    monkeypatch.setattr("fl_sim.registry.plugins", lambda group: registered.get(group, {}))
    assert "brightness" in METRICS.names()
    assert isinstance(create_metrics(MetricsSettings(names=("brightness",)))["brightness"], Brightness)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sim", r"^metrics\.names: metric 'sim': unknown; available: fsim, .*; did you mean 'ssim'\?$"),
        ("experiments.metrics:Metric", r"^metrics\.names: metric 'experiments\.metrics:Metric': abstract"),
    ],
)
def test_a_metric_that_there_is_not_is_one_line(name: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        create_metrics(MetricsSettings(names=(name,)))


def test_a_backbone_goes_to_the_metric_that_is_computed_on_it(tmp_path: Path) -> None:
    file = tmp_path / "some.pth"
    torch.save(trained("squeeze").state_dict(), file)
    chosen = create_metrics(MetricsSettings(names=("lpips", "lpips_squeeze"), lpips_weights=(str(file),)))
    assert chosen["lpips_squeeze"].model_dump() == {"weights": file}
    assert chosen["lpips"].model_dump() == {"weights": None}
    with pytest.raises(
        SettingsError, match=r"some\.pth holds squeeze, on which no metric of metrics\.names = \['lpips'\]"
    ):
        create_metrics(MetricsSettings(names=("lpips",), lpips_weights=(str(file),)))
    with pytest.raises(SettingsError, match="both hold squeeze"):
        create_metrics(MetricsSettings(names=("lpips_squeeze",), lpips_weights=(str(file), str(file))))
