"""The commands ``fl-sim bench …``: which there are, and what they take.

Like experiments/cli/, this imports nothing slow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import Device, bold_path, choose_device, console, expand_home, one_line_errors, output_folder

app = typer.Typer(
    help="Measure attacks, defences, what tells timesteps, labels and users, and model inversion, on drawn victims.\n\n"
    "Writes rows.jsonl, a line for every measurement, and NAME.json and NAME.md, the tables, into --out. If it is "
    "stopped, the same command with that folder goes on.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    suggest_commands=False,
)

Out = Annotated[
    Path | None, typer.Option(help="Folder, new or of a benchmark to go on with.", show_default="runs/bench-TIME")
]
VictimSeed = Annotated[int, typer.Option(min=0, help="Of the victims.")]
VictimAndAttackSeed = Annotated[int, typer.Option(min=0, help="Of the victims and of the attacks.")]
CaseVictims = Annotated[int, typer.Option(min=1, help="Victims a case.")]
CaseJobs = Annotated[int, typer.Option(min=1, help="Cases side by side, one thread each.")]


@contextmanager
def _resumable(out: Path | None, with_ray: bool = False) -> Iterator[Path]:
    """The folder of a benchmark; its errors are one line, and a stopped one says how to go on."""
    directory = output_folder(out, "bench")
    with one_line_errors(f"--out {directory} with the same options goes on from here", with_ray):
        yield directory


@app.command(
    "attacks",
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench attacks --quick --jobs 2[/cyan]   a few minutes on two CPU cores\n\n"
    "[cyan]fl-sim bench attacks --out results --jobs 2[/cyan]   everything; run again, it goes on where it was\n\n"
    "[cyan]fl-sim bench attacks --only speed --published[/cyan]   seconds to 40 dB against the published recipe\n\n"
    "[cyan]fl-sim bench attacks --quick --only strata --attacks residual,my.package:MyAttack[/cyan]\n\n"
    "[cyan]fl-sim bench attacks --only scale[/cyan]   networks as large as those in use",
)
def bench_attacks(
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest network, few cases, one or two victims each.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="SUITE,…",
            help="strata, batch, local-steps, adam, signs, noise, clip, top-k, sum, labels, speed; or main, the main "
            "table of docs/benchmarks.md; or scale, networks as large as those in use, hours each.",
            show_default="all but main and scale",
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
        str,
        typer.Option(
            metavar="NAME,…",
            help="16, 16-classes, 28-grey, 28-grey-deep, 32-narrow, 32-deep, 32, 32-wide, 64-narrow, ddpm-cifar10, "
            "lucidrains, 64, 128.",
            show_default="all",
        ),
    ] = "",
    victims: Annotated[
        int | None,
        typer.Option(
            min=1, help="Victims of every cell, with --quick too.", show_default="10; in main and scale 1 to 10"
        ),
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
        typer.Option(metavar="FILE", help="A trained model of one of the networks; may be repeated."),
    ] = [],  # noqa: B006
    seed: VictimAndAttackSeed = 61681,
    jobs: Annotated[int, typer.Option(min=1, help="Attacks side by side, one thread each; 1 for fair seconds.")] = 1,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Run every attack on the same victims and show who reconstructs what, and how fast.

    A [bold]cell[/bold] is one attack in one case: model, timesteps, what the client did, what the attacker knows.
    Per cell: PSNR (median, quartiles, least), timesteps recovered, evaluations and seconds, also those up to 40 dB.
    """
    with _resumable(out) as directory:
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
            device=choose_device(device),
            checkpoints=tuple(expand_home(path) for path in checkpoint),
        )
        run_benchmark(options, directory, jobs, console)
        console.print(f"tables: {bold_path(directory / 'attacks.md')}", soft_wrap=True)


@app.command(
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
    out: Out = None,
) -> None:
    """Train the same federation under every defence and show what still leaks, and what the defence costs.

    Four clients train a small model from scratch, on photographs that no checkpoint has seen. Updates of the first
    round and of the last are attacked: by who [bold]knows[/bold] how they were protected, and by who [bold]does
    not[/bold]. Beside that: the model's held-out loss and the distance of its samples from the clients' images,
    before and after training, and the (epsilon, delta) spent. A defence that merely breaks training shows as one.
    """
    with _resumable(out) as directory:
        from experiments.bench.defences import Options
        from experiments.bench.defences import bench_defences as run_benchmark

        options = Options(
            only=_names_in(only),
            attack=attack,
            rounds=rounds,
            victims=victims,
            quick=quick,
            seed=seed,
            device=choose_device(device),
        )
        run_benchmark(options, directory, jobs, console)
        console.print(f"table: {bold_path(directory / 'defences.md')}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n[cyan]fl-sim bench timesteps --victims 10 --out results-timesteps[/cyan]",
)
def timesteps(
    victims: CaseVictims = 100,
    seed: VictimSeed = 40961,
    jobs: CaseJobs = 1,
    out: Out = None,
) -> None:
    """Read the timesteps off many updates and count the exact, the unknown and the wrong."""
    with _resumable(out) as directory:
        from experiments.bench.timesteps import bench_timesteps

        bench_timesteps(victims, seed, jobs, directory, console)
        console.print(f"table: {bold_path(directory / 'timesteps.md')}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n[cyan]fl-sim bench labels --victims 5 --jobs 2 --out results-labels[/cyan]",
)
def labels(
    victims: CaseVictims = 40,
    seed: VictimSeed = 61681,
    jobs: CaseJobs = 1,
    out: Out = None,
) -> None:
    """Read the labels off many classifiers' gradients and count the exact, the unknown and the wrong."""
    with _resumable(out) as directory:
        from experiments.bench.labels import bench_labels

        bench_labels(victims, seed, jobs, directory, console)
        console.print(f"table: {bold_path(directory / 'labels.md')}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n[cyan]fl-sim bench classification --quick[/cyan]   DLG on LeNet, without a ResNet's hours",
)
def classification(
    victims: Annotated[int, typer.Option(min=1, help="Victims an attack and case.")] = 16,
    quick: Annotated[bool, typer.Option("--quick", help="DLG alone.")] = False,
    seed: VictimAndAttackSeed = 61681,
    jobs: Annotated[int, typer.Option(min=1, help="Attacks side by side, one thread each.")] = 1,
    out: Out = None,
) -> None:
    """Attack classifiers as DLG and Inverting Gradients were published: one image of an untrained LeNet, a ResNet."""
    with _resumable(out) as directory:
        from experiments.bench.classification import bench_classification

        bench_classification(victims, quick, seed, jobs, directory, console)
        console.print(f"table: {bold_path(directory / 'classification.md')}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench priors --quick[/cyan]   two to four minutes on one CPU core\n\n"
    "[cyan]fl-sim train-prior --data digits --set limit=898 --grey --out digits.safetensors[/cyan]\n\n"
    "[cyan]fl-sim bench priors --prior digits.safetensors --out results[/cyan]   everything, hours; it can be resumed",
)
def priors(
    quick: Annotated[bool, typer.Option("--quick", help="One victim, 20 evaluations, ConvNets alone.")] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="SUITE,…",
            help="convnet, resnet, digits, defences (of the ConvNet), large (64x64 and 128x128).",
            show_default="all, with --quick convnet",
        ),
    ] = "",
    prior: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="A diffusion model that saw none of the victims, for a size of images; may be repeated.",
            show_default="the bundled one for photographs of 32x32",
        ),
    ] = [],  # noqa: B006
    victims: Annotated[
        int | None, typer.Option(min=1, help="Victims of every case.", show_default="10, of large 1, with --quick 1")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=8, help="Of every search.", show_default="100, with --quick 20")
    ] = None,
    seed: VictimAndAttackSeed = 61681,
    jobs: Annotated[int, typer.Option(min=1, help="Attacks side by side, one thread each; 1 for fair seconds.")] = 1,
    out: Out = None,
) -> None:
    """Attack classifiers with a diffusion model as prior and without one, at equal evaluations, under noise.

    Beside the prior stands the same network with [bold]random weights[/bold], which shows what its knowledge of images
    is worth. Victims of digits are from their second half: a prior for them must have seen the first 898 only.
    """
    with _resumable(out) as directory:
        from experiments.bench.priors import Options, bench_priors

        paths = tuple(expand_home(path) for path in prior)
        options = Options(_names_in(only), victims, evaluations, quick, seed, paths)
        bench_priors(options, jobs, directory, console)
        console.print(f"tables: {bold_path(directory / 'priors.md')}", soft_wrap=True)


@app.command(
    "many-clients",
    epilog="Examples:\n\n[cyan]fl-sim bench many-clients --clients 50 --per-round 5 --turns 1[/cyan]",
)
def many_clients(
    clients: Annotated[int, typer.Option(min=1)] = 200,
    per_round: Annotated[int, typer.Option(min=1, help="How many of them train in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=6, help="Of every federation; figures are from the fifth on.")] = 20,
    turns: Annotated[int, typer.Option(min=1, help="Pairs of federations, without attacks and with.")] = 2,
    out: Out = None,
) -> None:
    """Run a federation of many clients and see whether its memory grows or attacks hold up its rounds."""
    with _resumable(out, with_ray=True) as directory:
        from experiments.bench.many_clients import bench_many_clients

        bench_many_clients(clients, per_round, rounds, turns, directory, console)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench inversion --quick --jobs 2[/cyan]   a quarter of an hour on two CPU cores\n\n"
    "[cyan]fl-sim bench inversion --quick --only digits-disjoint --repetitions 1[/cyan]   one target",
)
def inversion(
    quick: Annotated[bool, typer.Option("--quick", help="Small diffusion models, three targets a case.")] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="CASE,…",
            help="digits-overlapping, digits-disjoint, digits-class-per-client, faces.",
            show_default="all of them",
        ),
    ] = "",
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Targets of every case.", show_default="5, with --quick 3")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of splits, classifiers and attacks.")] = 71993,
    jobs: Annotated[int, typer.Option(min=1, help="Targets side by side, one thread each.")] = 1,
    out: Out = None,
) -> None:
    """Train classifiers on private images and invert them with public ones, by Diff-MI, its parts, and baselines.

    Another classifier, which the attacker never sees, judges the images. Beside them stand
    [bold]random public images[/bold], the level of chance, and [bold]other private images[/bold], the best to hope for.
    """
    with _resumable(out) as directory:
        from experiments.bench.inversion import bench_inversion

        bench_inversion(quick, _names_in(only), repetitions, seed, jobs, directory, console)
        console.print(f"tables: {bold_path(directory / 'inversion.md')}", soft_wrap=True)


@app.command(
    epilog="Examples:\n\n"
    "[cyan]fl-sim bench users --quick[/cyan]   three to five minutes on one CPU core\n\n"
    "[cyan]fl-sim bench users --short --jobs 2[/cyan]   every case, about an hour on two cores\n\n"
    "[cyan]fl-sim bench users --out results --jobs 2[/cyan]   everything, hours; run again, it goes on where it was",
)
def users(
    quick: Annotated[bool, typer.Option("--quick", help="Five small cases, short searches.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Every case, with the short searches of --quick.")] = False,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Other weights and images each time.", show_default="3, short 1")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of images, weights, training and attacks.")] = 71993,
    jobs: Annotated[int, typer.Option(min=1, help="Methods side by side, one thread each.")] = 1,
    out: Out = None,
) -> None:
    """Find one image behind each user's large batch, and tell which user it is.

    A [bold]user[/bold] is a client with one digit, or with tiles of one photograph. What is found is compared with all
    users' images, by the features of a classifier that the attacker never sees, and by pixels. Beside the attack stand
    the same search without a prior, the prior without an update, Inverting Gradients with all images, and the mean of
    the public images.
    """
    with _resumable(out) as directory:
        from experiments.bench.users import bench_users

        bench_users(quick, short, repetitions, seed, jobs, directory, console)
        console.print(f"tables: {bold_path(directory / 'users.md')}", soft_wrap=True)


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()
