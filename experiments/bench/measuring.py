"""What the benchmarks share: rows that outlive an interruption, work side by side, and what it was done on."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.bench.processes import side_by_side
from experiments.run_directory import environment, make_empty_folder
from fl_sim.files import write_atomically

Row = dict[str, Any]

_SOFTWARE = ("fl-sim", "torch", "diffusers", "flwr")


class Job(Protocol):
    """One measurement."""

    def identity(self) -> Row:
        """What makes two measurements the same one, as the first part of their row."""


AnyJob = TypeVar("AnyJob", bound=Job)


class RowFile:
    """The rows of a benchmark as they are finished, one JSON object a line."""

    def __init__(self, folder: Path) -> None:
        """Take up the rows in ``folder``, or make it; SettingsError if it holds something else.

        A last line that an interrupted benchmark left half written is dropped.
        """
        self._path = folder / "rows.jsonl"
        if not self._path.is_file():
            make_empty_folder(folder)
            self._path.touch()
        whole = self._path.read_text(encoding="utf-8").rpartition("\n")[0]
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]
        write_atomically(self._path, lambda file: file.write_text("".join(map(_line, self.rows)), encoding="utf-8"))

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk before this returns."""
        self.rows.append(json.loads(_line(row)))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def row_of(self, job: Job) -> Row | None:
        """The row that was measured for such a job, as it is read from the file; None if there is none yet."""
        identity = json.loads(_line(job.identity())).items()
        return next((row for row in self.rows if identity <= row.items()), None)

    def rows_of(self, jobs: Sequence[Job]) -> list[Row]:
        """The rows of those jobs that have been measured, in the order of the jobs."""
        return [row for job in jobs if (row := self.row_of(job)) is not None]


def measure_missing(
    file: RowFile,
    what: str,
    measure: Callable[[AnyJob], Row],
    jobs: Sequence[AnyJob],
    workers: int,
    console: Console,
    announcement: Callable[[Row], str],
) -> None:
    """Measure the jobs that have no row yet, that many side by side, and say of each in one line what came out."""
    waiting = [job for job in jobs if file.row_of(job) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(what, total=len(jobs), completed=len(jobs) - len(waiting))
        for row in side_by_side(measure, waiting, workers):
            file.append(row)
            progress.console.print(announcement(row), markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)


def about(options: Mapping[str, Any], jobs: int) -> dict[str, Any]:
    """What a benchmark is made on: versions, machine, how many jobs side by side; and the options of its command."""
    machine = {"device": device_name(options["device"]), "threads": 1, "jobs": jobs}
    return environment() | machine | {"options": options}


def preface(about: Mapping[str, Any]) -> str:
    """The same in a sentence, to stand above the tables."""
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in _SOFTWARE)
    return (
        f"Measured on {about['started'][:10]} on {about['device']} ({about['options']['device']}, "
        f"{about['threads']} thread an attack, {about['jobs']} side by side; {about['cpus']} CPUs), "
        f"python {about['python']}, {packages}; seed {about['options']['seed']}."
    )


def write_results(out: Path, name: str, content: Mapping[str, Any], page: str) -> None:
    """Write ``name``.json and ``name``.md into ``out``, each in one step."""
    write_atomically(out / f"{name}.json", lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))
    write_atomically(out / f"{name}.md", lambda file: file.write_text(page, encoding="utf-8"))


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


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
