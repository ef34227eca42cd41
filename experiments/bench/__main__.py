"""Write figures and tables of results once more from their rows: ``python -m experiments.bench FILE.json …``."""

import json
import sys
from pathlib import Path

from experiments.bench import bench, classification, defences, inversion, labels, many_clients, timesteps

BENCHMARKS = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (bench, classification, defences, inversion, labels, many_clients, timesteps)
}


def rewrite(path: Path) -> None:
    """Write FILE.json and FILE.md of the benchmark that the file names."""
    BENCHMARKS[json.loads(path.read_text(encoding="utf-8"))["benchmark"]].rewrite(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name))
