"""Run the benchmark of the attacks: measure what has not been measured, keep every row, write the tables."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from experiments.bench.jobs import measure
from experiments.bench.measuring import Row, RowFile, about, measure_missing, preface, write_results
from experiments.bench.pages import Table, markdown, rich_table, tables, where
from experiments.bench.plan import Options, Plan, make_plan
from experiments.bench.summary import summarise
from experiments.leakage import OK


def bench_attacks(options: Options, out: Path, jobs: int, console: Console) -> None:
    """Measure what ``options`` ask for, ``jobs`` attacks side by side; ``out`` gets attacks.json and attacks.md.

    What ``out`` already holds of it is not measured again. Interrupted, it writes the tables of what there is.

    Raises:
        SettingsError, AttackError: if the options ask for what is not there, or ``out`` holds something else.
    """
    plan = make_plan(options)
    file = RowFile(out)
    try:
        measure_missing(file, "attacks", measure, plan.jobs, jobs, console, _announcement)
    finally:
        shown = _write_results(options, plan, file.rows_of(plan.jobs), jobs, out)
    for table in shown:
        console.print(rich_table(table, console.width))
    for line in plan.left_out:
        console.print(f"left out: {line}", markup=False, highlight=False)


def _write_results(options: Options, plan: Plan, rows: list[Row], jobs: int, out: Path) -> list[Table]:
    """The tables of the rows, after writing them down."""
    summaries = summarise(rows)
    shown = tables(summaries)
    made_on = about(asdict(options) | {"checkpoints": [path.name for path in options.checkpoints]}, jobs)
    content = {
        "about": made_on,
        "left_out": plan.left_out,
        "cells": [summary.to_json() for summary in summaries],
        "rows": rows,
    }
    left_out = [f"Left out: {line}.\n" for line in plan.left_out]
    write_results(out, "attacks", content, "\n".join([preface(made_on), "", *left_out, *map(markdown, shown)]))
    return shown


def _announcement(row: Row) -> str:
    summary = summarise([row])[0]
    result = f"{summary.median_psnr:.1f} dB in {summary.seconds:.1f} s" if row["status"] == OK else row["status"]
    return f"{summary.case.suite}: {where(summary.case)}, {summary.attack}, victim {row['victim']}: {result}"
