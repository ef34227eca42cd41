"""Kill ``fl-sim run``, or ``fl-sim attack DIR``, at random moments, go on, and see whether it leaves what it leaves
undisturbed.

``python -m tests.kill_and_resume --times 30`` prints how many runs were tried, and in how many something was lost,
wrong or hung; it ends with 1 if there was any. ``--attack`` kills attacks on captures. A short form is part of the
tests.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from safetensors.torch import load_file

from experiments.leakage import TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from tests.processes import kill_all, with_descendants

SETTINGS = (
    "client.seed=11",
    "federation.clients=2",
    "federation.clients_per_round=2",
    "federation.rounds=3",
    "federation.client_cpus=2",
    "model.checkpoint=none",
    "model.block_out_channels=[8, 8]",
    "model.norm_num_groups=4",
    "strategy.args.optimizer_args={momentum=0.9}",
    "attack.workers=1",
    "attack.args.residual.max_evaluations=40",
    "utility.samples=0",
)
PATIENCE = 600.0
"""Seconds after which a run counts as hung."""


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """``fl-sim`` with these arguments, in processes of its own."""
    program = Path(sys.executable).with_name("fl-sim")
    return subprocess.Popen(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def fresh(out: Path, *more: str) -> list[str]:
    """The arguments of a new run."""
    return [
        "run",
        "demo-16",
        *(word for setting in (*SETTINGS, *more) for word in ("--set", setting)),
        "--out",
        str(out),
    ]


def finish(arguments: list[str], environment: dict[str, str]) -> None:
    """Run it to its end, undisturbed."""
    alone = start(arguments, environment)
    output, _ = alone.communicate()
    assert alone.returncode == 0, output


def kill_after(seconds: float, arguments: list[str], environment: dict[str, str]) -> bool:
    """Kill a run and all its processes at that moment, with SIGKILL; whether it had not ended before."""
    running = start(arguments, environment)
    time.sleep(seconds)
    alive = running.poll() is None
    kill_all(with_descendants(running.pid))
    running.communicate()
    return alive


def differences(run: RunDirectory, undisturbed: RunDirectory) -> list[str]:
    """What the run left that the undisturbed one did not, or left otherwise; empty if they are the same."""
    names, wanted = (
        {str(path.relative_to(each.path)) for path in each.path.rglob("*") if path.is_file()}
        for each in (run, undisturbed)
    )
    found = [f"{name}: only in one" for name in sorted(names ^ wanted)]
    tables = [read_leakage(each.leakage_csv).drop(columns=list(TIME_COLUMNS)) for each in (run, undisturbed)]
    rounds = [pd.read_parquet(each.rounds) for each in (run, undisturbed)]
    found += ["leakage.csv differs"] * (not tables[0].equals(tables[1]))
    found += ["rounds.parquet differs"] * (not rounds[0].equals(rounds[1]))
    for name in sorted(names & wanted):
        if name.endswith(".safetensors"):
            first, second = (load_file(each.path / name) for each in (run, undisturbed))
            same = first.keys() == second.keys() and all(first[key].equal(second[key]) for key in second)
            found += [f"{name} differs"] * (not same)
    return found


def kill_and_resume(
    folder: Path, times: int, seed: int, environment: dict[str, str], attack: bool = False
) -> Counter[str]:
    """Kill so many runs, or attacks on a captured one, each once or twice, and count what became of them."""
    captured = folder / "captured"
    if attack:
        finish(fresh(captured, "attack.when=never"), environment)

    def begin(out: Path) -> list[str]:
        if not attack:
            return fresh(out)
        shutil.copytree(captured, out)
        return ["attack", str(out)]

    def go_on(out: Path) -> list[str]:
        if attack:
            return ["attack", str(out)]
        return ["run", "--resume", str(out)] if RunDirectory(out).config.is_file() else fresh(out)

    undisturbed, chance = RunDirectory(folder / "undisturbed"), random.Random(seed)
    began = time.monotonic()
    finish(begin(undisturbed.path), environment)
    length, counts = time.monotonic() - began, Counter(tried=times, killed=0, lost=0, wrong=0, hung=0)
    for number in range(times):
        run = RunDirectory(folder / f"run-{number}")
        arguments = begin(run.path)
        for _ in range(chance.choice((1, 1, 2))):
            counts["killed"] += kill_after(chance.uniform(0, length), arguments, environment)
            arguments = go_on(run.path)
        resumed = start(arguments, environment)
        try:
            output, _ = resumed.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            kill_all(with_descendants(resumed.pid))
            counts["hung"] += 1
            print(f"{run.path}: hung")
            continue
        found = [output] if resumed.returncode else differences(run, undisturbed)
        counts["lost"] += bool(resumed.returncode)
        counts["wrong"] += bool(found) and not resumed.returncode
        for line in found:
            print(f"{run.path}: {line}")
    return counts


def main(
    times: Annotated[int, typer.Option(min=1, help="Runs that are killed.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    attack: Annotated[bool, typer.Option("--attack", help="Kill fl-sim attack on the captures of a run.")] = False,
) -> None:
    """Kill runs at random moments and resume them; print what became of them, as JSON."""
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as short:
        environment = os.environ | {
            "RAY_TMPDIR": f"{short}/ray",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        counts = kill_and_resume(Path(short), times, seed, environment, attack)
    print(json.dumps(counts))
    raise typer.Exit(int(any(counts[name] for name in ("lost", "wrong", "hung"))))


if __name__ == "__main__":
    typer.run(main)
