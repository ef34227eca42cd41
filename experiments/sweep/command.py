"""``fl-sim sweep``: from the file to the runs, the table and the report."""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.batch_trial import try_first_batch
from experiments.commands import bold_path
from experiments.estimate import Cost, estimate
from experiments.experiment import Experiment
from experiments.launch import check
from experiments.settings import ExperimentSettings
from experiments.summary import RECOGNISABLE_DB
from experiments.sweep import processes
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.file import SweepFile, load_sweep
from experiments.sweep.jobs import jobs_that_fit
from experiments.sweep.plan import describe
from experiments.sweep.points import Point, expand
from experiments.sweep.progress import SweepProgress
from experiments.sweep.report import build_report
from experiments.sweep.table import ENDED, FAILED, Row, SweepTable
from fl_sim.config import SEED_BITS, SettingsError
from fl_sim.errors import UserError


def run_sweep(source: str, overrides: Sequence[str], out: Path, jobs: int | None, console: Console) -> int:
    """Run what has not ended of a sweep; ``out`` gets the runs, the table and the report. Returns the exit code.

    Everything that can be wrong with any of its runs is found before the first one begins.

    Args:
        source: a preset, or a file.
        overrides: settings of every run, as ``key=value``.
        out: new, empty, or the folder of the same sweep, which then goes on.
        jobs: runs at a time; None: as many as keep the processors busy.
        console: where it tells what it does.

    Raises:
        UserError: one line on what is wrong, before anything is written.
    """
    directory = SweepDirectory(out)

    def try_out(point: Point, experiment: Experiment) -> None:
        if not directory.run(point.name).ended:
            try_first_batch(experiment)

    sweep, points, planned = _plan(source, overrides, directory, try_out)
    ended = {point.name for point in points if directory.run(point.name).ended}
    directory.create(sweep)
    with directory.locked():
        directory.write(sweep, planned)
        table = SweepTable.of(directory, sweep.axes, planned)
        table.save()
        left = [point for point in points if point.name not in ended]
        console.print(f"runs to do: {len(left)}; ended before: {len(ended)}", highlight=False)
        _run(left, table, jobs or jobs_that_fit(list(planned.values())), len(ended), console)
        _conclude(table, console)
    failed = table.failed
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} of {len(points)} runs failed; the same command with this --out tries them again")
    return min(1, len(failed))


def dry_run(source: str, overrides: Sequence[str], out: Path, jobs: int | None, console: Console) -> None:
    """``fl-sim sweep --dry-run``: print every run and what they will cost, and leave nothing behind.

    Raises:
        UserError: one line on what is wrong.
    """
    costs: dict[str, Cost] = {}

    def time_one(point: Point, experiment: Experiment) -> None:
        try_first_batch(experiment)
        costs[point.name] = estimate(experiment)

    sweep, _, planned = _plan(source, overrides, SweepDirectory(out), time_one)
    table, lines = describe(costs, sweep.repetitions, jobs or jobs_that_fit(list(planned.values())))
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _plan(
    source: str, overrides: Sequence[str], directory: SweepDirectory, look: Callable[[Point, Experiment], None]
) -> tuple[SweepFile, list[Point], dict[str, ExperimentSettings]]:
    """The sweep, its runs and their settings, all checked; ``look`` is shown those of the first repetition."""
    sweep = _with_private_root(directory.take_up(load_sweep(source, overrides)))
    points = expand(sweep)
    planned = {}
    for point in points:
        with _naming(point):
            experiment = check(sweep.base, point.overrides)
            if point.repetition == 1:
                look(point, experiment)
        planned[point.name] = experiment.settings
    directory.check_settings(planned)
    return sweep, points, planned


def _with_private_root(sweep: SweepFile) -> SweepFile:
    if sweep.client_seed is not None:
        return sweep
    return sweep.model_copy(update={"client_seed": secrets.randbits(SEED_BITS)})


@contextmanager
def _naming(point: Point) -> Iterator[None]:
    """Put the point in front of what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise SettingsError(f"{point.name}: {error}") from error


def _run(points: Sequence[Point], table: SweepTable, jobs: int, ended: int, console: Console) -> None:
    """Carry out the runs, and bring the table up to date after each."""
    directory = table.directory
    tasks = [
        processes.Task(name, directory.settings(name), directory.run(name).path, directory.log(name))
        for name in (point.name for point in points)
    ]
    with SweepProgress(console, len(table.planned), ended) as display:
        for task, reason in processes.side_by_side(tasks, jobs, display.begun, processes.fl_sim_run):
            table.update(task.name, ENDED if reason is None else f"{FAILED}{reason}")
            table.save()
            display.ended(task, _outcome(table.rows[task.name]), task.name in table.failed)


def _outcome(rows: Sequence[Row]) -> str:
    """What came of a run, in a few words."""
    if rows[0]["status"] != ENDED:
        return str(rows[0]["status"])
    found = [
        f"{row['attack']}: {_decibels(row['median_psnr']) or 'failed'}" for row in rows if row["images"] is not None
    ]
    return ", ".join(found) or ENDED


def _decibels(psnr: float | None) -> str:
    """As text, empty where there is none."""
    return "" if psnr is None or math.isnan(psnr) else f"{psnr:.1f} dB"


def _conclude(table: SweepTable, console: Console) -> None:
    """Build the report, and print the table."""
    page = build_report(table.directory)
    console.print(_shown(table))
    console.print(f"table: {bold_path(table.directory.csv)}", soft_wrap=True)
    console.print(f"report: {bold_path(page)}", soft_wrap=True)


def _shown(table: SweepTable) -> Table:
    shown = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("run", "attack", "images", "median PSNR", f">= {RECOGNISABLE_DB:.0f} dB", "held out"):
        shown.add_column(heading, justify="left" if heading in ("run", "attack") else "right", overflow="fold")
    for name in table.planned:
        for row in table.rows[name]:
            share = row["share_recognisable"]
            shown.add_row(
                name,
                Text(row["attack"] or ""),
                "" if row["images"] is None else str(row["images"]),
                _decibels(row["median_psnr"]),
                "" if share is None or math.isnan(share) else f"{100 * share:.0f} %",
                "" if math.isnan(row["utility"]) else f"{row['utility']:.4f}",
            )
    return shown
