"""Write figures and tables of results once more from their rows: ``python -m experiments.bench FILE.json …``."""

import json
import sys
from pathlib import Path

from experiments.bench import bench, defences, many_clients, timesteps

BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in (bench, defences, many_clients, timesteps)}

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        BENCHMARKS[json.loads(path.read_text(encoding="utf-8"))["benchmark"]].rewrite(path)
