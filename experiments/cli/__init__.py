"""The command line ``fl-sim``: which commands there are; what each takes is in the module of its name.

Whatever takes long to import is imported by the command that needs it, so that ``fl-sim --help`` answers at once.
"""

import typer

from experiments.bench.cli import app as bench
from experiments.cli import attack, invert, look, run, sweep, train_prior
from experiments.commands import OneLineGroup

app = typer.Typer(
    name="fl-sim",
    help="What does a federated diffusion model leak to the server that trains it?\n\n"
    "fl-sim trains a diffusion model over clients that keep their images to themselves, while an honest-but-curious "
    "server reconstructs those images from the updates that it receives. Start with [bold]fl-sim run demo[/bold].\n\n"
    "Exit codes: 0 done; 1 the federation, or an attack on one of several captures, failed; 2 something that you can "
    "correct, which one line on stderr names; 128 + N stopped by signal N, such as 130 by Ctrl-C.\n\n"
    "Environment: FL_SIM_HOME, where flwr run leaves its runs; HF_HOME, where datasets of the hub are kept; "
    "TORCH_HOME, where LPIPS finds its weights; CUDA_VISIBLE_DEVICES, the GPUs to use; NO_COLOR.",
    no_args_is_help=True,
    cls=OneLineGroup,
    rich_markup_mode="rich",
    suggest_commands=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")

app.command(epilog=run.EXAMPLES)(run.run)
app.command(epilog=sweep.EXAMPLES)(sweep.sweep)
app.command(epilog=attack.EXAMPLES)(attack.attack)
app.command(epilog=invert.EXAMPLES)(invert.invert)
app.command("train-prior", epilog=train_prior.EXAMPLES)(train_prior.train_prior)
app.command(epilog=look.REPORT_EXAMPLES)(look.report)
app.command(epilog=look.WATCH_EXAMPLES)(look.watch)
app.command("list", epilog=look.LIST_EXAMPLES)(look.show_names)
app.command(epilog=look.METRICS_EXAMPLES)(look.metrics)


def main() -> None:
    """Entry point of the ``fl-sim`` command."""
    app()
