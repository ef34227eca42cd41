"""The commands that only show something: ``fl-sim report``, ``watch``, ``list`` and ``metrics``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import bold_path, comparison_file, console, expand_home, one_line_errors, one_run

REPORT_EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim report runs/demo[/cyan]   also where the run was stopped half way\n\n"
    "[cyan]fl-sim report runs/demo runs/untrained --out comparison.html[/cyan]\n\n"
    "[cyan]fl-sim report runs/demo --picture strip.png[/cyan]   originals and reconstructions, to show to others\n\n"
    "[cyan]fl-sim report runs/defences[/cyan]   the comparison of all runs of a sweep"
)


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Run directories, or one of a sweep.")],
    out: Annotated[
        Path | None, typer.Option(help="Where a comparison of several runs goes.", show_default="comparison.html")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a PNG of what was private, noised and found.")
    ] = None,
) -> None:
    """Build the report of a run or of a sweep again, or compare several runs.

    Writes report.html in the folder of the run or sweep, or one page that compares several.
    """
    with one_line_errors():
        from experiments.report import build_comparison, build_report
        from experiments.run_directory import reading
        from experiments.sweep import report as sweep_report
        from experiments.sweep.directory import SweepDirectory

        runs = [expand_home(directory) for directory in directories]
        comparison = comparison_file(out, runs)
        if picture is not None:
            from experiments.strip import build_strip

            with reading(*runs):
                build_strip(one_run(runs, "--picture"), expand_home(picture))
        if len(runs) == 1 and (of := SweepDirectory(runs[0])).file.is_file():
            page = sweep_report.build_report(of)
        else:
            with reading(*runs):
                page = build_report(runs[0]) if len(runs) == 1 else build_comparison(runs, comparison)
        console.print(f"report: {bold_path(page)}", soft_wrap=True)


WATCH_EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim watch runs/demo[/cyan]   until the run has ended\n\n"
    "[cyan]fl-sim watch runs/demo --once[/cyan]   how it stands now"
)


def watch(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The directory of a run or a sweep, on this machine or mounted.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands, and leave.")] = False,
) -> None:
    """Show how a run goes on that was started elsewhere: rounds, attacks, what leaked, time left. Only reads files."""
    with one_line_errors():
        from experiments.run_directory import reading
        from experiments.sweep.directory import SweepDirectory
        from experiments.sweep.watch import watch_sweep
        from experiments.watch import watch as show

        path = expand_home(directory)
        sweep = SweepDirectory(path)
        with reading(path):
            if sweep.file.is_file():
                sweep.check_has_table()
                watch_sweep(sweep, console, once)
            else:
                show(path, console, once)


LIST_EXAMPLES = "Examples:\n\n[cyan]fl-sim list[/cyan]\n\n[cyan]fl-sim list metrics[/cyan]"


def show_names(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="Only these, such as attacks or metrics.", show_default="all"),
    ] = None,
) -> None:
    """Show attacks, model inversions, strategies, defences, metrics, networks, datasets, priors, presets, sweeps."""
    with one_line_errors():
        from experiments.listing import list_names

        console.print(list_names(kind))


METRICS_EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim metrics[/cyan]\n\n"
    "[cyan]fl-sim metrics --check[/cyan]   which of them can be computed here\n\n"
    "[cyan]fl-sim run demo --set metrics.names=fsim --dry-run[/cyan]   a run measured by one of them, MSE and PSNR"
)


def metrics(
    check: Annotated[
        bool,
        typer.Option("--check", help="Say of each whether it can be computed here, else which file goes where."),
    ] = False,
    lpips_weights: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="A backbone of LPIPS, as metrics.lpips_weights names it; may be repeated."),
    ] = [],  # noqa: B006 (typer reads the default, nobody changes it)
) -> None:
    """Show by what reconstructions are compared with the originals."""
    with one_line_errors():
        from experiments.metrics import listing

        found = listing.all_metrics(lpips_weights)
        if check:
            for line in listing.check(found):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
        else:
            console.print(listing.describe(found), highlight=False)
