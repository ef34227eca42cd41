"""Kill one process of ``fl-sim run`` at a random moment, and see what becomes of the run.

``python -m tests.faults --times 30`` prints, for every kind of process, how many runs were tried, and in how many
something was lost, wrong or hung; it ends with 1 if there was any. ``--only client,raylet`` kills these alone.

A run may end whole and say who was missing, or end with one line; then it has to go on to a whole one. Lost is a run
that does neither, or lacks a row or a capture of a client that it has seen; wrong, one with other figures than the
undisturbed run where no client was missing; hung, one that goes on, or leaves processes behind, for longer than
PATIENCE.
"""

import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

from experiments.leakage import OK, TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from tests.kill_and_resume import differences, fresh, start
from tests.processes import kill_all, with_descendants

MORE_ROUNDS = ("federation.rounds=10", "attack.args.residual.max_evaluations=10")
"""Rounds are much shorter than the starts of the processes: there are enough of them to be met."""

PATIENCE = 300.0
"""Seconds after which a run counts as hung."""

GOES = 180.0
"""Seconds that the processes of a run may outlive it: Ray's notice only after a minute that their driver was killed."""


def titled(*words: str) -> Callable[[str], bool]:
    """Whether a command line has one of these words."""
    return lambda title: any(word in title for word in words)


KINDS: dict[str, Callable[[str], bool]] = {
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
    return next((kind for kind, is_one in KINDS.items() if is_one(title)), None)


@dataclass
class Watched:
    """A run in processes of its own, and all processes that it was seen to have."""

    popen: subprocess.Popen[str]
    errors: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def processes(self) -> list[psutil.Process]:
        """Those that it has now."""
        now = with_descendants(self.popen.pid) if self.popen.poll() is None else []
        self.seen.update(now)
        return now

    def of_kind(self, kind: str) -> list[psutil.Process]:
        """Those of that kind."""
        return [process for process in self.processes() if kind_of(process) == kind]

    def kill(self, process: psutil.Process) -> None:
        """SIGKILL; the run itself by its Popen, which else would not know how it ended."""
        if process.pid == self.popen.pid:
            self.popen.kill()
            self.popen.wait()
        else:
            kill_all([process])

    def looks(self, seconds: float) -> Iterator[float]:
        """The time since the first look, again and again, for so many seconds or until the run has ended."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds and self.popen.poll() is None:
            yield passed
            time.sleep(0.1)

    def left_over(self) -> list[str]:
        """Wait for the end of the run and all its processes; those that do not end in time, which are killed."""
        for _ in self.looks(PATIENCE):
            self.processes()
        in_time = self.popen.poll() is not None
        _, left = psutil.wait_procs(self.seen, timeout=GOES if in_time else 0)
        titles = [title_of(process) for process in left]
        kill_all(left)
        self.popen.wait()
        return [title[:200] for title in titles if title]


@dataclass(frozen=True)
class Campaign:
    """Runs in ``folder`` that are disturbed, and one that is not."""

    folder: Path
    environment: dict[str, str]
    chance: random.Random

    @property
    def undisturbed(self) -> RunDirectory:
        """The run that nobody disturbs."""
        return RunDirectory(self.folder / "undisturbed")

    def watch(self, arguments: list[str]) -> Watched:
        """Start a run."""
        errors = self.folder / "errors.txt"
        with errors.open("w") as file:
            return Watched(start(arguments, self.environment, stdout=subprocess.DEVNULL, stderr=file), errors)

    def spans(self) -> dict[str, float]:
        """How many seconds of the undisturbed run each kind of process is there; runs it."""
        watched = self.watch(fresh(self.undisturbed.path, *MORE_ROUNDS))
        times: dict[str, list[float]] = {}
        for passed in watched.looks(PATIENCE):
            for kind in {kind_of(process) for process in watched.processes()} - {None}:
                times.setdefault(str(kind), []).append(passed)
        assert not watched.left_over(), "the undisturbed run hung"
        assert watched.popen.returncode == 0, watched.errors.read_text()
        return {kind: seen[-1] - seen[0] for kind, seen in times.items()}

    def disturb(self, kind: str, span: float, out: Path) -> dict[str, list[str]]:
        """Kill one process of that kind in a new run, once one has been there for up to ``span`` seconds.

        What was found is under "killed", "lost", "wrong" and "hung".
        """
        begun = fresh(out, *MORE_ROUNDS)
        watched, after = self.watch(begun), self.chance.uniform(0, span)
        there: float | None = None
        killed = []
        for passed in watched.looks(PATIENCE):
            present = watched.of_kind(kind)
            there = passed if there is None and present else there
            if there is not None and present and passed - there >= after:
                watched.kill(self.chance.choice(present))
                killed.append(f"a {kind} after {passed:.1f} s")
                break
        if left := watched.left_over():
            return {"killed": killed, "hung": left}
        lost = []
        if watched.popen.returncode:
            said = watched.errors.read_text()
            killed = [f"{killed[0]}: {said.strip()}"] if killed else []
            if kind != "driver" and len(said.strip().splitlines()) != 1:
                lost.append(f"not one line: {said}")
            resumable = RunDirectory(out).config.is_file()
            watched = self.watch(["run", "--resume", str(out)] if resumable else begun)
            if left := watched.left_over():
                return {"killed": killed, "lost": lost, "hung": left}
            if watched.popen.returncode:
                return {"killed": killed, "lost": [*lost, f"resumed: {watched.errors.read_text()}"]}
        run = RunDirectory(out)
        return {"killed": killed, "lost": lost + lacking(run), "wrong": wrong_figures(run, self.undisturbed)}


def lacking(run: RunDirectory) -> list[str]:
    """What a run that has ended does not tell of the clients that it has seen, or of those that were missing."""
    rounds, leakage = pd.read_parquet(run.rounds), read_leakage(run.leakage_csv)
    told = {(row["round"], row["client"]) for _, row in leakage.iterrows()}
    seen = {(row["round"], client) for _, row in rounds.iterrows() for client in row["clients_seen"]}
    missing = [reason for reasons in rounds["missing_because"] for reason in reasons]
    found = [f"round {number} client {client}: no row" for number, client in sorted(seen - told)]
    found += ["a client is missing without a reason"] * (not all(missing))
    found += ["no report"] * (not run.ended or not run.report.is_file())
    planned = run.settings().federation.rounds
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
    times: Annotated[int, typer.Option(min=1, help="Runs that are disturbed, of each kind in turn.")] = 8,
    only: Annotated[str, typer.Option(help="Kinds of processes, between commas.")] = ",".join(KINDS),
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
) -> None:
    """Kill one process of a run at a random moment, of each kind in turn; print what became of the runs, as JSON."""
    kinds = only.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no kind; allowed: {', '.join(KINDS)}")
    counts = {kind: Counter(tried=0, killed=0, lost=0, wrong=0, hung=0) for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as short:
        environment = os.environ | {
            "RAY_TMPDIR": f"{short}/ray",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        campaign = Campaign(Path(short), environment, random.Random(seed))
        spans = campaign.spans()
        for number in range(times):
            kind = kinds[number % len(kinds)]
            found = campaign.disturb(kind, spans[kind], campaign.folder / f"run-{number}")
            counts[kind]["tried"] += 1
            for name, lines in found.items():
                counts[kind][name] += bool(lines)
                for line in lines:
                    print(f"run {number}, {kind}: {name}: {line}", flush=True)
    for kind, counted in counts.items():
        print(json.dumps({"kind": kind, **counted}))
    raise typer.Exit(int(any(counted[name] for counted in counts.values() for name in ("lost", "wrong", "hung"))))


if __name__ == "__main__":
    program = typer.Typer(pretty_exceptions_enable=False)
    program.command()(main)
    program()
