"""A capture attacked in a process that may open nothing else and import nothing that holds the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attacks
import fl_sim

GROUND_FLOOR = (
    "network",
    "diffusion",
    "classification",
    "task.py",
    "checkpoint.py",
    "bounds.py",
    "errors.py",
    "registry.py",
)
TRUTH = ("fl_sim.images", "fl_sim.client_app", "fl_sim.config", "experiments", "skimage", "sklearn")

GUARD = f"""
import json, os, sys

FORBIDDEN = {TRUTH!r}
READABLE = sys.argv[1].split(os.pathsep)

def guard(event, arguments):
    if event == "import" and any(arguments[0] == name or arguments[0].startswith(name + ".") for name in FORBIDDEN):
        raise PermissionError(f"import of {{arguments[0]}}")
    if event == "open" and not isinstance(arguments[0], int):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        photographs = any(package in path.split(os.sep) for package in ("skimage", "sklearn"))
        if photographs or not any(path == root or path.startswith(root + os.sep) for root in READABLE):
            raise PermissionError(f"opening {{path}}")

sys.addaudithook(guard)
"""
REPLAY = """
import torch
torch.set_num_threads(1)
from attacks.registry import create
from attacks.observation import Observation
observation = Observation.load("capture.safetensors")
result = create("residual", json.loads(sys.argv[2])).reconstruct(observation, int(sys.argv[3]))
sys.stdout.buffer.write(result.images.numpy().tobytes())
"""


def readable(folder: Path) -> str:
    """The interpreter with its packages, the attacks, the ground floor, the system's devices and the folder."""
    floor = Path(fl_sim.__file__).parent
    ground = [floor / name for name in ("__init__.py", *GROUND_FLOOR, "__pycache__")]
    roots = [sys.prefix, sys.base_prefix, Path(attacks.__file__).parent, *ground, "/proc", "/sys", "/dev", folder]
    return os.pathsep.join(os.path.realpath(root) for root in roots)


def run_python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """``code`` in a fresh interpreter that heeds neither environment variables nor the folder it runs in."""
    command = [sys.executable, "-I", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)


def replay(folder: Path, arguments: dict[str, Any], seed: int, shape: tuple[int, ...]) -> Tensor:
    """What ``residual`` makes of ``capture.safetensors`` in ``folder`` under guard, images float32 of ``shape``."""
    finished = run_python(GUARD + REPLAY, folder, readable(folder), json.dumps(arguments), str(seed))
    assert finished.returncode == 0, finished.stderr.decode()
    return torch.frombuffer(bytearray(finished.stdout), dtype=torch.float32).reshape(shape)
