"""What all commands share: where they write, on which device they compute, and how they end.

Like experiments/cli/, this imports nothing slow.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from errno import ENOSPC
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from experiments.ray_watch import watched_ray
from experiments.stopping import end_at_once, stoppable

console = Console(emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.", rich_help_panel="Resources")]
"""The option that ``choose_device`` reads."""


def bold_path(path: Path) -> str:
    """Markup that prints the path in bold as it is written, whatever brackets it has."""
    return f"[bold]{escape(str(path))}[/bold]"


class OneLineGroup(TyperGroup):
    """Commands whose usage errors are one line on stderr and exit code 2, as all errors that a user can cause."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, and exit."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(args, prog_name, standalone_mode=False, **extra))
        except click.exceptions.NoArgsIsHelpError as error:  # the help has been printed
            sys.exit(error.exit_code)
        except click.ClickException as error:
            errors.print(f"fl-sim: {_in_one_line(error)}")
            sys.exit(error.exit_code)
        except OSError as error:  # printing a help; a command's own are one line already
            _say_which_file(error)
            sys.exit(2)


def _in_one_line(error: click.ClickException) -> str:
    """What is wrong with the words of a command, which name is near, and which help says more."""
    from fl_sim.errors import one_line, printable

    near = sorted(getattr(error, "possibilities", None) or ())
    wrong = one_line(printable(error.message if near else error.format_message())).rstrip(".")
    context = getattr(error, "ctx", None)
    more = f"; did you mean {near[0]!r}?" if near else f"; see {context.command_path} --help" if context else ""
    return f"{wrong[:1].lower()}{wrong[1:]}{more}"


@contextmanager
def one_line_errors(left: Callable[[], str] | str = "", with_ray: bool = False) -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and an exit code.

    The code is 2 for bad input and for files that cannot be read or written, 1 for a failed federation or a Ray that
    died, and 128 + the signal for a command that was stopped. ``left`` is what the line says of the last two: what is
    left, and how to go on. ``with_ray``: the command starts Ray.
    """

    def last_words(what: str) -> str:
        return "; ".join(filter(None, (what, left() if callable(left) else left)))

    with ExitStack() as watched:
        watched.enter_context(stoppable(lambda: last_words("stopped"), at_once=with_ray))
        if with_ray:
            watched.enter_context(watched_ray(lambda name: end_at_once(last_words(f"Ray's {name} died"), 1)))
        from fl_sim.errors import UserError, printable
        from fl_sim.repeatable_grid import FederationError

        try:
            yield
        except UserError as error:
            errors.print(f"fl-sim: {printable(error)}")
            raise typer.Exit(2) from error
        except OSError as error:
            _say_which_file(error)
            raise typer.Exit(2) from error
        except FederationError as error:
            errors.print(f"fl-sim: the run failed: {printable(error)}")
            raise typer.Exit(1) from error


def _say_which_file(error: OSError) -> None:
    """Print in one line which file cannot be read or written; raises the error where it is about no file."""
    from fl_sim.errors import printable

    if error.filename is None and error.errno != ENOSPC:
        raise error
    if error.filename is None:  # what is written to a file has its name (fl_sim/files.py)
        _discard_output()
    errors.print(f"fl-sim: {printable(error.filename or 'standard output')}: {error.strerror}")


def _discard_output() -> None:
    """Send what is still to be printed nowhere: at its end Python would fail to print it once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def what_is_left(out: Path) -> str:
    """What a run into ``out`` that was stopped has left, and how to go on."""
    go_on = f"to go on: {shlex.join(['fl-sim', 'run', '--resume', str(out)])}"
    if (out / "leakage.csv").is_file():
        return f"what was computed is in {out}, and fl-sim report {out} shows it; {go_on}"
    if (out / "config.toml").is_file():
        return f"no round was finished; {go_on}"
    return "nothing was computed"


def attack_command(run: Path, factory: str | None) -> str:
    """The command that attacks the captures of a run, whose network a ``factory`` may build."""
    return shlex.join(["fl-sim", "attack", str(run), *(["--trust", factory] if factory else [])])


def unfinished(out: Path) -> Path:
    """Where the training of what goes to the file ``out`` is kept until it is done."""
    return Path(f"{out}.unfinished")


def how_to_go_on(checkpoint: Path | None) -> str:
    """What a search or training that was stopped has left; ``checkpoint`` is the file that it is kept in."""
    if checkpoint is None or not checkpoint.is_file():
        return "nothing was written"
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return f"to go on: {shlex.join(['fl-sim', *words, '--resume'])}"


def the_same_again(given: Path | None, folder: Path) -> str:
    """How to go on with a command that was stopped, and goes on if it is given again.

    ``folder`` is what it writes into where none was ``given``.
    """
    made = ["--out", str(folder)] if given is None and folder.is_dir() else []
    return f"to go on: {shlex.join(['fl-sim', *sys.argv[1:], *made])}"


def output_folder(given: Path | None, name: str) -> Path:
    """The folder that a command writes into: the one given, or a new one in ``runs``, called ``name`` and the time."""
    return expand_home(given) if given else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def expand_home(path: Path) -> Path:
    """The path with ``~`` for the home folder, which a shell does not do behind ``=``; ``~nobody`` stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises where it is the home of nobody)


def complete_sweep(incomplete: str) -> list[str]:
    """The sweeps whose names begin so, for the shell to complete."""
    from experiments.sweep.file import sweep_names

    return [name for name in sweep_names() if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """The presets whose names begin so, for the shell to complete."""
    from experiments.settings import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def is_one_file(path: Path) -> bool:
    """Whether the path names one file, there or not: neither a folder nor a pattern of paths."""
    return not path.is_dir() and (path.exists() or not has_magic(str(path)))


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, between commas; SettingsError if they are not."""
    from fl_sim.config import SettingsError

    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise SettingsError(f"{option} {text}: allowed: whole numbers from 1, between commas")
    return tuple(map(int, words))


def one_run(directories: Sequence[Path], option: str) -> Path:
    """The only one of the run directories; SettingsError if ``option``, which is about one, comes with several."""
    from fl_sim.config import SettingsError

    if len(directories) > 1:
        raise SettingsError(f"{option}: {len(directories)} run directories were given; allowed with it: one")
    return directories[0]


def comparison_file(given: Path | None, directories: Sequence[Path]) -> Path:
    """Where a comparison goes; SettingsError if a place was ``given`` for the report of a single run."""
    from fl_sim.config import SettingsError

    if given is not None and len(directories) == 1:
        raise SettingsError(f"--out {given}: the report of one run is in its folder; allowed with several runs")
    return expand_home(given) if given is not None else Path("comparison.html")


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda``; SettingsError if this machine does not have the one that ``--device`` names."""
    import torch

    from fl_sim.config import SettingsError

    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in ("auto", *available):
        raise SettingsError(f"--device {name}: not on this machine; allowed: auto, {', '.join(available)}")
    return available[-1] if name == "auto" else name
