"""The command line ``fl-sim``.

Whatever takes long to import is imported by the command that needs it, so that ``fl-sim --help`` answers at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table

from experiments.stopping import stoppable

if TYPE_CHECKING:
    from experiments.dry_run import FirstBatch
    from experiments.experiment import Experiment
    from experiments.settings import ExperimentSettings
    from fl_sim.federation import AttackResources

app = typer.Typer(
    name="fl-sim",
    help="What does a federated diffusion model leak to the server that trains it?\n\n"
    "fl-sim trains a diffusion model over clients that keep their images to themselves, while an honest-but-curious "
    "server reconstructs those images from the updates that it receives. Start with [bold]fl-sim run demo[/bold].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure, on victims that nobody tuned on.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(bench, name="bench")
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")]


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim run demo[/cyan]   a few minutes on two CPU cores\n\n"
    "[cyan]fl-sim run demo --set model.checkpoint=none --out runs/untrained[/cyan]\n\n"
    "[cyan]fl-sim run demo --set data.name=folder --set data.path=~/photos --set data.partition=iid[/cyan]\n\n"
    "[cyan]fl-sim run demo --set client.update=weights --set strategy.name=FedAvg --set client.local_steps=2[/cyan]\n\n"
    "[cyan]fl-sim run runs/untrained/config.toml --out runs/again[/cyan]   the same run once more\n\n"
    "[cyan]fl-sim run demo --set client.batch_size=4 --dry-run[/cyan]   what it would do, in a few seconds"
)
def run(
    preset: Annotated[str, typer.Argument(metavar="[PRESET | FILE.toml]", help="What to run.")] = "demo",
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    out: Annotated[
        Path | None, typer.Option(help="The run directory, new or empty.", show_default="runs/PRESET-TIME")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, train one batch, print the resolved settings, and leave nothing behind.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's and Ray's own logs.")] = False,
) -> None:
    """Launch a federation and the attacks on it, and report what leaked."""
    directory = _folder(out, Path(preset).stem)
    if dry_run:
        with _one_line_errors("stopped; nothing was written"):
            _dry_run(preset, overrides, directory)
        return
    with _one_line_errors(lambda: _what_is_left(directory), with_ray=True):
        _run(preset, overrides, directory, verbose)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim attack runs/demo/captures/round-0001-client-0003.safetensors --attack residual[/cyan]\n\n"
    "[cyan]fl-sim attack update.safetensors --attack gidm --set recipe=published --out gidm-result[/cyan]"
)
def attack(
    capture: Annotated[Path, typer.Argument(help="A capture file: the weights sent and the update that came back.")],
    name: Annotated[str, typer.Option("--attack", metavar="NAME", help="One of those that fl-sim list shows.")],
    seed: Annotated[int, typer.Option(min=0, help="The run's public seed; the attack's own follows from it.")] = 0,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the attack; may be repeated.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result, new or empty.", show_default="runs/attack-…")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads; more are faster, and may change the last bits of the result.")
    ] = 1,
) -> None:
    """Attack one captured update offline, without any truth to compare with."""
    directory = _folder(out, f"attack-{capture.stem}-{name}")
    with _one_line_errors("stopped; nothing was written"):
        _attack(_expanded(capture), name, seed, overrides, directory, device, threads)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim report runs/demo[/cyan]   also where the run was stopped half way\n\n"
    "[cyan]fl-sim report runs/demo runs/untrained --out comparison.html[/cyan]"
)
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="Where a comparison of several runs goes.")] = Path("comparison.html"),
) -> None:
    """Build the report of a run again, or compare several runs."""
    with _one_line_errors("stopped"):
        from experiments.report import build_comparison, build_report

        runs = [_expanded(directory) for directory in directories]
        page = build_report(runs[0]) if len(runs) == 1 else build_comparison(runs, _expanded(out))
        console.print(f"report: [bold]{page}[/bold]", soft_wrap=True)


@app.command("list")
def list_names() -> None:
    """Show the attacks, strategies, defences, datasets and presets there are."""
    with _one_line_errors("stopped"):
        console.print(_names())


@bench.command(
    "attacks",
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench attacks --quick --jobs 2[/cyan]   a few minutes on two CPU cores\n\n"
    "[cyan]fl-sim bench attacks --out results --jobs 2[/cyan]   everything; run again, it goes on where it was\n\n"
    "[cyan]fl-sim bench attacks --only speed --published[/cyan]   seconds to 40 dB against the published recipe\n\n"
    "[cyan]fl-sim bench attacks --quick --only strata --attacks residual,my.package:MyAttack[/cyan]\n\n"
    "[cyan]fl-sim bench attacks --networks 64,128 --device cuda[/cyan]",
)
def bench_attacks(
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest network, few cases, one or two victims each.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="SUITE,…",
            help="strata, batch, local-steps, adam, signs, noise, clip, top-k, sum, speed.",
            show_default="all",
        ),
    ] = "",
    attacks: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Any registered attack, or one of the benchmark's own recipes such as gidm-published.",
            show_default="each suite's own",
        ),
    ] = "",
    networks: Annotated[
        str, typer.Option(metavar="NAME,…", help="16, 32-narrow, 32-deep, 32, 32-wide, 64, 128.", show_default="all")
    ] = "",
    victims: Annotated[
        int | None, typer.Option(min=1, help="Victims of every cell, with --quick too.", show_default="10")
    ] = None,
    published: Annotated[
        bool | None,
        typer.Option(
            "--published/--no-published",
            help="Run the published recipes too, a quarter of an hour each on a CPU.",
            show_default="unless --quick",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="A trained model for the network of its image size; may be repeated."),
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Of the victims and of the attacks.")] = 61681,
    jobs: Annotated[int, typer.Option(min=1, help="Attacks side by side, one thread each; 1 for fair seconds.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder, new or of a benchmark to go on with.", show_default="runs/bench-TIME")
    ] = None,
) -> None:
    """Run every attack on the same victims and show who reconstructs what, and how fast.

    A [bold]cell[/bold] is one attack in one case: model, timesteps, what the client did, what the attacker knows.
    Per cell: PSNR (median, quartiles, least), timesteps told, evaluations and seconds, also those up to 40 dB.
    """
    directory = _folder(out, "bench")
    with _one_line_errors(f"stopped; --out {directory} with the same options goes on from here"):
        from experiments.bench.bench import bench_attacks as run_benchmark
        from experiments.bench.plan import Options

        options = Options(
            only=_names_in(only),
            attacks=_names_in(attacks),
            networks=_names_in(networks),
            victims=victims,
            quick=quick,
            published=published,
            seed=seed,
            device=_device(device),
            checkpoints=tuple(_expanded(path) for path in checkpoint),
        )
        run_benchmark(options, directory, jobs, console)
        console.print(f"tables: [bold]{directory / 'attacks.md'}[/bold]", soft_wrap=True)


@bench.command(
    "defences",
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench defences --quick --jobs 2[/cyan]   a quarter of an hour on two CPU cores\n\n"
    "[cyan]fl-sim bench defences --out results --jobs 2[/cyan]   everything; run again, it goes on where it was\n\n"
    "[cyan]fl-sim bench defences --quick --only none,top-k[/cyan]   one defence beside none\n\n"
    "[cyan]fl-sim bench defences --only none,my_package:MyDefence[/cyan]   one of your own, with its defaults",
)
def bench_defences(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few strengths, 30 rounds, two clients of the last one attacked.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="none, clip-noise, dp-sgd, top-k, signs, stochastic-quantisation, unshared-time-mlp, "
            "secure-aggregation, batch, local-steps; or any other defence.",
            show_default="all",
        ),
    ] = "",
    attack: Annotated[str, typer.Option(metavar="NAME", help="One of those that fl-sim list shows.")] = "residual",
    rounds: Annotated[int | None, typer.Option(min=1, help="Of training.", show_default="100, with --quick 30")] = None,
    victims: Annotated[
        int | None, typer.Option(min=1, max=4, help="Clients attacked in a round.", show_default="4, with --quick 2")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the federations and of the attacks.")] = 40961,
    jobs: Annotated[int, typer.Option(min=1, help="Federations side by side, one thread each.")] = 1,
    device: Annotated[str, typer.Option(help="Of the attacks: cpu, cuda, or auto: cuda where there is one.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder, new or of a benchmark to go on with.", show_default="runs/bench-TIME")
    ] = None,
) -> None:
    """Train the same federation under every defence and show what still leaks, and what the defence costs.

    Four clients train a small model from scratch, on photographs that no attack was tuned on. Updates of the first
    round and of the last are attacked: by who [bold]knows[/bold] how they were protected, and by who [bold]does
    not[/bold]. Beside that: the model's held-out loss and the distance of its samples from the clients' images,
    before and after training, and the (epsilon, delta) spent. A defence that merely breaks training shows as one.
    """
    directory = _folder(out, "bench")
    with _one_line_errors(f"stopped; --out {directory} with the same options goes on from here"):
        from experiments.bench.defences import Options
        from experiments.bench.defences import bench_defences as run_benchmark

        options = Options(
            only=_names_in(only),
            attack=attack,
            rounds=rounds,
            victims=victims,
            quick=quick,
            seed=seed,
            device=_device(device),
        )
        run_benchmark(options, directory, jobs, console)
        console.print(f"table: [bold]{directory / 'defences.md'}[/bold]", soft_wrap=True)


@bench.command()
def timesteps(
    victims: Annotated[int, typer.Option(min=1, help="Victims a case.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the victims.")] = 40961,
    jobs: Annotated[int, typer.Option(min=1, help="Cases side by side, one thread each.")] = 1,
    out: Annotated[Path | None, typer.Option(help="New folder.", show_default="runs/bench-TIME")] = None,
) -> None:
    """Read the timesteps off many updates and count the exact, the unknown and the wrong."""
    directory = _folder(out, "bench")
    with _one_line_errors("stopped"):
        from experiments.bench.timesteps import bench_timesteps

        bench_timesteps(victims, seed, jobs, directory, console)
        console.print(f"table: [bold]{directory / 'timesteps.md'}[/bold]", soft_wrap=True)


@bench.command("many-clients")
def many_clients(
    clients: Annotated[int, typer.Option(min=1)] = 200,
    per_round: Annotated[int, typer.Option(min=1, help="How many of them train in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=6, help="Of every federation; figures are from the fifth on.")] = 20,
    turns: Annotated[int, typer.Option(min=1, help="Pairs of federations, without attacks and with.")] = 2,
    out: Annotated[Path | None, typer.Option(help="New folder.", show_default="runs/bench-TIME")] = None,
) -> None:
    """Run a federation of many clients and see whether its memory grows or attacks hold up its rounds."""
    directory = _folder(out, "bench")
    with _one_line_errors("stopped", with_ray=True):
        from experiments.bench.many_clients import bench_many_clients

        bench_many_clients(clients, per_round, rounds, turns, directory, console)


def main() -> None:
    """Entry point of the ``fl-sim`` command."""
    app()


def _names() -> Group:
    from attacks.registry import ATTACKS
    from experiments.settings import preset_names
    from fl_sim.defences.registry import DEFENCES
    from fl_sim.images.bundled import PHOTOGRAPHS
    from strategies.registry import available as strategies

    kinds = {
        "attack": {name: _summary_line(ATTACKS.find(name)) for name in ATTACKS.names()},
        "strategy": dict.fromkeys(strategies(), ""),
        "defence": {name: _with_arguments(DEFENCES.find(name)) for name in DEFENCES.names()},
        "dataset": {
            "bundled": f"photographs: {', '.join(PHOTOGRAPHS)}",
            "folder": "the images under data.path",
            "HUB_ID": "a Hugging Face dataset, or the path of a local one",
        },
        "preset": dict.fromkeys(preset_names(), ""),
    }
    return Group(*(_name_table(kind, names) for kind, names in kinds.items()))


def _name_table(kind: str, names: dict[str, str]) -> Table:
    """One table a kind, so that the longest name of one does not squeeze the descriptions of another."""
    table = Table(box=None, padding=(0, 2), show_header=False, title=kind, title_justify="left", title_style="dim")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, description in names.items():
        table.add_row(name, description)
    return table


def _tried(preset: str, overrides: list[str], out: Path) -> "tuple[Experiment, FirstBatch]":
    """Everything that can be found out before a run writes anything."""
    from experiments.dry_run import try_first_batch
    from experiments.experiment import prepare
    from experiments.run_directory import check_empty_folder
    from experiments.settings import load_run
    from fl_sim.federation import check_resources

    check_empty_folder(out)
    experiment = prepare(load_run(preset, overrides))
    check_resources(experiment.settings, _attack_resources(experiment.settings))
    return experiment, try_first_batch(experiment)


def _attack_resources(settings: "ExperimentSettings") -> "AttackResources":
    from fl_sim.federation import AttackResources

    return AttackResources(settings.attack.workers if settings.attack.names else 0, settings.attack.gpus_per_worker)


def _dry_run(preset: str, overrides: list[str], out: Path) -> None:
    import logging

    from experiments.dry_run import describe
    from fl_sim.config import dump_toml

    logging.getLogger("flwr").setLevel(logging.ERROR)
    experiment, tried = _tried(preset, overrides, out)
    batch = f"one batch: training loss {tried.loss:.4f}, a reply of {tried.size / 1e6:.1f} MB"
    # Comments, so that what is printed is a file that runs.
    print(*(f"# {line}" for line in (*describe(experiment), batch)), "", dump_toml(experiment.settings), sep="\n")


def _run(preset: str, overrides: list[str], out: Path, verbose: bool) -> None:
    import logging

    from experiments.dry_run import describe
    from experiments.headline import headline
    from experiments.leakage import read_leakage
    from experiments.run_directory import RunDirectory
    from experiments.server_app import build_server_app, run_progress
    from fl_sim.client_app import build_client_app
    from fl_sim.federation import run_federation

    if not verbose:
        logging.getLogger("flwr").setLevel(logging.ERROR)
    experiment, _ = _tried(preset, overrides, out)
    settings = experiment.settings
    for line in describe(experiment):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    directory = RunDirectory.create(out, settings)
    with run_progress(experiment, console) as display:
        run_federation(
            build_server_app(experiment, directory, display),
            build_client_app(settings),
            settings,
            _attack_resources(settings),
            verbose,
        )
    for part in headline(read_leakage(directory.leakage_csv), experiment.recipe.model):
        console.print(part, highlight=False)
    console.print(f"report: [bold]{directory.report}[/bold]", soft_wrap=True)


def _attack(capture: Path, name: str, seed: int, overrides: list[str], out: Path, device: str, threads: int) -> None:
    import torch

    from attacks.observation import Observation
    from attacks.reconstruction_file import save_reconstruction
    from attacks.registry import create
    from experiments.pictures import save_grid
    from experiments.run_directory import make_empty_folder
    from fl_sim.draws import derive_seed
    from fl_sim.files import write_atomically

    chosen = create(name, _arguments(name, overrides))
    observation = Observation.load(capture)
    chosen.check(observation)
    where = _device(device)
    make_empty_folder(out)
    torch.set_num_threads(threads)
    seen = observation.circumstances
    # What the run itself would give this attack, so that the result is the run's.
    attack_seed = derive_seed(seed, "attack", chosen.name, seen.round, seen.client)
    with console.status(f"{name} on {capture.name}"):
        found = chosen.reconstruct(observation, attack_seed, where)
    picture = out / "reconstruction.png"
    write_atomically(out / "reconstruction.safetensors", lambda file: save_reconstruction(file, found))
    write_atomically(picture, lambda file: save_grid(file, found.images))
    timesteps = ", ".join(str(timestep) if timestep >= 0 else "unknown" for timestep in found.timesteps.tolist())
    console.print(
        f"matching loss {found.matching_loss:.3g} after {found.evaluations} evaluations in {found.seconds:.1f} s "
        f"on {found.device}; timesteps: {timesteps}",
        highlight=False,
    )
    console.print(f"reconstruction: [bold]{picture}[/bold]", soft_wrap=True)


def _what_is_left(out: Path) -> str:
    """What to say of a run that was stopped."""
    if (out / "leakage.csv").is_file():
        return f"stopped; what was computed is in {out}, and fl-sim report {out} shows it"
    return "stopped before the first round; nothing was computed"


def _arguments(attack: str, overrides: list[str]) -> dict[str, Any]:
    """An attack's arguments from ``key=value``; the key may be spelt as in a run's settings."""
    from experiments.settings import ExperimentSettings
    from fl_sim.config import load_settings

    prefixes = (f"attack.args.{attack}.", f'attack.args."{attack}".')
    keys = [override.removeprefix(prefixes[0]).removeprefix(prefixes[1]) for override in overrides]
    spelt_out = [f'attack.args."{attack}".{key}' for key in keys]
    return load_settings(ExperimentSettings, {}, spelt_out).attack.args.get(attack, {})


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _device(name: str) -> str:
    import torch

    from fl_sim.config import SettingsError

    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in ("auto", *available):
        raise SettingsError(f"--device {name}: not on this machine; allowed: auto, {', '.join(available)}")
    return available[-1] if name == "auto" else name


@contextmanager
def _one_line_errors(interrupted: Callable[[], str] | str, with_ray: bool = False) -> Iterator[None]:
    """Turn what a user can cause into one line on stderr: exit code 2, 1 for a failed federation, 130 for Ctrl-C."""
    with stoppable(interrupted if callable(interrupted) else lambda: interrupted, at_once=with_ray), _refusals():
        yield


@contextmanager
def _refusals() -> Iterator[None]:
    from fl_sim.errors import UserError
    from fl_sim.repeatable_grid import FederationError

    try:
        yield
    except UserError as error:
        errors.print(f"fl-sim: {error}")
        raise typer.Exit(2) from error
    except FederationError as error:
        errors.print(f"fl-sim: the run failed: {error}")
        raise typer.Exit(1) from error


def _summary_line(documented: type) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _with_arguments(defence: type[Any]) -> str:
    """What a defence does, and below that its arguments with their defaults."""
    arguments = [
        f"[dim]{name} = {field.get_default()!r}: {field.description}[/dim]"
        for name, field in defence.model_fields.items()
    ]
    return "\n".join([_summary_line(defence), *arguments])


def _folder(given: Path | None, name: str) -> Path:
    """The folder that a command writes into: the one given (a shell expands no ``~`` behind ``=``), or a new one."""
    return _expanded(given) if given else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _expanded(path: Path) -> Path:
    """The path with ``~`` for the home folder; as it is where that is the home of nobody, as a shell leaves it."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
