"""Run the benchmark of the attacks: measure what has not been measured, keep every row, write the tables."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.bench.jobs import Row, device_name, measure, row_key
from experiments.bench.pages import Table, markdown, rich_table, tables, where
from experiments.bench.plan import Options, Plan, make_plan
from experiments.bench.processes import side_by_side
from experiments.bench.summary import summarise
from experiments.leakage import OK
from experiments.run_directory import environment, make_empty_folder, write_atomically


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
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def bench_attacks(options: Options, out: Path, jobs: int, console: Console) -> None:
    """Measure what ``options`` ask for, ``jobs`` attacks side by side; ``out`` gets attacks.json and attacks.md.

    What ``out`` already holds of it is not measured again. Interrupted, it writes the tables of what there is.

    Raises:
        SettingsError, AttackError: if the options ask for what is not there, or ``out`` holds something else.
    """
    plan = make_plan(options)
    file = RowFile(out)
    done = {row_key(row) for row in file.rows}
    waiting = [job for job in plan.jobs if row_key(job.identity()) not in done]
    try:
        with _progress(console) as progress:
            task = progress.add_task("attacks", total=len(plan.jobs), completed=len(plan.jobs) - len(waiting))
            for row in side_by_side(measure, waiting, jobs):
                file.append(row)
                progress.console.print(_announcement(row), markup=False, highlight=False, soft_wrap=True)
                progress.advance(task)
    finally:
        shown = _write_results(options, plan, file.rows, jobs, out)
    for table in shown:
        console.print(rich_table(table, console.width))
    for line in plan.left_out:
        console.print(f"left out: {line}", markup=False, highlight=False)


def _write_results(options: Options, plan: Plan, rows: Sequence[Row], jobs: int, out: Path) -> list[Table]:
    """The tables of the planned rows that there are, after writing them down."""
    measured = {row_key(row): row for row in rows}
    planned = [measured[key] for job in plan.jobs if (key := row_key(job.identity())) in measured]
    summaries = summarise(planned)
    shown = tables(summaries)
    about = _about(options, jobs)
    content = {
        "about": about,
        "left_out": plan.left_out,
        "cells": [summary.to_json() for summary in summaries],
        "rows": planned,
    }
    page = "\n".join([*_preface(about, plan), *map(markdown, shown)])
    write_atomically(out / "attacks.json", lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))
    write_atomically(out / "attacks.md", lambda file: file.write_text(page, encoding="utf-8"))
    return shown


def _about(options: Options, jobs: int) -> dict[str, Any]:
    named = asdict(options) | {"checkpoints": [path.name for path in options.checkpoints]}
    machine = {"device": device_name(options.device), "threads": 1, "jobs": jobs}
    return environment() | machine | {"options": named}


def _preface(about: dict[str, Any], plan: Plan) -> list[str]:
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in ("fl-sim", "torch", "diffusers", "flwr"))
    return [
        f"Measured on {about['started'][:10]} on {about['device']} ({about['options']['device']}, "
        f"{about['threads']} thread an attack, {about['jobs']} side by side; {about['cpus']} CPUs), "
        f"python {about['python']}, {packages}; seed {about['options']['seed']}.",
        "",
        *(f"Left out: {line}.\n" for line in plan.left_out),
    ]


def _announcement(row: Row) -> str:
    summary = summarise([row])[0]
    result = f"{summary.median_psnr:.1f} dB in {summary.seconds:.1f} s" if row["status"] == OK else row["status"]
    return f"{summary.case.suite}: {where(summary.case)}, {summary.attack}, victim {row['victim']}: {result}"


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
