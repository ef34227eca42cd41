"""Kill ``fl-sim run``, ``fl-sim attack DIR`` or ``fl-sim sweep`` at random moments, go on, and see whether it leaves
what it leaves undisturbed.

``python -m tests.kill_and_resume --times 30`` prints how many kills met it alive, and after how many something was
lost, wrong or hung; it ends with 1 if there was any. ``--attack`` kills attacks on captures, ``--sweep`` sweeps, half
of them alone, without the runs that they have started. A short form is part of the tests.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import pandas as pd
import psutil
import tomli_w
import typer
from safetensors.torch import load_file

from experiments.leakage import TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from fl_sim.settings_file import parse_overrides
from tests.processes import kill_all, with_descendants
from tests.reliability import Row, write_figures

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


def start(
    arguments: list[str],
    environment: dict[str, str],
    stdout: IO[str] | int = subprocess.PIPE,
    stderr: IO[str] | int = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    """``fl-sim`` with these arguments, in processes of its own."""
    program = Path(sys.executable).with_name("fl-sim")
    return subprocess.Popen([program, *arguments], env=environment, stdout=stdout, stderr=stderr, text=True)


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


def kill_after(seconds: float, arguments: list[str], environment: dict[str, str], alone: bool = False) -> bool:
    """Kill a run and all its processes at that moment, with SIGKILL; whether it had not ended before.

    ``alone``: the others are left to themselves, and have to end.
    """
    running = start(arguments, environment)
    time.sleep(seconds)
    alive = running.poll() is None
    processes = with_descendants(running.pid)
    kill_all(processes[:1] if alone else processes)
    _, left = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not left, f"{left} outlive the first"
    running.communicate()
    return alive


def sweep_file(folder: Path, sizes: Sequence[int] = (1, 2)) -> Path:
    """A sweep of tiny runs, one for each batch size."""
    file = folder / "sweep.toml"
    tables: dict[str, Any] = {"base": "demo-16", "client_seed": 11, "grid": {"client.batch_size": list(sizes)}}
    settings = [setting for setting in (*SETTINGS, "federation.rounds=2") if not setting.startswith("client.seed")]
    file.write_text(tomli_w.dumps(tables | {"set": parse_overrides(settings)}))
    return file


def sweep_differences(out: Path, undisturbed: Path) -> list[str]:
    """The same as ``differences``, of two sweeps; what their runs print may differ."""
    found = ["sweep.csv differs"] * ((out / "sweep.csv").read_bytes() != (undisturbed / "sweep.csv").read_bytes())
    names, wanted = ({path.name for path in each.iterdir()} for each in (out, undisturbed))
    found += [f"{name}: only in one" for name in sorted(names ^ wanted)]
    for name in (config.parent.name for config in undisturbed.glob("*/config.toml")):
        found += [f"{name}: {line}" for line in differences(RunDirectory(out / name), RunDirectory(undisturbed / name))]
    return found


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


@dataclass(frozen=True)
class Subject:
    """What is killed: the ``command`` "run", "attack" or "sweep", with everything that it needs in ``folder``."""

    command: str
    folder: Path
    environment: dict[str, str]

    @property
    def captured(self) -> Path:
        """The run whose captures are attacked."""
        return self.folder / "captured"

    def prepare(self) -> None:
        """Make what the command starts from."""
        if self.command == "attack":
            finish(fresh(self.captured, "attack.when=never"), self.environment)

    def begin(self, out: Path) -> list[str]:
        """The arguments that begin it."""
        if self.command == "run":
            return fresh(out)
        if self.command == "sweep":
            return ["sweep", str(sweep_file(self.folder)), "--out", str(out), "--jobs", "2"]
        shutil.copytree(self.captured, out)
        return ["attack", str(out)]

    def go_on(self, out: Path, begun: list[str]) -> list[str]:
        """Those that go on with what was ``begun``."""
        resumable = self.command == "run" and RunDirectory(out).config.is_file()
        return ["run", "--resume", str(out)] if resumable else begun

    def differences(self, out: Path, undisturbed: Path) -> list[str]:
        """What it left that it did not leave undisturbed."""
        if self.command == "sweep":
            return sweep_differences(out, undisturbed)
        return differences(RunDirectory(out), RunDirectory(undisturbed))


def kill_and_resume(subject: Subject, times: int, seed: int) -> Counter[str]:
    """Kill it so many times anew, each once or twice, go on, and count what became of them."""
    subject.prepare()
    undisturbed, chance = subject.folder / "undisturbed", random.Random(seed)
    began = time.monotonic()
    finish(subject.begin(undisturbed), subject.environment)
    length, counts = time.monotonic() - began, Counter(tried=times, killed=0, lost=0, wrong=0, hung=0)
    for number in range(times):
        out = subject.folder / f"run-{number}"
        begun = arguments = subject.begin(out)
        for _ in range(chance.choice((1, 1, 2))):
            alone = subject.command == "sweep" and chance.random() < 0.5
            counts["killed"] += kill_after(chance.uniform(0, length), arguments, subject.environment, alone)
            arguments = subject.go_on(out, begun)
        resumed = start(arguments, subject.environment)
        try:
            output, _ = resumed.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            kill_all(with_descendants(resumed.pid))
            counts["hung"] += 1
            print(f"{out}: hung")
            continue
        found = [output] if resumed.returncode else subject.differences(out, undisturbed)
        counts["lost"] += bool(resumed.returncode)
        counts["wrong"] += bool(found) and not resumed.returncode
        for line in found:
            print(f"{out}: {line}")
    return counts


def main(
    times: Annotated[int, typer.Option(min=1, help="Runs that are killed.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    attack: Annotated[bool, typer.Option("--attack", help="Kill fl-sim attack on the captures of a run.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Kill fl-sim sweep.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Kill runs at random moments and resume them; print what became of them, as JSON."""
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as short:
        environment = os.environ | {
            "RAY_TMPDIR": f"{short}/ray",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = "attack" if attack else "sweep" if sweep else "run"
        counts = kill_and_resume(Subject(command, Path(short), environment), times, seed)
    kind = f"`fl-sim {command}` killed with all its processes"
    write_figures([Row(kind, counts["killed"], counts["lost"], counts["wrong"], counts["hung"])], out)


if __name__ == "__main__":
    typer.run(main)
