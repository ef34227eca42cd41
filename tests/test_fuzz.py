"""A few seconds of bad input of every kind; what once failed; and that nothing from outside is ever unpickled."""

import ast
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.report import build_report
from tests.experiments.made_up_run import make_up_run
from tests.experiments.test_cli import fl_sim
from tests.fuzz.attempt import ACCEPTED, FAULTS, REFUSED, Outcome, attempt
from tests.fuzz.campaign import try_inputs
from tests.fuzz.kinds import KINDS

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "corpus"
SECONDS = 1.5
"""For every kind."""

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("quietly"),
]


@pytest.fixture
def quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused_in_one_line(kind: str) -> None:
    faults, tried = [], []

    def note(_: str, outcome: Outcome, __: Path) -> None:
        tried.append(outcome.kind)
        if outcome.kind in FAULTS:
            faults.append(outcome)

    try_inputs(kind, max(2, int(SECONDS / KINDS[kind].cost)), seed=0, note=note)
    assert not faults, faults[0].text
    assert {REFUSED, ACCEPTED} >= set(tried) != set()


@pytest.mark.parametrize("case", sorted(CORPUS.glob("*/*")), ids=lambda case: f"{case.parent.name}/{case.name}")
def test_what_once_failed_does_not_again(case: Path, tmp_path: Path) -> None:
    kind = case.parent.name.replace("-", " ") if case.parent.name != "set" else "--set"
    folder = tmp_path / "input"
    folder.mkdir()
    for file in case.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(case)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    outcome = attempt(KINDS[kind].read, folder, KINDS[kind].imports, KINDS[kind].memory_mib)
    assert outcome.kind in (REFUSED, ACCEPTED), outcome.text


def test_a_reader_that_fails_hangs_or_leaves_its_folder_is_found_out(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()

    def fail(_: Path) -> None:
        raise TypeError("boom")

    def write_beside(path: Path) -> None:
        (path.parent / "other").touch()

    def run_its_code(_: Path) -> None:
        import tests.fuzz.tripwire  # noqa: F401

    assert attempt(fail, folder).kind == "traceback"
    assert attempt(write_beside, folder).kind == "left its folder"
    assert attempt(run_its_code, folder).kind == "left its folder"
    assert attempt(run_its_code, folder, imports=True).kind == ACCEPTED
    assert attempt(lambda _: None, folder).kind == ACCEPTED


def test_a_reader_that_takes_too_much_memory_is_found_out(tmp_path: Path) -> None:
    """In a process of its own: one that has run many tests has freed memory to give out again."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.fuzz.attempt import attempt\n"
        "print(attempt(lambda _: bytearray(b'x') * (400 * 2**20), Path(sys.argv[1])).kind)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "too much memory"


def test_a_run_directory_of_another_kind_of_values_is_one_line(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    directory.environment.write_text('{"packages": "all of them"}')
    result = fl_sim("report", directory.path)
    assert result.exit_code in (0, 2)
    assert result.exit_code == 0 or "its files are damaged" in result.stderr


def test_a_report_has_no_control_characters_of_a_files(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    directory.write_environment({"lpips": "\x1b[31mred \u202eturned"}, {})
    page = build_report(directory.path).read_text(encoding="utf-8")
    assert "\\x1b[31mred" in page
    assert "\x1b" not in page


ROOMS = ("fl_sim", "strategies", "attacks", "experiments")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_CALLS = {"read_pickle", "eval", "exec", "unsafe_load", "full_load", "load_checkpoint_and_dispatch"}


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    """Every import and call that could run what a file holds, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.rpartition(".")[2]
        if (
            (called in ("torch.load", "torch.hub.load") and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or (last == "from_pretrained" and given.get("use_safetensors") != "True")
            or (last in FORBIDDEN_CALLS and called in (last, f"pd.{last}", f"yaml.{last}"))
            or (called == "yaml.load")
        ):
            yield f"{node.lineno}: {called}"


def test_nothing_from_outside_is_unpickled() -> None:
    sources = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    found = [f"{file}:{call}" for file in sources for call in unsafe_loads(ast.parse(file.read_text(encoding="utf-8")))]
    assert len(sources) > 100
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "cls.from_pretrained(folder)",
        "pd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_what_would_unpickle_is_seen(line: str) -> None:
    assert list(unsafe_loads(ast.parse(line)))


def test_what_does_not_unpickle_may_be_called() -> None:
    sound = "torch.load(path, weights_only=True)\nmodel.eval()\nnp.load(path)\njson.load(file)"
    assert not list(unsafe_loads(ast.parse(sound)))
