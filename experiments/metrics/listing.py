"""What ``fl-sim metrics`` prints: what each metric is, and whether it can be computed on this machine."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from experiments.metrics.metric import Metric
from experiments.metrics.registry import METRICS, create_metrics
from experiments.settings import MetricsSettings
from fl_sim.config import SettingsError
from fl_sim.errors import first_error


def all_metrics(lpips_weights: Sequence[str] = ()) -> dict[str, Metric]:
    """Every registered metric by its name; SettingsError if a file of ``lpips_weights`` holds no backbone of LPIPS."""
    try:
        settings = MetricsSettings(names=tuple(METRICS.names()), lpips_weights=tuple(lpips_weights))
    except ValidationError as error:
        raise SettingsError(f"--lpips-weights: {first_error(error)['msg']}") from error
    return create_metrics(settings)


def describe(metrics: Mapping[str, Metric]) -> Table:
    """A row per metric: its name, which of two values is better, their range, what it needs, its definition."""
    table = Table(box=None, padding=(0, 2, 1, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, metric in metrics.items():
        lines = f"{metric.better} is better: {metric.range}", f"needs {metric.needs}", metric.definition
        table.add_row(name, Text("\n".join(lines)))
    return table


def check(metrics: Mapping[str, Metric]) -> Iterator[str]:
    """A line per metric: that it can be computed on this machine, or why not and which file goes where."""
    for name, metric in metrics.items():
        reason = metric.missing()
        yield f"{name}: {'can be computed here' if reason is None else f'cannot be computed here: {reason}'}"
