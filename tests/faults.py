"""Disturb ``fl-sim run`` at random moments, several times each, and see what becomes of the run.

``python -m tests.faults --times 200`` prints, for every kind of fault, how many were tried, and after how many
something was lost, wrong or hung; it ends with 1 if there was any. ``--only client,raylet`` chooses the kinds.

A fault kills one process of the run, or stops it, or takes its disk away, or starts a second run into its folder. The
run may go on, or end with one line; then ``--resume`` has to go on at once. In the end the run has to be whole. Lost
is a run that does neither, or lacks a row or a capture of a client that it has seen; wrong, one with other figures than
the undisturbed run where no client was missing; hung, one that goes on, or leaves processes behind, for longer than
PATIENCE.
"""

import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

from experiments.leakage import OK, TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from tests.disk import Disk
from tests.kill_and_resume import differences, fresh, start
from tests.processes import kill_all, with_descendants
from tests.reliability import Row, write_figures

MORE_ROUNDS = ("federation.rounds=16", "attack.every=3", "attack.args.residual.max_evaluations=10")
"""Rounds are much shorter than the starts of the processes: there are enough of them to be met."""

FAULTS_A_RUN = (4, 16)
"""A run meets at least and at most so many faults, unless it ends before."""

LATEST = 0.8
"""A process is disturbed within this part of the time that it is there: later, many a run would have ended before."""

PATIENCE = 900.0
"""Seconds after which a run counts as hung, also on a machine that has much else to do."""

GOES = 180.0
"""Seconds that the processes of a run may outlive it: Ray's notice only after a minute that their driver was killed."""

DISK_SIZE = "64m"
"""Of the disk that fills up; a run takes a tenth of it."""


SAID_MEANWHILE = re.compile(r"attack worker |\[\d{4}-\d\d-\d\d .+\] \w+\.cc:\d+: ")
"""What may be on stderr before the last line."""


def titled(*words: str) -> Callable[[str], bool]:
    """Whether a command line has one of these words."""
    return lambda title: any(word in title for word in words)


PROCESSES: dict[str, Callable[[str], bool]] = {
    "raylet": titled("raylet/raylet"),  # with the object store in it; its command line has those of its children
    "gcs": titled("gcs/gcs_server"),
    "driver": titled("bin/fl-sim"),
    "client": titled("ray::ClientAppActor"),
    "attack-worker": titled("ray::AttackWorker"),
    "starting-worker": titled("default_worker.py", "ray::IDLE"),
    "agent": titled("ray::DashboardAgent", "ray::RuntimeEnvAgent", "runtime_env/agent", "dashboard/agent.py"),
    "monitor": titled("_private/monitor.py", "log_monitor.py", "dashboard/dashboard.py"),
}
"""The processes of a run, by their command lines: Ray puts what a worker does into its title."""


def title_of(process: psutil.Process) -> str:
    """Its command line; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kind_of(process: psutil.Process) -> str | None:
    """None if it is of no kind, or gone."""
    title = title_of(process)
    return next((kind for kind, is_one in PROCESSES.items() if is_one(title)), None)


def says_in_one_line(said: str) -> bool:
    """Whether the last line is the only one, but for what was said of attack workers that died, and by Ray's core."""
    *before, last = said.splitlines() or [""]
    return last.startswith("fl-sim: ") and all(SAID_MEANWHILE.match(line) for line in before)


@dataclass
class Run:
    """A run in processes of its own, which is resumed as often as faults end it.

    Attributes:
        out: its folder, on a ``disk`` of its own if there is one.
        popen: its first process now.
        seen: all processes that it was seen to have.
        faults: the kinds of faults that it has met.
        ends: how often it has ended before its end.
        lost, wrong, hung: what was found.
    """

    out: Path
    folder: Path
    environment: dict[str, str]
    disk: Disk | None = None
    popen: subprocess.Popen[str] = field(init=False)
    began: float = field(init=False)
    seen: set[psutil.Process] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    ends: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    @property
    def errors(self) -> Path:
        """What it says on stderr now."""
        return self.folder / f"{self.out.name}-errors-{self.ends}.txt"

    def begin(self) -> None:
        """Start it, or go on with what is there."""
        resumable = RunDirectory(self.out).config.is_file()
        arguments = ["run", "--resume", str(self.out)] if resumable else fresh(self.out, *MORE_ROUNDS)
        with self.errors.open("w") as file:
            self.popen = start(arguments, self.environment, stdout=subprocess.DEVNULL, stderr=file)
        self.began = time.monotonic()

    def processes(self) -> list[psutil.Process]:
        """Those that it has now."""
        now = with_descendants(self.popen.pid) if self.popen.poll() is None else []
        self.seen.update(now)
        return now

    def goes_on(self) -> bool:
        """Whether it is still to be finished; one that a fault has ended is resumed."""
        if self.popen.poll() is None:
            if time.monotonic() - self.began < PATIENCE:
                return True
            self.hung.append(f"after {', '.join(self.faults)}: {self.errors.read_text()}")
            kill_all(self.processes())
            return False
        if self.popen.returncode == 0:
            return False
        said = self.errors.read_text()
        if self.popen.returncode != -signal.SIGKILL and not says_in_one_line(said):
            self.lost.append(f"after {', '.join(self.faults)}: exit code {self.popen.returncode}, not one line: {said}")
        if self.ends == len(self.faults):
            self.lost.append(f"ended once more than there were faults: {said}")
            return False
        self.ends += 1
        if self.disk:
            self.disk.recover()
        self.begin()
        return True

    def looks(self) -> Iterator[float]:
        """The time since the first look, again and again, until it has ended."""
        began = time.monotonic()
        while self.goes_on():
            yield time.monotonic() - began
            time.sleep(0.1)

    def meet(self, kind: str, after: float, chance: random.Random) -> bool:
        """Meet a fault of that kind once what it needs has been there for so long; False if the run ended before."""
        there: float | None = None
        for passed in self.looks():
            present = [process for process in self.processes() if kind_of(process) == PROCESS_OF.get(kind, kind)]
            there = passed if there is None and present else there
            if there is not None and present and passed - there >= after:
                self.faults.append(kind)
                OTHERS.get(kind, _kill)(self, chance.choice(present))
                return True
        return False

    def finish(self) -> None:
        """Wait for its end and that of all its processes; those that do not end in time are killed."""
        for _ in self.looks():
            self.processes()
        _, left = psutil.wait_procs(self.seen, timeout=GOES)
        self.hung += [title[:200] for title in map(title_of, left) if title]
        kill_all(left)
        self.popen.wait()


def _kill(run: Run, process: psutil.Process) -> None:
    """SIGKILL; the run itself by its Popen, which else would not know how it ended."""
    if process.pid == run.popen.pid:
        run.popen.kill()
        run.popen.wait()
    else:
        kill_all([process])


def _terminate(run: Run, _: psutil.Process) -> None:
    """Not while Python itself starts or ends, where a signal just ends it."""
    while run.popen.poll() is None and not handles(run.popen.pid, signal.SIGTERM):
        time.sleep(0.1)
    run.popen.terminate()


def handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal (Linux)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
        return bool(int(caught, 16) >> (number - 1) & 1)
    return False


def _fill_disk(run: Run, _: psutil.Process) -> None:
    if run.disk:
        run.disk.fill()


def _turn_read_only(run: Run, _: psutil.Process) -> None:
    """Once no file is open for writing."""
    while run.disk and run.popen.poll() is None and not run.disk.turn_read_only():
        time.sleep(0.01)


def _start_a_second(run: Run, _: psutil.Process) -> None:
    """It is refused, or finds that the first has just ended."""
    while not RunDirectory(run.out).config.is_file() and run.popen.poll() is None:
        time.sleep(0.1)
    second = start(["run", "--resume", str(run.out)], run.environment, stderr=subprocess.PIPE)
    _, said = second.communicate(timeout=PATIENCE)
    refused = second.returncode == 2 and said.count("\n") == 1 and said.startswith("fl-sim: ")
    if not refused and not (second.returncode == 0 and run.popen.poll() == 0):
        run.lost.append(f"a second run: exit code {second.returncode}: {said}")


OTHERS: dict[str, Callable[[Run, psutil.Process], None]] = {
    "sigterm": _terminate,
    "second-run": _start_a_second,
    "full-disk": _fill_disk,
    "read-only-disk": _turn_read_only,
}
"""The faults that are no kill."""

PROCESS_OF = dict.fromkeys(OTHERS, "driver")
"""The process that has to be there for them."""

ON_A_DISK = ("full-disk", "read-only-disk")
"""The faults that need a disk of the run's own."""

NAMES = {kind: f"{kind.replace('-', ' ')} killed" for kind in PROCESSES} | {
    "raylet": "raylet with the object store killed",
    "gcs": "GCS killed",
    "driver": "`fl-sim run` killed",
    "client": "client's process killed",
    "agent": "agent of Ray's killed",
    "monitor": "monitor of Ray's killed",
    "sigterm": "SIGTERM",
    "second-run": "a second run into the folder",
    "full-disk": "disk full",
    "read-only-disk": "disk turned read-only",
}
"""What the kinds are called in the table."""

KINDS = (*PROCESSES, *OTHERS)

TURNS = (
    *("client", "attack-worker", "driver", "client", "attack-worker", "raylet", "client", "starting-worker"),
    *("attack-worker", "gcs", "client", "sigterm", "attack-worker", "full-disk", "client", "attack-worker"),
    *("read-only-disk", "client", "second-run", "attack-worker", "agent", "client", "monitor"),
)
"""The order in which they are tried: mostly those that a run survives, which take the least time."""


@dataclass(frozen=True)
class Campaign:
    """Runs in ``folder`` that are disturbed, and one that is not."""

    folder: Path
    environment: dict[str, str]
    chance: random.Random

    def spans(self) -> dict[str, float]:
        """How many seconds of the undisturbed run each kind of process is there; runs it."""
        run = Run(self.folder / "undisturbed", self.folder, self.environment)
        times: dict[str, list[float]] = {}
        for passed in run.looks():
            for kind in {kind_of(process) for process in run.processes()} - {None}:
                times.setdefault(str(kind), []).append(passed)
        run.finish()
        assert not run.hung, "the undisturbed run hung"
        assert run.popen.returncode == 0, run.errors.read_text()
        missing = pd.read_parquet(RunDirectory(run.out).rounds)["missing_because"].explode().dropna().tolist()
        assert not missing, f"somebody else disturbed the undisturbed run: {missing}"
        return {kind: seen[-1] - seen[0] for kind, seen in times.items()}

    def disturb(self, kinds: deque[str], spans: dict[str, float], name: str) -> Run:
        """Let one run meet some of these faults, which are taken off ``kinds``, and look at what it leaves.

        The first is at almost any moment of the run; the others come sooner, so that more of them meet it alive.
        """
        with self.place(name) as (place, disk):
            run = Run(place, self.folder, self.environment, disk)
            for number in range(min(self.chance.randint(*FAULTS_A_RUN), len(kinds))):
                span = LATEST * spans[PROCESS_OF.get(kinds[0], kinds[0])]
                if not run.meet(kinds[0], self.chance.uniform(0, span / (1 + (number > 0))), self.chance):
                    break
                kinds.popleft()
            run.finish()
            if not run.hung and run.popen.returncode == 0:
                directory = RunDirectory(run.out)
                run.lost += lacking(directory)
                run.wrong += wrong_figures(directory, RunDirectory(self.folder / "undisturbed"))
            return run

    @contextmanager
    def place(self, name: str) -> Iterator[tuple[Path, Disk | None]]:
        """A folder for a run; on a disk of its own, if this user may mount one."""
        with ExitStack() as mounted:
            disk = Disk(self.folder / f"disk-{name}")
            if disk.mount(f"size={DISK_SIZE}"):
                mounted.callback(disk.unmount)
                yield disk.place / name, disk
            else:
                yield self.folder / name, None


def lacking(run: RunDirectory) -> list[str]:
    """What a run that has ended does not tell of the clients that it has seen, or of those that were missing."""
    rounds, leakage = pd.read_parquet(run.rounds), read_leakage(run.leakage_csv)
    told = {(row["round"], row["client"]) for _, row in leakage.iterrows()}
    settings = run.settings()
    planned = settings.federation.rounds
    attacked = rounds[rounds["round"].map(lambda number: settings.attack.due(number, planned))]
    seen = {(row["round"], client) for _, row in attacked.iterrows() for client in row["clients_seen"]}
    missing = [reason for reasons in rounds["missing_because"] for reason in reasons]
    found = [f"round {number} client {client}: no row" for number, client in sorted(seen - told)]
    found += ["a client is missing without a reason"] * (not all(missing))
    found += ["no report"] * (not run.ended or not run.report.is_file())
    return found + [f"{len(rounds)} of {planned} rounds"] * (len(rounds) != planned)


def wrong_figures(run: RunDirectory, undisturbed: RunDirectory) -> list[str]:
    """What a run that has ended found otherwise than the undisturbed one.

    From the round on in which a client is missing the weights are others, and after it the updates.
    """
    rounds, whole = (pd.read_parquet(each.rounds) for each in (run, undisturbed))
    leakage, all_rows = (read_leakage(each.leakage_csv) for each in (run, undisturbed))
    incomplete = rounds["round"][rounds["clients_missing"].map(len) > 0]
    if incomplete.empty and (leakage["status"] == OK).all():
        return differences(run, undisturbed)
    last = rounds["round"].max() + 1 if incomplete.empty else incomplete.min()
    same = ["round", "weights_sha256", "train_loss"]
    found = ["other weights"] * (not rounds[rounds["round"] < last][same].equals(whole[whole["round"] < last][same]))
    who = ["round", "client", "image", "attack"]
    sound = leakage[(leakage["status"] == OK) & (leakage["round"] <= last)].set_index(who)
    wanted = all_rows.set_index(who).loc[sound.index]
    unlike = sound.drop(columns=list(TIME_COLUMNS)).compare(wanted.drop(columns=list(TIME_COLUMNS)))
    return found + [f"leakage.csv: other {column}" for column in unlike.columns.get_level_values(0).unique()]


def main(
    times: Annotated[int, typer.Option(min=1, help="Faults, of the kinds in turn.")] = len(TURNS),
    only: Annotated[str, typer.Option(help="Kinds of faults, between commas; may be repeated.")] = ",".join(TURNS),
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Disturb runs at random moments; print what became of them."""
    kinds = only.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no kind; allowed: {', '.join(KINDS)}")
    if os.geteuid() != 0:  # only root may mount a disk
        kinds = [kind for kind in kinds if kind not in ON_A_DISK]
    pending, counts = deque(kinds[number % len(kinds)] for number in range(times)), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as short:
        environment = os.environ | {
            "RAY_TMPDIR": f"{short}/ray",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        campaign = Campaign(Path(short), environment, random.Random(seed))
        spans, number = campaign.spans(), 0
        while pending:
            number += 1
            run = campaign.disturb(pending, spans, f"run-{number}")
            print(f"run {number}: {', '.join(run.faults) or 'undisturbed'}", flush=True)
            for kind in run.faults:
                counts[kind, "tried"] += 1
            for name in ("lost", "wrong", "hung"):
                found = getattr(run, name)
                counts[run.faults[-1] if run.faults else kinds[0], name] += bool(found)
                for line in found:
                    print(f"run {number}: {name}: {line}", flush=True)
    of_kind = {kind: (counts[kind, name] for name in ("tried", "lost", "wrong", "hung")) for kind in kinds}
    rows = [Row(NAMES[kind], *numbers) for kind, numbers in of_kind.items()]
    write_figures(rows, out)


if __name__ == "__main__":
    program = typer.Typer(pretty_exceptions_enable=False)
    program.command()(main)
    program()
