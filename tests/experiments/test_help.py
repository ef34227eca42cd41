"""What the command line says of itself: help, completion, and what is wrong with the words of a command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from experiments.cli import app
from tests.pages.pages import help_page

PROGRAM = "import sys; sys.argv[0] = 'fl-sim'; from experiments.cli import main; main()"


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Those that do something, with their whole names."""
    below = getattr(command, "commands", {})
    if not below:
        yield name, command
    for word, sub in below.items():
        yield from commands(f"{name} {word}", sub)


COMMANDS = dict(commands("fl-sim", typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    assert any(item.page == f"{name} --help" and item.text.startswith(name) for item in help_page().items)


@pytest.mark.parametrize("name", ["run", "attack", "invert", "train-prior", "report", "bench"])
def test_the_help_says_what_is_written(name: str) -> None:
    assert "Writes" in CliRunner().invoke(app, [name, "--help"]).output


def test_the_help_has_exit_codes_and_the_environment() -> None:
    output = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert all(word in output for word in ("Exit codes", "128 + N", "Environment", "HF_HOME", "--install-completion"))


def test_options_are_grouped() -> None:
    panels = {
        "run": ("What to run", "What to write"),
        "attack": ("Attacks", "What to write", "Resources", "Going on"),
        "train-prior": ("Images", "Network", "Training", "What to write", "Resources", "Going on"),
    }
    for name, titles in panels.items():
        output = CliRunner().invoke(app, [name, "--help"]).output
        assert [title for title in titles if f"─ {title} ─" in output] == list(titles)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "--verbos"], "no such option '--verbos'; did you mean '--verbose'?"),
        (["rnu"], "no such command 'rnu'; did you mean 'run'?"),
        (["bench", "atacks"], "no such command 'atacks'; did you mean 'attacks'?"),
        (["attack"], "missing argument 'CAPTURE|DIR|GLOB…'; see fl-sim attack --help"),
        (
            ["attack", "x", "--seed", "-1"],
            "invalid value for '--seed': -1 is not in the range x>=0; see fl-sim attack --help",
        ),
        (["run", "--set"], "option '--set' requires an argument"),
        (["list", "\x1b[31m\n"], None),
    ],
)
def test_a_usage_error_is_one_line(words: list[str], line: str | None) -> None:
    result = CliRunner().invoke(app, words, prog_name="fl-sim")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert result.stderr.startswith("fl-sim: ")
    assert line is None or result.stderr == f"fl-sim: {line}\n"


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "train-prior" in result.output
    assert "fl-sim: " not in result.output


def in_a_shell(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_shell_completes_commands_options_and_presets() -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        return in_a_shell(_FL_SIM_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()

    assert completed("fl-sim tr") == ["train-prior"]
    assert completed("fl-sim run --dry") == ["--dry-run"]
    assert completed("fl-sim run paper/cifar100-known-gidm-l") == ["paper/cifar100-known-gidm-latent"]


def test_completion_installs_itself_in_the_home_directory(tmp_path: Path) -> None:
    said = in_a_shell(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "bash completion installed" in said
    (script,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".bashrc")
    assert "_FL_SIM_COMPLETE" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
