"""Metrics by name: those built in, those of entry points ``fl_sim.metrics``, or any by its dotted path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.metrics.lpips import LPIPS, load_network, recognise
from experiments.metrics.metric import Metric
from experiments.settings import MetricsSettings
from fl_sim.config import SettingsError
from fl_sim.registry import Registry

METRICS: Registry[Metric] = Registry(
    kind="metric",
    base=Metric,  # type: ignore[type-abstract]  # mypy takes no abstract class; find() lets none through
    built_in={
        "mse": "experiments.metrics.pixel_error:MSE",
        "psnr": "experiments.metrics.pixel_error:PSNR",
        "ssim": "experiments.metrics.ssim:SSIM",
        "ms_ssim": "experiments.metrics.ms_ssim:MultiScaleSSIM",
        "fsim": "experiments.metrics.fsim:FSIM",
        "gmsd": "experiments.metrics.gmsd:GMSD",
        "lpips": "experiments.metrics.lpips:AlexLPIPS",
        "lpips_vgg": "experiments.metrics.lpips:VggLPIPS",
        "lpips_squeeze": "experiments.metrics.lpips:SqueezeLPIPS",
    },
    group="fl_sim.metrics",
    error=SettingsError,
)


ALWAYS = ("mse", "psnr")
"""Summaries, curves and the report are made of these."""


FLAT_PSNR = "PSNR of the original against its own mean colour"


def create_metrics(settings: MetricsSettings) -> dict[str, Metric]:
    """ALWAYS, and the metrics that the settings name, in their order, with the backbones that they give.

    Raises:
        SettingsError: if one is unknown, or a file does not hold the weights of a backbone that one of them uses.
    """
    backbones = _backbones(settings.lpips_weights)
    chosen = {}
    for name in dict.fromkeys((*ALWAYS, *settings.names)):
        try:
            found = METRICS.find(name)
        except SettingsError as error:
            raise SettingsError(f"metrics.names: {error}") from error
        weights = backbones.pop(found.backbone.net, None) if issubclass(found, LPIPS) else None
        chosen[name] = METRICS.create(name, {} if weights is None else {"weights": weights})
    for net, path in backbones.items():
        raise SettingsError(
            f"metrics.lpips_weights: {path} holds {net}, on which no metric of metrics.names = {list(settings.names)} "
            "is computed; allowed: the backbones of lpips (alex), lpips_vgg and lpips_squeeze"
        )
    return chosen


def definitions(chosen: Mapping[str, Metric]) -> dict[str, str]:
    """What each of the metrics is, and ``flat_psnr``, which tells how flat an original is."""
    return {name: metric.definition for name, metric in chosen.items()} | {"flat_psnr": FLAT_PSNR}


def unavailable(chosen: Mapping[str, Metric]) -> dict[str, str]:
    """Those of the metrics that cannot be computed on this machine, each with the reason."""
    return {name: reason for name, metric in chosen.items() if (reason := metric.missing())}


def _backbones(paths: Sequence[str]) -> dict[str, Path]:
    """The files by the name of their backbone; every one is read whole."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        try:
            net = recognise(path).net
            load_network(net, path)
        except SettingsError as error:
            raise SettingsError(f"metrics.lpips_weights: {error}") from error
        if net in found:
            raise SettingsError(f"metrics.lpips_weights: {found[net]} and {path} both hold {net}; allowed: one of them")
        found[net] = path
    return found
