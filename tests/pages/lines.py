"""How the lines of a page are run: in order, in one folder, as printed but for what makes them cheaper."""

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
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from unittest.mock import patch

import matplotlib
import typer
from typer.testing import CliRunner

from attacks import attack
from attacks.gidm import RECIPES, Recipe
from experiments import train_checkpoint
from experiments.cli import app
from experiments.experiment import prepare
from experiments.settings import ExperimentSettings
from fl_sim.config import load_settings, resolve
from fl_sim.defences import registry
from tests.experiments.in_process import PoolInThisProcess, without_ray
from tests.pages.benchmarks import quick_benchmarks
from tests.pages.pages import REPOSITORY, Item, Page
from tests.pages.stand_ins import ABSOLUTE, CHEAPER_ATTACK, CHEAPER_RUN, FILES, MODULES, NAMES
from tests.strategies.test_sink import GUESS

SHORT_GIDM = Recipe(sampler_steps=2, latent_iterations=2, pixel_iterations=2, lr=0.1, solved_below=None)
PROJECT = ("fl_sim", "strategies", "attacks", "experiments", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Outcome:
    """What came of a line; the page's folder is left out of what was printed."""

    exit_code: int = 0
    output: str = ""
    errors: str = ""


class NoRuleError(LookupError):
    """Nothing says how to run a line."""


@dataclass
class Reader:
    """Somebody who goes through a page, line by line, in a folder that is also the home directory."""

    page: Page
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    outcomes: dict[Item, Outcome | Exception] = field(default_factory=dict)
    clock: Iterator[str] = field(default_factory=lambda: (f"20261122-{122700 + second}" for second in count()))

    def __post_init__(self) -> None:
        """Lay out what the page takes for granted: its files, a user's packages, the environment."""
        (self.folder / "site").mkdir(parents=True)
        (self.folder / ".venv").symlink_to(sys.prefix)
        installed = {f"site/{name}": text for name, text in MODULES.items()}
        for name, text in (self.page.files() | installed).items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)

    def outcome(self, item: Item) -> Outcome:
        """What comes of an item when everything above it on the page has been done before; raises what it raised."""
        for earlier in self.page.items[: self.page.items.index(item) + 1]:
            if earlier not in self.outcomes and earlier.kind != "output":
                try:
                    self.outcomes[earlier] = self._try(earlier)
                except Exception as error:
                    self.outcomes[earlier] = error
        found = self.outcomes[item]
        if isinstance(found, Exception):
            raise found
        return found

    def above(self, output: Item) -> list[Item]:
        """The commands of the block above a block of output."""
        before = [item for item in self.page.of_kind("command") if 0 < item.block < output.line]
        return [item for item in before if item.block == before[-1].block]

    def run(self, words: Sequence[str], environment: dict[str, str]) -> Outcome:
        """Run one command, as words."""
        program = Path(words[0]).name
        if program not in RULES:
            raise NoRuleError(f"RULES in tests/pages/lines.py has no rule for {program!r}")
        self._make_what_it_names(words)
        return RULES[program](self, list(words), self.environment | environment)

    def _try(self, item: Item) -> Outcome:
        if item.kind != "command":
            if item.kind not in BLOCKS:
                raise NoRuleError(f"BLOCKS in tests/pages/lines.py has no rule for blocks of {item.kind!r}")
            return BLOCKS[item.kind](self, item)
        outcome = Outcome()
        for part in _parts(item.text):
            environment, words = _environment(part)
            if item.block == 0 and len(words) == 2 and (program := tuple(words)) in NAMED:
                words = [*program, "--help"]
            outcome = self.run(words, environment)
        return outcome

    def _make_what_it_names(self, words: Sequence[str]) -> None:
        read = [word for before, word in zip(["", *words], words, strict=False) if before != "--out"]
        for word in read:
            for name, make in FILES.items():
                path = word.rpartition("=")[2]
                path = ABSOLUTE.get(path, path)
                if (path == name or path.startswith(f"{name}/")) and not (self.folder / name).exists():
                    make(self.folder / name)

    def outcome_of(self, exit_code: int, output: str, errors: str) -> Outcome:
        """The outcome of a program, as if the folder were the root of the machine."""
        return Outcome(exit_code, *(text.replace(str(self.folder), "") for text in (output, errors)))


NAMED = {("fl-sim", "run"), ("fl-sim", "attack"), ("fl-sim", "report"), ("fl-sim", "list"), ("flwr", "run")}
"""In a sentence these are the names of commands, of which there is to be a help; nothing is run."""


def _parts(text: str) -> Iterator[list[str]]:
    """The words of the commands that a line joins with &&; what follows # is left out."""
    words = shlex.split(text, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def _environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables that are set before a command, and the command."""
    given = [word for word in words if re.match(r"[A-Z_]+=", word)]
    before = words[: len(given)] if words[: len(given)] == given else []
    return dict(word.split("=", 1) for word in before), words[len(before) :]


# --- rules for programs


def _fl_sim(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    words = [_in_folder(reader, word) for word in words[1:]]
    with _in_this_process(reader, environment):
        return _invoke(reader, app, words + _cheaper(words))


def _make(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """What make would do after the set-up, which is what the tests run in, is done by the rules for that."""
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/.installed", *words[1:]]
    recipe = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    outcomes = [reader.run(shlex.split(line), environment) for line in recipe.splitlines()]
    assert outcomes, f"make {words[1:]} does nothing"
    return outcomes[-1]


def _python(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    if words[1:3] == ["-m", "venv"]:
        return _program(reader, [sys.executable, *words[1:]], environment)
    if words[1:3] == ["-m", "experiments.train_checkpoint"]:
        trainer = typer.Typer()
        trainer.command()(train_checkpoint.main)
        out = [] if "--out" in words else ["--out", str(reader.folder / "demo.safetensors")]
        with _in_this_process(reader, environment):
            return _invoke(reader, trainer, [*words[3:], "--steps", "1", *out])
    raise NoRuleError(f"_python in tests/pages/lines.py has no rule for {' '.join(words)!r}")


def _pip(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """With what is installed, and into the reader's folder: into the environment that it made, or beside the page."""
    if words[1:3] != ["install", "."]:  # requirements that the tests' own environment meets
        return _program(reader, [sys.executable, "-m", *words, "--dry-run", "--no-index"], environment)
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


def _source(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    return _program(reader, ["bash", "-c", f"{shlex.join(words)} && command -v fl-sim"], environment)


def _export(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    reader.environment |= dict(word.split("=", 1) for word in words[1:])
    return Outcome()


RULES: dict[str, Callable[[Reader, list[str], dict[str, str]], Outcome]] = {
    "export": _export,
    "fl-sim": _fl_sim,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "source": _source,
}


def _program(reader: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
    """A process of its own, in the page's folder."""
    home = {"HOME": str(reader.folder), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        words,
        cwd=reader.folder,
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
        stack.enter_context(patch.dict(RECIPES, published=SHORT_GIDM))
        stack.enter_context(patch("experiments.cli._now", lambda: next(reader.clock)))
        stack.enter_context(patch("torch.cuda.is_available", lambda: False))
        stack.enter_context(without_ray())
        stack.enter_context(quick_benchmarks())
        _forget(reader)
        try:
            yield
        finally:
            _forget(reader)


def _forget(reader: Reader) -> None:
    """Modules of the page's folder, and which plugins there are: the next page has others."""
    for plugins in (attack._plugins, registry._plugins):
        plugins.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{reader.folder}/"):
            del sys.modules[name]


def _in_folder(reader: Reader, word: str) -> str:
    """The word with an absolute path of the pages' where it is in the reader's folder; ~ is left to fl-sim."""
    key, equals, path = word.rpartition("=")
    return f"{key}{equals}{reader.folder / ABSOLUTE[path]}" if path.startswith("/") and path in ABSOLUTE else word


def _cheaper(words: list[str]) -> list[str]:
    """What is added to a command to make it cheap."""
    if "--help" in words:
        return []
    given = dict(word.split("=", 1) for word in words if re.match(r"[\w.]+=", word))
    if words[0] == "run":
        name = given.get("attack.name", "residual")
        short = {f"attack.args.{name}.{key}": value for key, value in CHEAPER_ATTACK.get(name, {}).items()}
        return [f"--set={key}={value}" for key, value in (CHEAPER_RUN | short).items() if key not in given]
    if words[0] == "attack":
        short = CHEAPER_ATTACK.get(words[words.index("--attack") + 1], {})
        return [f"--set={key}={value}" for key, value in short.items() if key not in given]
    return _cheaper_benchmark(words[1], words) if words[0] == "bench" else []


def _cheaper_benchmark(name: str, words: list[str]) -> list[str]:
    """Of an option that is given twice the last one counts."""
    if name == "attacks":
        only = [] if {"--only", "--networks"} & set(words) else ["--only", "signs"]
        return ["--victims", "1", *only]
    if name == "defences":
        return ["--victims", "1", "--rounds", "1", *([] if "--only" in words else ["--only", "none,signs"])]
    if name == "timesteps":
        return ["--victims", "1"]
    if name == "many-clients":
        return ["--clients", "2", "--per-round", "1", "--rounds", "6", "--turns", "1"]
    raise NoRuleError(f"_cheaper_benchmark in tests/pages/lines.py does not know fl-sim bench {name}")


# --- rules for blocks


def _run_python(reader: Reader, item: Item) -> Outcome:
    """Under the page's own line numbers, with stand-ins for the names that it leaves open."""
    code = compile("\n" * (item.line - 1) + item.text, REPOSITORY / item.page, "exec")
    used = {node.id for node in ast.walk(ast.parse(item.text)) if isinstance(node, ast.Name)}
    names = {name: make() for name, make in NAMES.items() if name in used}
    with (
        _in_this_process(reader, {}),
        patch.dict(attack._BUILT_IN, residual=GUESS),
        patch("strategies.honest_but_curious.AttackPool", PoolInThisProcess),
    ):
        exec(code, {"__name__": "page"} | names)
    return Outcome()


def _read_toml(reader: Reader, item: Item) -> Outcome:
    """Settings have to make a run, and entry points to name what the page shows."""
    tables = tomllib.loads(item.text)
    if tables.keys() <= ExperimentSettings.model_fields.keys():
        with _in_this_process(reader, {}):
            prepare(resolve(load_settings(ExperimentSettings, tables)))
        return Outcome()
    if "project" not in tables:
        raise NoRuleError(f"_read_toml in tests/pages/lines.py does not know what {', '.join(tables)} is")
    files = reader.page.files()
    for group in tables["project"]["entry-points"].values():
        for place in group.values():
            module, _, name = place.partition(":")
            assert f"class {name}(" in files[f"{module}.py"], f"{place} is not on the page"
    return Outcome()


BLOCKS: dict[str, Callable[[Reader, Item], Outcome]] = {"python": _run_python, "toml": _read_toml}


# --- comparison with what is shown


def complaint(item: Item, outcome: Outcome) -> str | None:
    """What is not as the page says it, in words; None if everything is."""
    printed = f"it printed\n{outcome.output}{outcome.errors}"
    if item.shown and item.shown[0].startswith("fl-sim: "):
        if outcome.exit_code != 2 or " ".join(item.shown) != " ".join(outcome.errors.split()):
            return f"the page says that it ends with exit code 2 and this error; {outcome.exit_code}, {printed}"
        return None
    if outcome.exit_code:
        return f"it ended with exit code {outcome.exit_code}; {printed}"
    missing = lines_not_in(item.shown, outcome.output)
    return f"the page shows {missing[0]!r}, which is no line of it; {printed}" if missing else None


def lines_not_in(shown: Sequence[str], printed: str) -> list[str]:
    """The shown lines that were not printed: numbers may differ, … stands for anything, spaces for any."""
    shapes = [_shape(line) for line in printed.splitlines()]
    patterns = {line: re.escape(_shape(line)).replace("…", ".*") for line in shown}
    return [line for line, pattern in patterns.items() if not any(re.fullmatch(pattern, shape) for shape in shapes)]


def _shape(line: str) -> str:
    return re.sub(r"\d+(?:\.\d+)?", "#", " ".join(line.split()))
