"""What all benchmarks do: measurements -> rows.jsonl -> figures -> NAME.json, and tables -> NAME.md.

Measurements run in parallel, none is made twice, and every row is written as soon as it is measured.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.bench.processes import side_by_side
from experiments.bench.provenance import about, preface, provenance
from experiments.bench.tables import Table, markdown, rich_table
from experiments.run_directory import make_empty_folder
from fl_sim.config import SettingsError
from fl_sim.files import write_atomically

Row = dict[str, Any]
"""What is known of one measurement, in the types of JSON."""


class Measurement(ABC):
    """One thing to measure on a torch device, with one thread and possibly in a process of its own."""

    device: str = "cpu"

    @property
    def cost(self) -> float:
        """Those of higher cost are measured first."""
        return 0.0

    @abstractmethod
    def subject(self) -> Row:
        """What is measured: case, arguments, seed."""

    @abstractmethod
    def measure(self) -> Row:
        """What comes out."""

    def identity(self) -> Row:
        """What makes two measurements the same one: the subject, and revision, versions and processor."""
        return self.subject() | provenance(self.device)


@dataclass(frozen=True)
class Plan:
    """All measurements, in the order of the tables, and what had to be left out, in one line each."""

    measurements: Sequence[Measurement]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Benchmark:
    """What makes of rows what people read.

    Attributes:
        name: of the files.
        unit: what is measured, in the plural.
        announce: one line about a row that has just been measured.
        figures: what the tables say, in the types of JSON.
        tables: the tables.
    """

    name: str
    unit: str
    announce: Callable[[Row], str]
    figures: Callable[[Sequence[Row]], Any]
    tables: Callable[[Sequence[Row]], list[Table]]

    def run(self, plan: Plan, options: Mapping[str, Any], out: Path, jobs: int, console: Console) -> None:
        """Measure what is planned, ``jobs`` measurements side by side; ``out`` gets NAME.json and NAME.md.

        What ``out`` already holds of it is not measured again. Interrupted, it writes the tables of what there is.

        Raises:
            SettingsError: if ``out`` holds something else.
        """
        file = RowFile(out)
        try:
            self._measure_missing(plan.measurements, file, jobs, console)
        finally:
            rows = file.rows_of(plan.measurements)
            self.write(out / self.name, about(options, jobs), plan.left_out, rows)
        for table in self.tables(rows):
            console.print(rich_table(table, console.width))
        for line in plan.left_out:
            console.print(f"left out: {line}", markup=False, highlight=False)

    def write(self, path: Path, about: Row, left_out: Sequence[str], rows: Sequence[Row]) -> None:
        """Write ``path``.json, which holds everything, and ``path``.md, the tables."""
        content = {"benchmark": self.name, "about": about, "left_out": left_out, "figures": self.figures(rows)}
        text = json.dumps(content | {"rows": rows}, indent=1, default=_file_name) + "\n"
        lines = [preface(about, revisions(rows)), "", *(f"Left out: {line}.\n" for line in left_out)]
        page = "\n".join([*lines, *map(markdown, self.tables(rows))])
        write_atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
        write_atomically(path.with_suffix(".md"), lambda file: file.write_text(page, encoding="utf-8"))

    def rewrite(self, path: Path) -> None:
        """Write the figures in a JSON file, and the page beside it, once more from its rows."""
        content = json.loads(path.read_text(encoding="utf-8"))
        self.write(path, content["about"], content["left_out"], content["rows"])

    def _measure_missing(
        self, measurements: Sequence[Measurement], file: "RowFile", jobs: int, console: Console
    ) -> None:
        missing = [measurement for measurement in measurements if file.row_of(measurement) is None]
        missing.sort(key=lambda measurement: -measurement.cost)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *times, console=console) as progress:
            task = progress.add_task(self.unit, total=len(measurements), completed=len(measurements) - len(missing))
            for row in side_by_side(_row_of, missing, jobs):
                file.append(row)
                progress.console.print(self.announce(row), markup=False, highlight=False, soft_wrap=True)
                progress.advance(task)


class RowFile:
    """The rows of a benchmark as they are finished, one JSON object a line."""

    def __init__(self, folder: Path) -> None:
        """Take up the rows in ``folder``, or make it.

        A last line that an interrupted benchmark left half written is dropped.

        Raises:
            SettingsError: if ``folder`` holds something else.
        """
        self._path = folder / "rows.jsonl"
        if not self._path.is_file():
            make_empty_folder(folder)
            self._path.touch()
        self.rows = _read_rows(self._path)
        write_atomically(self._path, lambda file: file.write_text("".join(map(_line, self.rows)), encoding="utf-8"))

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk before this returns."""
        self.rows.append(json.loads(_line(row)))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def row_of(self, measurement: Measurement) -> Row | None:
        """The row of such a measurement, as it is read from the file; None if there is none yet."""
        identity = json.loads(_line(measurement.identity())).items()
        return next((row for row in self.rows if identity <= row.items()), None)

    def rows_of(self, measurements: Sequence[Measurement]) -> list[Row]:
        """The rows of those measurements that have been made, in their order."""
        return [row for measurement in measurements if (row := self.row_of(measurement)) is not None]


def _read_rows(path: Path) -> list[Row]:
    """The rows of a file, but for a last one that was left half written; SettingsError if it holds something else."""
    *lines, last = path.read_bytes().split(b"\n")
    if _parsed(last) is not None or not last.startswith(b'{"'):
        lines += [last] if last else []
    rows = [row for line in lines if isinstance(row := _parsed(line), dict) and "revision" in row]
    if len(rows) < len(lines):
        raise SettingsError(f"{path}: not a benchmark's rows; allowed: a new folder, or one that a benchmark made")
    return rows


def _parsed(line: bytes) -> Any:
    """What a line of JSON says; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def revisions(rows: Iterable[Row]) -> list[str]:
    """The revisions that the rows are from, each once."""
    return list(dict.fromkeys(row["revision"] for row in rows))


def _row_of(measurement: Measurement) -> Row:
    torch.set_num_threads(1)
    return measurement.identity() | measurement.measure()


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _file_name(path: Path) -> str:
    """What JSON keeps of a path: nothing of the machine's folders."""
    return path.name
