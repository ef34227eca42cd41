"""What a row was measured with: source, versions, machine."""

import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.run_directory import environment
from experiments.source_hash import hash_files

_SOFTWARE = ("fl-sim", "torch", "diffusers", "flwr")
_GROUND_FLOOR = ("classification", "diffusion", "network", "task.py", "checkpoint.py")
_REPOSITORY = Path(__file__).parents[2]


def provenance(device: str) -> dict[str, str]:
    """Revision, versions and processor; rows that differ in any of them are different measurements."""
    return {"device": device_name(device), "software": software(), "revision": revision()}


@cache
def revision() -> str:
    """The project's version + the first 12 hex digits of the SHA-256 of the attacks' source, as in 0.1.0+3f2a1b4c5d6e.

    Hashed are path and content of all Python files of attacks/ and of what it stands on in fl_sim/, sorted by path.
    """
    return f"{version('fl-sim')}+{hash_source(_REPOSITORY)[:12]}"


def hash_source(root: Path) -> str:
    """The SHA-256 of the attacks' source below ``root``, in hexadecimal."""
    return hash_files(_attack_files(root), root)


def _attack_files(root: Path) -> Iterator[Path]:
    yield from (root / "attacks").rglob("*.py")
    for name in _GROUND_FLOOR:
        path = root / "fl_sim" / name
        yield from path.rglob("*.py") if path.is_dir() else [path] if path.is_file() else []


@cache
def software() -> str:
    """The versions that a result depends on, in one line."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _SOFTWARE)])


@cache
def device_name(device: str) -> str:
    """The model of the processor behind a torch device, as far as the machine tells."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def about(options: Mapping[str, Any], jobs: int) -> dict[str, Any]:
    """What a benchmark ran on, when, with how many jobs side by side, and the options of its command."""
    machine = {"device": device_name(options.get("device", "cpu")), "threads": 1, "jobs": jobs}
    return environment() | machine | {"options": options}


def preface(about: Mapping[str, Any], revisions: list[str]) -> str:
    """The same in two sentences, to stand above the tables, and the revisions that their rows are from."""
    options = about["options"]
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in _SOFTWARE)
    jobs = f", {about['jobs']} side by side" if about["jobs"] else ""
    seed = f"; seed {options['seed']}" if "seed" in options else ""
    several = "Rows of several revisions are mixed here" if len(revisions) > 1 else "Revision"
    return (
        f"Measured on {about['started'][:10]} on {about['device']} ({options.get('device', 'cpu')}, "
        f"{about['threads']} thread each{jobs}; {about['cpus']} CPUs), python {about['python']}, {packages}{seed}.\n"
        f"{several}: {'; '.join(revisions) or 'none'}."
    )
