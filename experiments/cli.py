"""The command line ``fl-sim``: which commands there are, and what they take.

Whatever takes long to import is imported by the command that needs it, so that ``fl-sim --help`` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.bench.cli import app as bench
from experiments.commands import (
    Device,
    OneLineGroup,
    bold_path,
    comparison_file,
    complete_preset,
    complete_sweep,
    console,
    expand_home,
    how_to_go_on,
    is_one_file,
    numbers,
    one_line_errors,
    one_run,
    output_folder,
    the_same_again,
    unfinished,
    what_is_left,
)

if TYPE_CHECKING:
    from experiments.callbacks import Callback

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

Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.", rich_help_panel="What to run"
    ),
]


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim run demo[/cyan]   two to three minutes on two CPU cores\n\n"
    "[cyan]fl-sim run demo --set model.checkpoint=none --out runs/untrained[/cyan]\n\n"
    "[cyan]fl-sim run demo --set data.name=folder --set data.path=~/photos --set data.partition=iid[/cyan]\n\n"
    "[cyan]fl-sim run demo --set client.update=weights --set strategy.name=FedAvg --set client.local_steps=2[/cyan]\n\n"
    "[cyan]fl-sim run runs/untrained/config.toml --out runs/again[/cyan]   the same run once more\n\n"
    "[cyan]fl-sim run demo --set client.batch_size=4 --dry-run[/cyan]   what it would do, in a few seconds\n\n"
    "[cyan]fl-sim run --resume runs/untrained[/cyan]   goes on with a run that was broken off, to the same result"
)
def run(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="[PRESET | FILE.toml]", help="What to run.", show_default="demo", autocompletion=complete_preset
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run directory, new or empty.", show_default="runs/PRESET-TIME", rich_help_panel="What to write"
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, train one batch, print the resolved settings, and leave nothing behind.",
            rich_help_panel="What to write",
        ),
    ] = False,
    resumed: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with the run in this directory, which was broken off, after its last finished round.",
            rich_help_panel="What to run",
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write scalars and images for TensorBoard, into DIR/tensorboard.",
            rich_help_panel="What to write",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's and Ray's own logs.")] = False,
) -> None:
    """Launch a federation and the attacks on it, and report what leaked.

    PRESET is a name that fl-sim list shows, FILE.toml holds settings of your own, such as a run's config.toml.

    Writes a run directory: config.toml, which runs again unchanged, leakage.csv with a row for every image and attack,
    rounds.parquet, captures, reconstructions, the model, and report.html.
    """
    if resumed is not None:
        others = preset is not None or bool(overrides) or out is not None or dry
        _resume(expand_home(resumed), others, tensorboard, verbose)
        return
    preset = preset or "demo"
    directory = output_folder(out, Path(preset).stem)
    if dry:
        with one_line_errors("stopped; nothing was written"):
            from experiments.launch import dry_run

            dry_run(preset, overrides, directory)
        return
    with one_line_errors(lambda: what_is_left(directory), with_ray=True):
        from experiments.launch import launch

        launch(preset, overrides, directory, console, verbose, _callbacks(directory, tensorboard))


def _resume(directory: Path, other_options: bool, tensorboard: bool, verbose: bool) -> None:
    with one_line_errors(lambda: what_is_left(directory), with_ray=True):
        from experiments.launch import resume
        from fl_sim.config import SettingsError

        if other_options:
            raise SettingsError(
                f"--resume {directory}: the run goes on with the settings that it was started with; allowed beside it: "
                "--tensorboard, --verbose"
            )
        resume(directory, console, verbose, _callbacks(directory, tensorboard))


def _callbacks(directory: Path, tensorboard: bool) -> "list[Callback]":
    """What is told how the run into ``directory`` goes on; SettingsError if it is not installed."""
    if not tensorboard:
        return []
    from experiments.run_directory import RunDirectory
    from experiments.tensorboard import TensorBoard

    return [TensorBoard(RunDirectory(directory).tensorboard)]


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim sweep defences --dry-run[/cyan]   the runs, and what they will cost\n\n"
    "[cyan]fl-sim sweep defences --out runs/defences[/cyan]   if it is stopped, the same command goes on\n\n"
    "[cyan]fl-sim sweep my-sweep.toml --jobs 4[/cyan]   four runs at a time"
)
def sweep(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PRESET | FILE.toml", help="What to run (docs/sweeps.md).", autocompletion=complete_sweep
        ),
    ],
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of every run; may be repeated.",
            rich_help_panel="What to run",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the runs: new, empty, or one of this sweep, which then goes on.",
            show_default="runs/PRESET-TIME",
            rich_help_panel="What to write",
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check every run, print the plan and its cost, and leave nothing behind.",
            rich_help_panel="What to run",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time.",
            show_default="as many as keep the processors busy; with a GPU 1",
            rich_help_panel="Resources",
        ),
    ] = None,
) -> None:
    """Launch many runs that differ in a few settings, and report what leaked in each: one table, one report.

    PRESET is a sweep that fl-sim list shows, FILE.toml one of your own.

    Writes a folder with a run directory for every run, sweep.csv with a row for every run and attack, and report.html.
    """
    folder = output_folder(out, Path(source).stem)
    with one_line_errors(lambda: the_same_again(out, folder), with_ray=True):
        from experiments.sweep.command import dry_run, run_sweep

        if dry:
            dry_run(source, overrides, folder, jobs, console)
            return
        code = run_sweep(source, overrides, folder, jobs, console)
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim attack runs/demo/captures/round-0001-client-0003.safetensors --attack residual[/cyan]\n\n"
    "[cyan]fl-sim attack update.safetensors --attack gidm --set recipe=published --out gidm-result[/cyan]\n\n"
    "[cyan]fl-sim attack update.safetensors --attack residual --checkpoint search.log[/cyan]   can be broken off; "
    "the same with [cyan]--resume[/cyan] goes on\n\n"
    "[cyan]fl-sim attack runs/demo[/cyan]   what the run captured and did not attack, into its own table and report\n\n"
    "[cyan]fl-sim attack 'runs/demo/captures/*' --attack residual --attack user-level --workers 4 --out found[/cyan]"
    "   without the images to compare with; if it is stopped, the same command goes on"
)
def attack(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE|DIR|GLOB…",
            help="Capture files (the weights sent and the update that came back), run directories, and patterns.",
        ),
    ],
    names: Annotated[
        list[str],
        typer.Option(
            "--attack",
            metavar="NAME",
            help="One of those that fl-sim list shows; may be repeated. A run directory has its own.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The public seed of the run that the captures are from; the attack's own follows from it.",
            show_default="0; a run directory has its own",
            rich_help_panel="Attacks",
        ),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the attack, of one of several NAME.KEY=VALUE; may be repeated.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the result: new or empty for one attack on one capture.",
            show_default="runs/attack-…",
            rich_help_panel="What to write",
        ),
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Processes that attack, on Ray. Without it one attack on one capture runs in this process.",
            show_default="2, or attack.workers of the run",
            rich_help_panel="Resources",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Torch threads; more are faster, and may change the last bits of the result.",
            show_default="1, or attack.threads of the run",
            rich_help_panel="Resources",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the search in this file, to go on if it is broken off.",
            rich_help_panel="Going on",
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            metavar="SECONDS",
            min=0,
            help="How often the file is written.",
            rich_help_panel="Going on",
        ),
    ] = 300.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the file that --checkpoint names, to the same result.",
            rich_help_panel="Going on",
        ),
    ] = False,
    trusted: Annotated[
        list[str],
        typer.Option(
            "--trust",
            metavar="PACKAGE.MODULE:BUILD",
            help="A network of somebody's own that the capture may name: its code is imported. May be repeated.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
) -> None:
    """Attack captured updates.

    CAPTURE is a file, whose reconstruction is compared with nothing. DIR is a run: what is found in its captures goes
    into its tables and report. GLOB is a quoted pattern of either.

    Writes a reconstruction and its picture for every capture and attack.
    """
    kept = None if checkpoint is None else expand_home(checkpoint)
    if not (len(paths) == len(names) == 1 and workers is None and is_one_file(expand_home(paths[0]))):
        folder = output_folder(out, "attack")
        with one_line_errors(lambda: the_same_again(out, folder), with_ray=True):
            from experiments.attack_later import Options, attack_all
            from fl_sim.config import SettingsError

            if kept is not None or resume:
                raise SettingsError(
                    "--checkpoint and --resume: keep the search of one attack on one capture; allowed: neither, the "
                    "same command goes on with what is left"
                )
            options = Options(tuple(names), tuple(overrides), seed, out, device, workers, threads, tuple(trusted))
            code = attack_all(paths, options, folder, console)
        raise typer.Exit(code)
    directory = output_folder(out, f"attack-{paths[0].stem}-{names[0]}")
    with one_line_errors(lambda: how_to_go_on(kept)):
        from experiments.attack_offline import Checkpointing, attack_capture

        checkpointing = Checkpointing.of_options(kept, resume, every)
        attack_capture(
            expand_home(paths[0]),
            names[0],
            seed or 0,
            overrides,
            directory,
            device,
            threads or 1,
            console,
            checkpointing,
            trusted,
        )


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim invert classifier.safetensors --public ~/photos --method diff-mi[/cyan]\n\n"
    "[cyan]fl-sim invert classifier.safetensors --public ~/photos --method max-margin --set classes=[0,2][/cyan]"
)
def invert(
    source: Annotated[
        Path, typer.Argument(metavar="CAPTURE|CHECKPOINT", help="A file that holds a trained classifier.")
    ],
    public: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="A folder of images that no client holds; their labels are not read.",
            rich_help_panel="Inversion",
        ),
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="One of those that fl-sim list shows.", rich_help_panel="Inversion")
    ] = "diff-mi",
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="The run's public seed; the method's own follows from it.", rich_help_panel="Inversion"
        ),
    ] = 0,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the method; may be repeated.",
            rich_help_panel="Inversion",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the result, new or empty.", show_default="runs/invert-…", rich_help_panel="What to write"
        ),
    ] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Torch threads.", rich_help_panel="Resources")] = 1,
    trusted: Annotated[
        list[str],
        typer.Option(
            "--trust",
            metavar="PACKAGE.MODULE:BUILD",
            help="A network of somebody's own that the file may name: its code is imported. May be repeated.",
            rich_help_panel="Inversion",
        ),
    ] = [],  # noqa: B006 (as above)
) -> None:
    """Reconstruct images of a trained classifier's classes from its weights and public images.

    Writes reconstructions.safetensors and a picture with a row for every class.
    """
    directory = output_folder(out, f"invert-{source.stem}-{method}")
    with one_line_errors("stopped; nothing was written"):
        from experiments.invert_offline import invert_classifier

        invert_classifier(
            expand_home(source),
            expand_home(public),
            method,
            seed,
            overrides,
            directory,
            device,
            threads,
            console,
            trusted,
        )


@app.command(
    "train-prior",
    epilog="Examples:\n\n"
    "[cyan]fl-sim train-prior --data ~/photos --image-size 32 --out prior.safetensors[/cyan]\n\n"
    "[cyan]fl-sim train-prior --data digits --skip 898 --grey --classes --out digits.safetensors[/cyan]   clients may "
    "hold the first 898\n\n"
    "[cyan]fl-sim train-prior --data bundled --horizontal-flip --dtype float16 --out half.safetensors[/cyan]",
)
def train_prior(
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Public images: a folder, or any other value of data.name.",
            rich_help_panel="Images",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The checkpoint to write; samples go to FILE.png.", rich_help_panel="What to write"
        ),
    ],
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of \\[data], such as limit=500.", rich_help_panel="Images"
        ),
    ] = [],  # noqa: B006 (as above)
    skip: Annotated[
        int, typer.Option(min=0, help="Leave out the first images, for clients to hold.", rich_help_panel="Images")
    ] = 0,
    image_size: Annotated[
        int, typer.Option(min=11, max=1024, help="Side of the images in pixels.", rich_help_panel="Images")
    ] = 16,
    grey: Annotated[
        bool, typer.Option("--grey", help="One channel in place of RGB.", rich_help_panel="Images")
    ] = False,
    classes: Annotated[
        bool,
        typer.Option("--classes", help="Class-conditional: the images' labels are told.", rich_help_panel="Images"),
    ] = False,
    label_dropout: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.999, help="Share of labels that become the null class.", rich_help_panel="Training"
        ),
    ] = 0.1,
    crops: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Scales of bundled photographs: images that fit along the shorter side.",
            show_default="3,4,6",
            rich_help_panel="Images",
        ),
    ] = None,
    flip: Annotated[
        bool,
        typer.Option("--horizontal-flip", help="Mirror half of the images left and right.", rich_help_panel="Images"),
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A known network (fl-sim list), in the place of the next three options.",
            rich_help_panel="Network",
        ),
    ] = None,
    block_out_channels: Annotated[
        str,
        typer.Option(
            metavar="N,…", help="Channels of the network's levels, each a multiple of 8.", rich_help_panel="Network"
        ),
    ] = "32,64",
    layers_per_block: Annotated[
        int, typer.Option(min=1, max=64, help="Residual blocks in every level.", rich_help_panel="Network")
    ] = 1,
    attention: Annotated[
        bool, typer.Option("--attention", help="Attention in the innermost level.", rich_help_panel="Network")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", rich_help_panel="Training")] = 5000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.", rich_help_panel="Training")] = 32,
    lr: Annotated[
        float, typer.Option(min=1e-12, help="Highest learning rate of Adam.", rich_help_panel="Training")
    ] = 1e-3,
    warm_up_steps: Annotated[
        int, typer.Option(min=1, help="Steps until it is reached; then it decays.", rich_help_panel="Training")
    ] = 100,
    ema_decay: Annotated[
        float, typer.Option(min=0, max=0.999999, help="Of the average of the weights.", rich_help_panel="Training")
    ] = 0.995,
    seed: Annotated[
        int, typer.Option(min=0, help="Of weights, crops, noise and timesteps.", rich_help_panel="Training")
    ] = 0,
    dtype: Annotated[
        str, typer.Option(help="Of the weights in the file: float32 or float16.", rich_help_panel="What to write")
    ] = "float32",
    samples: Annotated[
        int, typer.Option(min=0, max=1024, help="Images in the picture of samples.", rich_help_panel="What to write")
    ] = 16,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Torch threads.", rich_help_panel="Resources")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was broken off.", rich_help_panel="Going on")
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            "--save-every", metavar="SECONDS", min=0, help="How often it is kept.", rich_help_panel="Going on"
        ),
    ] = 60.0,
) -> None:
    """Train a diffusion model on public images: a prior for attacks. On a CPU the same options give the same file.

    Writes FILE, a picture of samples beside it, and until it is done FILE.unfinished.
    """
    file = expand_home(out)
    with one_line_errors(lambda: how_to_go_on(unfinished(file))):
        from experiments.train_prior import parse_training
        from experiments.train_prior import train_prior as train

        training = parse_training(
            source={
                "data": str(expand_home(Path(data))),
                "settings": overrides,
                "skip": skip,
                "image_size": image_size,
                "grey": grey,
                "classes": classes,
                "crops": numbers("--crops", crops) if crops else (),
                "horizontal_flip": flip,
            },
            network_name=network,
            block_out_channels=numbers("--block-out-channels", block_out_channels),
            layers_per_block=layers_per_block,
            attention=attention,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            warm_up_steps=warm_up_steps,
            ema_decay=ema_decay,
            label_dropout=label_dropout,
            seed=seed,
            dtype=dtype,
            samples=samples,
        )
        train(training, file, device, threads, console, resume, every)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim report runs/demo[/cyan]   also where the run was stopped half way\n\n"
    "[cyan]fl-sim report runs/demo runs/untrained --out comparison.html[/cyan]\n\n"
    "[cyan]fl-sim report runs/demo --picture strip.png[/cyan]   originals and reconstructions, to show to others"
)
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Run directories.")],
    out: Annotated[
        Path | None, typer.Option(help="Where a comparison of several runs goes.", show_default="comparison.html")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a PNG of what was private, noised and found.")
    ] = None,
) -> None:
    """Build the report of a run again, or compare several runs.

    Writes report.html in the run's folder, or one page that compares them.
    """
    with one_line_errors("stopped"):
        from experiments.report import build_comparison, build_report
        from experiments.run_directory import reading

        runs = [expand_home(directory) for directory in directories]
        comparison = comparison_file(out, runs)
        if picture is not None:
            from experiments.strip import build_strip

            build_strip(one_run(runs, "--picture"), expand_home(picture))
        with reading(*runs):
            page = build_report(runs[0]) if len(runs) == 1 else build_comparison(runs, comparison)
        console.print(f"report: {bold_path(page)}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n"
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
    with one_line_errors("stopped watching"):
        from experiments.sweep.directory import SweepDirectory
        from experiments.sweep.watch import watch_sweep
        from experiments.watch import watch as show

        path = expand_home(directory)
        sweep = SweepDirectory(path)
        if sweep.csv.is_file():
            watch_sweep(sweep, console, once)
        else:
            show(path, console, once)


@app.command("list", epilog="Examples:\n\n[cyan]fl-sim list[/cyan]\n\n[cyan]fl-sim list metrics[/cyan]")
def show_names(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="Only these, such as attacks or metrics.", show_default="all"),
    ] = None,
) -> None:
    """Show attacks, model inversions, strategies, defences, metrics, networks, datasets, priors, presets, sweeps."""
    with one_line_errors("stopped"):
        from experiments.listing import list_names

        console.print(list_names(kind))


@app.command(
    epilog="Examples:\n\n"
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
    with one_line_errors("stopped"):
        from experiments.metrics import listing

        found = listing.all_metrics(lpips_weights)
        if check:
            for line in listing.check(found):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
        else:
            console.print(listing.describe(found), highlight=False)


def main() -> None:
    """Entry point of the ``fl-sim`` command."""
    app()
