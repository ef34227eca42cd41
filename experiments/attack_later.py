"""``fl-sim attack`` on many captures, on Ray: those of runs that have ended, and those from elsewhere.

What is found in a run's captures is compared with the run's images and goes into its own table, as if the run had
attacked. Of captures from elsewhere nothing is known to compare with; the reconstructions go into a folder. What is
there already is not done again, so that the same command goes on where it was stopped.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from attacks.attack import Attack, AttackError, Reconstruction
from attacks.observation import Observation, UpdateId
from attacks.reconstruction_file import load_reconstruction, save_reconstruction
from attacks.registry import create
from attacks.workers import AttackPool, Job, Result
from experiments.attack_offline import attack_overrides, trusted_factories
from experiments.chance_table import save_chance
from experiments.commands import bold_path, choose_device, expand_home
from experiments.experiment import build_recipe
from experiments.headline import headline
from experiments.leakage import Evaluator, LeakageTable, read_leakage, summed_truth
from experiments.pictures import save_grid
from experiments.priors import check_priors
from experiments.progress import Progress
from experiments.report import build_report
from experiments.rounds import clients_behind, save_medians
from experiments.run_directory import RunDirectory, reading
from experiments.run_state import attacks_in, update_of
from experiments.settings import AttackSettings, ExperimentSettings
from fl_sim import network
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from fl_sim.settings_file import load_settings
from fl_sim.wire import Recipe
from strategies.sink import DirectorySink


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None and empty: as the settings of each run have it.

    Attributes:
        names: the attacks.
        overrides: their arguments as ``key=value``; with several attacks the key begins with the attack's name.
        seed: the public seed of captures from elsewhere.
        out: the folder for what is found in them.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: torch threads of a worker.
        trusted: factories of networks whose code may run (fl_sim/network/factory.py).
    """

    names: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    out: Path | None = None
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    trusted: tuple[str, ...] = ()

    def settings(self, source: Path | Mapping[str, Any]) -> ExperimentSettings:
        """The settings of a run, or none, with these attacks."""
        own = load_settings(ExperimentSettings, source, recorded=True).attack.names
        overrides = attack_overrides(self.names or own, self.overrides)
        return load_settings(ExperimentSettings, source, overrides, recorded=True)

    def pool(self, attack: AttackSettings, timeout: float | None, gpus_per_worker: float | None = None) -> AttackPool:
        """The workers; ``gpus_per_worker`` as a run has it, None: a GPU is shared equally."""
        workers, gpus = self.workers or attack.workers, torch.cuda.device_count()
        share = min(1.0, gpus / workers) if choose_device(self.device) == "cuda" else 0.0
        if gpus and self.device == "auto" and gpus_per_worker is not None:
            share = gpus_per_worker
        return AttackPool(workers, threads=self.threads or attack.threads, gpus_per_worker=share, timeout=timeout)


def attack_all(paths: Sequence[Path], options: Options, folder: Path, console: Console) -> int:
    """Attack captures, run directories, and what patterns of paths match; returns the exit code.

    What is found in captures from elsewhere goes into ``folder``.

    Raises:
        UserError: one line on what is wrong, before anything is written.
    """
    directories, captures = find_captures(paths)
    _check_options(options, bool(captures))
    network.trust(trusted_factories(options.trusted))
    choose_device(options.device)
    torch.set_num_threads(1)  # as in a run, so that figures are the same to the bit
    with ExitStack() as locks:
        for directory in directories:
            locks.enter_context(directory.locked())
        with reading(*(directory.path for directory in directories)):
            runs = [AttackedRun.of(directory, options) for directory in directories]
        elsewhere = [AttackedFolder.of(captures, options, folder)] if captures else []
        targets: list[AttackedRun | AttackedFolder] = [*runs, *elsewhere]
        left, done = sum(len(target.due) for target in targets), sum(target.done for target in targets)
        console.print(f"attacks to do: {left}; ended before: {done}", highlight=False)
        for target in targets:
            target.attack(console)
        return min(1, sum(target.conclude(console) for target in targets))


def find_captures(paths: Sequence[Path]) -> tuple[list[RunDirectory], list[Path]]:
    """The run directories and the captures that ``paths`` name or match, each once, in order.

    Raises:
        SettingsError: if one is neither, or there is none.
    """
    found = {match.resolve(): match for path in paths for match in _matches(expand_home(path))}
    directories, captures = [], []
    for path in found.values():
        if not path.is_dir():
            captures.append(path)
        elif not (path / "config.toml").is_file():
            raise SettingsError(f"{path}: neither a capture nor a run directory: it has no config.toml")
        elif not any((path / "captures").glob("*.safetensors")):
            raise SettingsError(
                f"{path}: the run has kept no captures; allowed: one with attack.name and attack.capture not 'none'"
            )
        else:
            directories.append(RunDirectory.open(path))
    return directories, captures


def _matches(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    if not has_magic(str(path)):
        raise SettingsError(f"{path}: no such file or folder; allowed: captures, run directories, patterns of them")
    if not (matches := sorted(glob(str(path), recursive=True))):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        raise SettingsError(f"{path}: matches nothing; allowed: captures, run directories, patterns of them")
    return [Path(match) for match in matches]


def _check_options(options: Options, elsewhere: bool) -> None:
    if elsewhere and not options.names:
        raise SettingsError("--attack: none was given; allowed without it: run directories, whose settings name some")
    if elsewhere:
        return
    for option, value in (("seed", options.seed), ("out", options.out)):
        if value is not None:
            raise SettingsError(
                f"--{option} {value}: a run directory has its own; allowed: for captures by their paths"
            )


def _create(arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Attack]:
    """The attacks by their own names, which files and tables have; SettingsError if two share one."""
    attacks: dict[str, Attack] = {}
    for name, given in arguments.items():
        attack = create(name, given)
        if attack.name in attacks:
            raise SettingsError(f"--attack {name}: another one is also called {attack.name!r}; allowed: one of them")
        attacks[attack.name] = attack
    return attacks


def _check_same(file: Path, attack: Attack, instead: str, seed: int | None = None) -> None:
    """Refuse a reconstruction that is there already, but is of another search; ``seed`` is the attack's, if given."""
    found = load_reconstruction(file)
    wanted = {"attack": attack.name, **attack.model_dump(mode="json")}
    there = {"attack": found.attack, **found.settings}
    if seed is not None:
        wanted["seed"], there["seed"] = seed, found.seed
    for key in sorted(key for key in {*wanted, *there} if wanted.get(key) != there.get(key)):
        raise SettingsError(
            f"{file}: of another search: {key} = {there.get(key)!r}, here {wanted.get(key)!r}; allowed: the same, or "
            f"{instead}"
        )


@dataclass(frozen=True)
class AttackedRun:
    """The captures of a run that has ended; ``settings`` are its own, with the attacks that were chosen.

    ``rows``: those of its leakage table that stay. ``ended``: the attacks that they tell of. ``due``: those to do.
    ``done``: how many of the chosen ones are not to be done.
    """

    directory: RunDirectory
    settings: ExperimentSettings
    recipe: Recipe
    options: Options
    rows: list[dict[str, Any]]
    ended: frozenset[tuple[UpdateId, str]]
    due: list[tuple[UpdateId, str]]
    done: int

    @classmethod
    def of(cls, directory: RunDirectory, options: Options) -> "AttackedRun":
        """Check everything about the run; UserError if it cannot be attacked."""
        if not directory.ended:
            raise SettingsError(
                f"{directory.path}: the run has not ended; allowed: fl-sim run --resume {directory.path}, then this"
            )
        settings = options.settings(directory.config)
        attacks, recipe = _create(settings.attack.arguments), build_recipe(settings)
        check_priors(settings, recipe.image_shape[0])
        updates = [update_of(path) for path in sorted(directory.captures.glob("*.safetensors"))]
        chosen = [(update, name) for update in updates for name in attacks]
        again, kept = set(chosen), []
        for attacked in attacks_in(directory):
            if attacked.key not in again:
                kept.append(attacked)
            elif attacked.whole():
                _check_same(attacked.file, attacks[attacked.attack], "captures by their paths, with --out")
                again.remove(attacked.key)
                kept.append(attacked)
        rows = [row for attacked in kept for row in attacked.rows]
        due = [key for key in chosen if key in again]
        ended = frozenset(attacked.key for attacked in kept)
        run = cls(directory, settings, recipe, options, rows, ended, due, len(chosen) - len(due))
        run._check_due(attacks)
        return run

    def attack(self, console: Console) -> None:
        """Attack what is due, compare it, and bring tables and report up to date."""
        rounds, planned = pd.read_parquet(self.directory.rounds), len(self.ended) + len(self.due)
        with Progress(console, len(rounds), planned, self.directory.progress, "attack") as display:
            display.go_on(rounds.to_dict("records"), self.rows)
            self._attack(rounds, display)

    def _attack(self, rounds: pd.DataFrame, display: Progress) -> None:
        directory, settings, attack = self.directory, self.settings, self.settings.attack
        evaluator = Evaluator(directory.run_name(), settings, self.recipe)
        table = LeakageTable(directory.leakage_csv, directory.leakage_parquet, self.rows, evaluator.further_columns)

        def take(update: UpdateId, name: str, result: Result) -> None:
            summed = clients_behind(rounds, update) if update.client < 0 else ()
            rows = evaluator.rows(update.round, update.client, name, result, update.observer, summed)
            table.append(rows)
            display.attacked(rows)

        pool = self.options.pool(attack, attack.timeout, attack.gpus_per_worker)
        sink = DirectorySink(
            directory.path, attack.arguments, pool, settings.seed, on_reconstruction=take, ended=self.ended
        )
        display.watch(pool.counts)
        with closing(table), closing(sink):
            sink.attack_the_rest()
            sink.drain()
        save_medians(directory.rounds, table.frame())
        save_chance(directory, settings, self.recipe)
        build_report(directory.path)

    def conclude(self, console: Console) -> int:
        """Print the figures. What failed is in the table, so it counts as 0."""
        for part in headline(read_leakage(self.directory.leakage_csv), self.recipe.model):
            console.print(part, highlight=False)
        console.print(f"report: {bold_path(self.directory.report)}", soft_wrap=True)
        return 0

    def _check_due(self, attacks: Mapping[str, Attack]) -> None:
        """Refuse captures whose network or images are not here, and attacks that suit none of the captures."""
        if not self.due:
            return
        first = self.due[0][0]
        Observation.load(self._capture(first))
        for name, attack in attacks.items() if self.options.names else ():
            _check_suits(attack, [self._capture(update) for update, due in self.due if due == name])
        try:
            clients = clients_behind(pd.read_parquet(self.directory.rounds), first)
            summed_truth(self.settings, self.recipe, clients, first.round)
        except SettingsError as error:
            raise SettingsError(
                f"{self.directory.path}: nothing to compare with: {error}; allowed: captures by their paths, with --out"
            ) from error

    def _capture(self, update: UpdateId) -> Path:
        return self.directory.captures / f"{update.stem}.safetensors"


def _check_suits(attack: Attack, captures: Sequence[Path]) -> None:
    """Refuse an attack that lacks what it needs in every one of the captures."""
    refusals = []
    for capture in captures:
        try:
            attack.check(Observation.load(capture))
            return
        except AttackError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


@dataclass(frozen=True)
class Search:
    """One attack on one capture from elsewhere, and the file for what it finds."""

    job: Job
    file: Path

    @property
    def picture(self) -> Path:
        """A grid of the images."""
        return self.file.with_suffix(".png")


@dataclass(frozen=True)
class AttackedFolder:
    """Captures from elsewhere; a file in ``folder`` is the mark of an attack that has ended."""

    folder: Path
    options: Options
    due: list[Search]
    done: int
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, captures: Sequence[Path], options: Options, folder: Path) -> "AttackedFolder":
        """Check every capture with every attack; UserError if one cannot be attacked."""
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"--out {folder}: is a file; allowed: a folder")
        arguments = options.settings({}).attack.arguments
        attacks = _create(arguments)
        stems: dict[str, Path] = {}
        due, done = [], 0
        for capture in captures:
            if (other := stems.setdefault(capture.stem, capture)) != capture:
                raise SettingsError(f"{capture}: called like {other}; allowed: each with an --out of its own")
            observation = Observation.load(capture)
            seen = observation.circumstances
            for attack, (name, given) in zip(attacks.values(), arguments.items(), strict=True):
                attack.check(observation)
                seed = derive_seed(options.seed or 0, "attack", attack.name, seen.round, seen.client)
                search = Search(Job(capture, name, given, seed), folder / f"{capture.stem}-{attack.name}.safetensors")
                if not search.file.exists():
                    due.append(search)
                    continue
                _check_same(search.file, attack, "another --out", seed)
                done += 1
        return cls(folder, options, due, done)

    def attack(self, console: Console) -> None:
        """Attack what is due, and write what is found."""
        pool = self.options.pool(AttackSettings(), None)
        with closing(pool), Progress(console, 0, len(self.due), work="attack") as display:
            display.watch(pool.counts)
            for search in self.due:
                pool.submit(search.job, partial(self._keep, display, search))
            pool.drain()

    def conclude(self, console: Console) -> int:
        """Say where the reconstructions are, and how many attacks failed."""
        console.print(f"reconstructions: {bold_path(self.folder)}", soft_wrap=True)
        if self.failed:
            console.print(f"{len(self.failed)} attacks failed; the same command with this --out tries them again")
        return len(self.failed)

    def _keep(self, display: Progress, search: Search, result: Result) -> None:
        where = search.file.stem
        if isinstance(result, Reconstruction):
            # The picture first: the other file says that all is there.
            write_atomically(search.picture, lambda file: save_grid(file, result.images))
            write_atomically(search.file, lambda file: save_reconstruction(file, result))
            found = f"{where}: matching loss {result.matching_loss:.3g} in {result.seconds:.0f} s"
            display.attacked_elsewhere(found, failed=False)
        else:
            self.failed.append(where)
            display.attacked_elsewhere(f"{where}: {result}", failed=True)
