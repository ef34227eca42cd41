import io

import pytest
from rich.console import Console

from experiments import display
from experiments.display import Bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its only entry."""
    now = [0.0]
    monkeypatch.setattr(display, "monotonic", lambda: now[0])
    return now


def search(console: Console, clock: list[float], evaluations: int, seconds: float, planned: int = 200) -> None:
    with Bar(console, "residual on update.safetensors", "evaluations", "matching loss", may_end_early=True) as progress:
        for spent in range(1, evaluations + 1):
            clock[0] += seconds
            progress(spent, planned, 1 / spent)


def test_without_a_terminal_there_is_a_line_now_and_then(clock: list[float]) -> None:
    output = io.StringIO()
    search(Console(file=output, width=300), clock, evaluations=100, seconds=1.5)
    lines = output.getvalue().splitlines()
    assert [line[:9] for line in lines] == ["[   60 s]", "[  120 s]"]
    assert "40 of at most 200 evaluations, matching loss 0.025, at most 0:04:00 left" in lines[0]


def test_a_budget_that_nobody_knows_is_left_out(clock: list[float]) -> None:
    output = io.StringIO()
    search(Console(file=output, width=300), clock, evaluations=50, seconds=1.5, planned=0)
    assert output.getvalue() == "[   60 s] 40 evaluations, matching loss 0.025\n"


def test_in_a_terminal_there_is_a_bar_that_goes_away(clock: list[float]) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=150, color_system=None)
    search(console, clock, evaluations=30, seconds=1.5)
    assert "residual on update.safetensors" in output.getvalue()
    assert "[   " not in output.getvalue()


def test_ages_are_left_out(clock: list[float]) -> None:
    output = io.StringIO()
    search(Console(file=output, width=300), clock, evaluations=50, seconds=1.5, planned=10**30)
    assert output.getvalue().endswith("evaluations, matching loss 0.025\n")
