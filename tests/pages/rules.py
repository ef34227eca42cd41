"""How each program and each kind of block is run: as printed, but for what makes it cheaper."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import matplotlib
import typer
from latex2mathml.converter import convert
from packaging.requirements import Requirement
from typer.testing import CliRunner

from attacks.published.gidm import RECIPES, Phases
from attacks.workers import Job, Result
from experiments.bench import __main__ as rewriting
from experiments.cli import app
from experiments.experiment import prepare
from experiments.settings import NO_ATTACK, ExperimentSettings, Source, load_run, preset_names
from experiments.sweep.file import load_sweep
from experiments.sweep.points import expand
from fl_sim import registry
from fl_sim.config import BUNDLED_CHECKPOINTS, resolve
from fl_sim.settings_file import dotted_key, load_settings
from tests.experiments.in_process import PoolInThisProcess, without_ray
from tests.pages.benchmarks import quick_benchmarks
from tests.pages.clusters import ATTACKED, cheaper_run, free_ports
from tests.pages.pages import REPOSITORY, Item
from tests.pages.reading import BlockRule, NoRuleError, Outcome, Reader, Rule
from tests.pages.site import build_site
from tests.pages.stand_ins import (
    CHEAPER_ATTACK,
    CHEAPER_INVERSION,
    CHEAPER_NETWORK,
    CHEAPER_RUN,
    CHEAPER_RUN_ATTACK,
    CHEAPER_SWEEP,
    NAMES,
    ONE_ATTACKED,
    SMALL_NETWORK,
)
from tests.strategies.test_sink import GUESS

SHORT_GIDM = Phases(sampler_steps=2, latent_iterations=2, pixel_iterations=2, lr=0.1, solved_below=None)
PROJECT = ("fl_sim", "strategies", "attacks", "experiments", "pyproject.toml", "README.md", "LICENSE")


def _fl_sim(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    words = [reader.here(word) for word in words[1:]]
    if any(word.startswith("ray.address=") for word in words):
        cheaper = [f"--set={setting}" for setting in f"{ATTACKED} federation.client_cpus=8".split()]
        return _program(reader, ["fl-sim", *words, *cheaper], environment | reader.cluster.environment)
    with _in_this_process(reader, environment):
        return _invoke(reader, app, words + _cheaper(words, small=reader.page.name != "README.md"))


def _make(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """What make would do after the set-up, which is what the tests run in, is done by the rules for that."""
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/.installed", *words[1:]]
    recipe = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    outcomes = [reader.run(shlex.split(line), environment) for line in recipe.splitlines()]
    assert outcomes, f"make {words[1:]} does nothing"
    return outcomes[-1]


CAMPAIGNS = ("tests.scale", "tests.faults", "tests.kill_and_resume", "tests.reliability")
"""Programs of the tests that the pages call."""


def _python(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    if words[1:3] == ["-m", "venv"]:
        return _program(reader, [sys.executable, *words[1:]], environment)
    if words[1:3] == ["-m", "experiments.bench"]:
        for word in words[3:]:
            rewriting.rewrite(reader.folder / word)
        return Outcome()
    if words[1:3] == ["-m", "tests.fuzz"]:
        quick = ["--minutes", "0.01", "--kind", "search log", "--corpus", str(reader.folder / "failing")]
        return _program(reader, [sys.executable, *words[1:], *quick], environment, cwd=REPOSITORY)
    if words[1] == "-m" and words[2] in CAMPAIGNS:
        command = typer.Typer()
        command.command()(import_module(words[2]).main)
        takes_hours = ["--help"] if words[2] != "tests.reliability" else []
        return _invoke(reader, command, [*words[3:], *takes_hours])
    raise NoRuleError(f"_python in tests/pages/rules.py has no rule for {' '.join(words)!r}")


def _pip(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """With what is installed, and into the reader's folder: into the environment that it made, or beside the page."""
    if words[1:3] != ["install", "."]:  # what the tests' own environment has
        for requirement in map(Requirement, words[2:]):
            extras = metadata(requirement.name).get_all("Provides-Extra") or []
            assert requirement.extras <= set(extras), f"{requirement}: there are {extras}"
        return _program(reader, [sys.executable, "-m", *words, "--dry-run", "--no-index", "--no-deps"], environment)
    for name in PROJECT if not (reader.folder / "pyproject.toml").exists() else ():
        source, copy = REPOSITORY / name, reader.folder / name
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    own = "/" in words[0]
    pip = [words[0]] if own else [sys.executable, "-m", "pip"]
    cheaper = ["--no-index", "--no-deps", "--no-build-isolation", *([] if own else ["--target", "site", "--upgrade"])]
    return _program(reader, [*pip, *words[1:], *cheaper], environment | {"PYTHONPATH": str(_build_backend(reader))})


def _build_backend(reader: Reader) -> Path:
    """A folder of setuptools alone, for an environment that holds nothing yet."""
    import setuptools

    folder = reader.folder / "backend"
    folder.mkdir(exist_ok=True)
    installed = Path(setuptools.__file__).parents[1]
    for path in (installed / "setuptools", *installed.glob("setuptools-*.dist-info")):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def _mkdocs(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """Builds it into the page's folder; that there is a server is enough."""
    if words[1] == "serve":
        return _program(reader, [sys.executable, "-m", "mkdocs", "serve", "--help"], environment)
    assert words[1:] == ["build", "--strict"]
    build_site(reader.folder / "site-of-docs")
    return Outcome()


def _source(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    return _program(reader, ["bash", "-c", f"{shlex.join(words)} && command -v fl-sim"], environment)


def _flwr(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """In the project's folder. A run ends well if it leaves a whole run directory: flwr's exit code says nothing."""
    if "--help" in words:
        return _help_of(tuple(words))
    if words[1] == "supernode":  # this and the run on a deployment: tests/experiments/test_deployment.py
        return _options_of(("flwr", "supernode", "register"), words)
    is_run = words[1] == "run"
    if is_run and "--federation-config" not in words:
        return _options_of(("flwr", "run"), words)
    words = [reader.here(word) for word in (cheaper_run(words) if is_run else words)]
    outcome = _program(reader, words, environment | reader.cluster.environment, cwd=REPOSITORY)
    if not is_run:
        return outcome
    runs = sorted(reader.folder.rglob("run-*/config.toml"), key=lambda path: path.stat().st_mtime)
    if runs and (runs[-1].parent / "report.html").is_file():
        return outcome
    return Outcome(1, outcome.output, f"{outcome.errors}\nno whole run directory\n{reader.cluster.logs()}")


@cache
def _help_of(words: tuple[str, ...]) -> Outcome:
    done = subprocess.run(
        [Path(sys.executable).parent / words[0], *words[1:]], capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def _options_of(command: tuple[str, ...], words: list[str]) -> Outcome:
    """Whether the command has the options among the words."""
    known = _help_of((*command, "--help"))
    unknown = [word for word in words if word.startswith("--") and word not in known.output]
    return Outcome(known.exit_code or len(unknown), "", f"no options of {' '.join(command)}: {unknown}")


def _of_a_deployment(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """Whether it has such options; tests/experiments/test_deployment.py runs the deployment of the page, with TLS."""
    return _options_of((words[0],), words)


def _pkill(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """Only looks whether it would find the page's own SuperLink: others may run on this machine."""
    found = _program(reader, ["pgrep", *words[1:]], environment).output.split()
    own = {str(process.pid) for process in reader.cluster.superlinks()}
    return Outcome() if own and own <= set(found) else Outcome(1, "", f"would end {found}, not {own}")


def _ray(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    cheaper = ["--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0"]
    ports = [f"--port={reader.cluster.ray}", f"--ray-client-server-port={free_ports(1)[0]}"]
    return _program(reader, [*words, *cheaper, *ports], environment | reader.cluster.environment)


def _export(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    reader.environment |= dict(word.split("=", 1) for word in words[1:])
    return Outcome()


def _as_printed(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    return _program(reader, words, environment)


PROGRAMS: dict[str, Rule] = {
    "export": _export,
    "fl-sim": _fl_sim,
    "flower-superlink": _of_a_deployment,
    "flower-supernode": _of_a_deployment,
    "flwr": _flwr,
    "make": _make,
    "mkdocs": _mkdocs,
    "openssl": _as_printed,
    "pip": _pip,
    "pkill": _pkill,
    "python": _python,
    "ray": _ray,
    "source": _source,
    "ssh-keygen": _as_printed,
}
"""By their names, in which folder ever they are."""


def _program(reader: Reader, words: list[str], environment: dict[str, str], cwd: Path | None = None) -> Outcome:
    """A process of its own, in the page's folder or another one."""
    home = {"HOME": str(reader.folder), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        words,
        cwd=cwd or reader.folder,
        env=os.environ | home | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return reader.outcome_of(done.returncode, done.stdout, done.stderr)


def _invoke(reader: Reader, command: typer.Typer, words: list[str]) -> Outcome:
    result = CliRunner().invoke(command, words)
    trace = ""
    if result.exc_info and not isinstance(result.exception, SystemExit):
        trace = "".join(traceback.format_exception(*result.exc_info))
    return reader.outcome_of(result.exit_code, result.stdout, result.stderr + trace)


@contextmanager
def _in_this_process(reader: Reader, environment: dict[str, str]) -> Iterator[None]:
    """The page's folder as working and home directory; no Ray, short recipes, no GPU; imports are undone."""
    paths = [str((reader.folder / path).resolve()) for path in environment.get("PYTHONPATH", "").split(":") if path]
    home = {"HOME": str(reader.folder), "COLUMNS": "120", "MPLCONFIGDIR": matplotlib.get_configdir()}
    with ExitStack() as stack:
        stack.enter_context(chdir(reader.folder))
        stack.enter_context(patch.dict(os.environ, home | environment))
        stack.enter_context(patch.object(sys, "path", [*paths, str(reader.folder / "site"), *sys.path]))
        stack.enter_context(patch.dict(RECIPES, dict.fromkeys(RECIPES, SHORT_GIDM)))
        stack.enter_context(patch("experiments.commands.datetime", SimpleNamespace(now=lambda: next(reader.clock))))
        stack.enter_context(patch("torch.cuda.is_available", lambda: False))
        stack.enter_context(without_ray())
        stack.enter_context(quick_benchmarks())
        stack.enter_context(patch("experiments.sweep.command.expand", lambda sweep: expand(sweep)[:1]))
        _forget(reader)
        try:
            yield
        finally:
            _forget(reader)


def _forget(reader: Reader) -> None:
    """Modules of the page's folder, and which plugins there are: the next page has others."""
    registry.plugins.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{reader.folder}/"):
            del sys.modules[name]


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words else "-"


def _attack_of(preset: str) -> str:
    """The attack that a preset names, of several the first; a file's is taken to be our own."""
    name = load_run(preset).attack.name if preset in preset_names() else "residual"
    return name if isinstance(name, str) else name[0]


def _bundled(preset: str) -> bool:
    """Whether a preset's network is one that comes with the package."""
    return preset in preset_names() and load_run(preset).model.checkpoint in BUNDLED_CHECKPOINTS


def _cheaper(words: list[str], *, small: bool = True) -> list[str]:
    """What is added to a command to make it cheap; ``small``: a small network in the place of a bundled one."""
    if "--help" in words or words[:2] == ["run", "--resume"]:
        return []
    given = dict(word.split("=", 1) for word in words if re.match(r"[\w.]+=", word))
    if words[0] == "run":
        name = given.get("attack.name", _attack_of(words[1]))
        args = CHEAPER_ATTACK.get(name, {}) | CHEAPER_RUN_ATTACK.get(name, {})
        short = {f"attack.args.{name}.{key}": value for key, value in args.items()}
        if name != NO_ATTACK:
            short |= ONE_ATTACKED
        if words[1].startswith("paper/") and "model.checkpoint" not in given:
            short |= CHEAPER_NETWORK
        elif small and _bundled(words[1]) and not any(key.startswith("model.") for key in given):
            short |= SMALL_NETWORK
        return [f"--set={key}={value}" for key, value in (CHEAPER_RUN | short).items() if key not in given]
    if words[0] == "sweep":
        varied = {dotted_key(path) for path in load_sweep(words[1]).axes}
        cheap = CHEAPER_SWEEP.items()
        return [f"--set={key}={value}" for key, value in cheap if key not in varied | given.keys()]
    if words[0] == "attack":
        names = [name for before, name in pairwise(words) if before == "--attack"]
        short = {
            f"{name}.{key}" if len(names) > 1 else key: value
            for name in names
            for key, value in CHEAPER_ATTACK.get(name, {}).items()
        }
        return [f"--set={key}={value}" for key, value in short.items() if key not in given]
    if words[0] == "invert":
        name = _option(words, "--method")
        short = CHEAPER_INVERSION["diff-mi" if name == "-" else name]
        return [f"--set={key}={value}" for key, value in short.items() if key not in given]
    if words[0] == "train-prior":
        smaller = ["--block-out-channels", "8,8,8,8"] if "64,128,256,512" in words else []
        return ["--steps", "1", "--batch-size", "2", "--samples", "1", *smaller]
    return _cheaper_benchmark(words[1], words) if words[0] == "bench" else []


def _cheaper_benchmark(name: str, words: list[str]) -> list[str]:
    """Of an option that is given twice the last one counts."""
    if name == "attacks":
        only = [] if "--only" in words else ["--only", "signs"]
        return ["--victims", "1", *only, "--networks", "16"]
    if name == "defences":
        return ["--victims", "1", "--rounds", "1", *([] if "--only" in words else ["--only", "none,signs"])]
    if name in ("timesteps", "labels", "classification"):
        return ["--victims", "1"]
    if name == "many-clients":
        return ["--clients", "2", "--per-round", "1", "--rounds", "6", "--turns", "1"]
    if name == "inversion":
        return ["--repetitions", "1", "--quick", *([] if "--only" in words else ["--only", "faces"])]
    if name == "priors":
        return ["--victims", "1", "--evaluations", "8"]
    if name == "users":
        return ["--repetitions", "1", "--quick"]
    raise NoRuleError(f"_cheaper_benchmark in tests/pages/rules.py does not know fl-sim bench {name}")


# --- rules for blocks


class GuessingPool(PoolInThisProcess):
    """Guesses, whatever the attack is."""

    def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
        super().submit(replace(job, attack=GUESS, arguments={}), on_result)


def _run_python(reader: Reader, item: Item) -> Outcome:
    """Under the page's own line numbers, with stand-ins for the names that it leaves open."""
    code = compile("\n" * (item.line - 1) + item.text, REPOSITORY / item.page, "exec")
    used = {node.id for node in ast.walk(ast.parse(item.text)) if isinstance(node, ast.Name)}
    names = {name: make() for name, make in NAMES.items() if name in used}
    with (
        _in_this_process(reader, {}),
        patch("strategies.honest_but_curious.AttackPool", GuessingPool),
        patch("experiments.launch.load_run", _load_cheaper),
    ):
        exec(code, {"__name__": "page"} | names)
    return Outcome()


def _load_cheaper(source: Source, overrides: Sequence[str] = ()) -> ExperimentSettings:
    """What ``experiments.run`` is asked to run, shorter."""
    words = _cheaper(["run", "demo", *overrides])
    return load_run(source, [*overrides, *(word.removeprefix("--set=") for word in words)])


def _read_toml(reader: Reader, item: Item) -> Outcome:
    """Settings have to make a run, and entry points to name what the page shows."""
    tables = tomllib.loads(item.text)
    if "base" in tables:
        path = reader.folder / "a-sweep.toml"
        path.write_text(item.text)
        assert expand(load_sweep(str(path)).model_copy(update={"client_seed": 1}))
        return Outcome()
    if tables.keys() <= ExperimentSettings.model_fields.keys():
        with _in_this_process(reader, {}):
            prepare(resolve(load_settings(ExperimentSettings, tables)))
        return Outcome()
    if "superlink" in tables:
        config = reader.folder / ".flwr" / "config.toml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(reader.cluster.here(item.text))
        return Outcome()
    if "project" not in tables:
        raise NoRuleError(f"_read_toml in tests/pages/rules.py does not know what {', '.join(tables)} is")
    files = reader.page.files()
    for group in tables["project"]["entry-points"].values():
        for place in group.values():
            module, _, name = place.partition(":")
            assert f"class {name}(" in files[f"{module}.py"], f"{place} is not on the page"
    return Outcome()


def _convert(reader: Reader, item: Item) -> Outcome:
    """An equation has to become MathML, as on the site."""
    unknown = re.findall(r"<mi>(\\\w+)</mi>", convert(item.text))
    assert not unknown, f"{item}: no MathML for {unknown}"
    return Outcome()


BLOCKS: dict[str, BlockRule] = {"math": _convert, "python": _run_python, "toml": _read_toml}
