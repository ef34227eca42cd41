from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lpips as package
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import alexnet, squeezenet1_1, vgg

from experiments.metrics import MetricUnavailableError
from experiments.metrics.lpips import AlexLPIPS, SqueezeLPIPS, VggLPIPS, _for_network, load_network, recognise
from fl_sim.config import SettingsError
from tests.experiments.metrics.pairs import pair, waves


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty torch cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    load_network.cache_clear()
    yield folder
    load_network.cache_clear()


class Features(nn.Module):
    """The part of a classifier that LPIPS is computed on."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features


def trained(net: str) -> nn.Module:
    """Some weights in torchvision's form; the classifier's own layers, a hundred million numbers, are left out."""
    torch.manual_seed(1)
    if net == "squeeze":
        return squeezenet1_1(weights=None)
    return Features(vgg.make_layers(vgg.cfgs["D"]) if net == "vgg" else alexnet(weights=None).features)


@pytest.mark.parametrize(
    ("net", "metric", "constructor"),
    [("alex", AlexLPIPS, "alexnet"), ("vgg", VggLPIPS, "vgg16"), ("squeeze", SqueezeLPIPS, "squeezenet1_1")],
)
def test_lpips_is_that_of_the_package_on_the_same_backbone(
    net: str, metric: Any, constructor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(net)
    file = tmp_path / "mine.pth"
    torch.save(model.state_dict(), file)
    assert recognise(file).net == net
    found = metric(weights=file)(*waves(3, 64))
    monkeypatch.setattr(package.pretrained_networks.tv, constructor, lambda **_: model)
    other = package.LPIPS(net=net, verbose=False)
    expected = other(*(images.float() for images in waves(3, 64)), normalize=True).flatten()
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.min() > 0.001
    assert metric(weights=file)(waves()[0], waves()[0]).tolist() == [0.0, 0.0]


def test_without_weights_it_says_which_file_goes_where(cache: Path) -> None:
    with pytest.raises(MetricUnavailableError, match=r"AlexNet weights are missing: put alexnet-owt-\w+\.pth in "):
        AlexLPIPS()(*pair())
    where = f"put vgg16-397923af.pth in {cache}, or name it in metrics.lpips_weights"
    assert VggLPIPS().missing() == f"torchvision's VGG-16 weights are missing: {where}"


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 16), (3, 64)])
def test_it_takes_the_backbone_in_torchs_cache(cache: Path, channels: int, size: int) -> None:
    torch.save(trained("squeeze").state_dict(), cache / SqueezeLPIPS().backbone.file)
    first, second = pair(channels, size)
    assert SqueezeLPIPS().missing() is None
    assert SqueezeLPIPS()(first, first).tolist() == [0.0] * 4
    assert (SqueezeLPIPS()(first, second) > 0).all()


def test_it_sees_three_channels_and_keeps_the_shape_of_an_image() -> None:
    grey = torch.rand(2, 1, 28, 14, generator=torch.Generator().manual_seed(0))
    seen = _for_network(grey)
    assert seen.shape == (2, 3, 128, 64)
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert (seen.min() < 0, seen.min() >= -1, seen.max() <= 1) == (True, True, True)
    assert _for_network(torch.rand(1, 3, 64, 100)).shape == (1, 3, 64, 100)


def test_the_draws_of_a_run_do_not_move() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    file = Path(torch.hub.get_dir()) / "weights.safetensors"
    with torch.random.fork_rng():
        save_file(trained("squeeze").state_dict(), file)
    assert SqueezeLPIPS(weights=file).missing() is None
    assert torch.equal(torch.rand(1), expected)


def write(path: Path, content: dict[str, Tensor] | bytes | None) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "weights.pth: cannot be read: No such file or directory"),
        (b"GIF89a", "weights.pth: no file of tensors"),
        ({"features.0.weight": torch.zeros(64, 3, 7, 7)}, "weights.pth: not the weights of a backbone of LPIPS"),
        ([1, 2], "weights.pth: no file of tensors"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as raised:
        recognise(write(tmp_path / "weights.pth", content))
    assert "\n" not in str(raised.value)


def test_a_backbone_that_lacks_a_layer_is_no_backbone(cache: Path) -> None:
    weights = trained("squeeze").state_dict()
    del weights["features.3.squeeze.bias"]
    file = write(cache / "squeezenet1_1-b8a52dc0.pth", weights)
    assert recognise(file).net == "squeeze"
    assert SqueezeLPIPS().missing() == f"{file}: it has no tensor 'features.3.squeeze.bias' of shape [16]"


@pytest.mark.parametrize(
    "change", [Tensor.int, Tensor.to_sparse, lambda values: values.to(torch.complex64), lambda values: values / 0]
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path: Path, change: Any) -> None:
    weights = trained("squeeze").state_dict()
    weights["features.3.squeeze.bias"] = change(weights["features.3.squeeze.bias"])
    file = write(tmp_path / "weights.pth", weights)
    assert (
        SqueezeLPIPS(weights=file).missing() == f"{file}: 'features.3.squeeze.bias' does not hold finite real numbers"
    )


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Surprise:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Surprise()}, tmp_path / "weights.pth")
    with pytest.raises(SettingsError, match="no file of tensors"):
        recognise(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
