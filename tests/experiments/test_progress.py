import io
import time

import pytest
from rich.console import Console

from attacks.workers import Counts
from experiments.progress import Progress
from experiments.rounds import Round

FIRST = Round(1, 0.75, [0, 1], [2], ["no reply in time"], "cpu", "ab")
ROW = {"round": 1, "client": 0, "image": 0, "attack": "dlg", "observer": "server"}
SOLVED = ROW | {"status": "ok", "psnr": 41.5, "flat_psnr": 12.0, "seconds": 3.0}
BLANK = SOLVED | {"client": 2, "psnr": 99.9, "flat_psnr": 33.0}
FAILED = SOLVED | {"client": 1, "status": "timeout after 9 s", "psnr": None, "seconds": None}


def shown(terminal: bool) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100, color_system=None)
    with Progress(console, rounds=2, attacks=4) as progress:
        progress.watch(lambda: Counts(queued=1, running=2, done=1))
        progress.step("training round 1")
        progress.round_done(FIRST)
        progress.attacked([SOLVED, FAILED, BLANK])
    return output.getvalue()


def test_without_a_terminal_every_event_is_a_plain_line() -> None:
    lines = shown(terminal=False).splitlines()
    assert [line.partition("] ")[2].strip() for line in lines] == [
        "training round 1",
        "round 1/2: training loss 0.7500, 2 clients, missing [2]",
        "round 1 client 0 image 0 dlg: 41.5 dB in 3 s",
        "round 1 client 1 image 0 dlg: timeout after 9 s",
        "round 1 client 2 image 0 dlg: 99.9 dB in 3 s, no evidence: an original without content",
    ]


def test_without_a_terminal_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.progress.SIGN_OF_LIFE", 0.01)
    monkeypatch.setattr("experiments.display.LINE_EVERY", 0.2)
    output = io.StringIO()
    with Progress(Console(file=output, width=100), rounds=2, attacks=4) as progress:
        progress.watch(lambda: Counts(queued=3, running=1))
        time.sleep(0.5)
    lines = output.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].endswith("starting Ray and the clients, round 0/2, attacks: 0/4, 1 running")


def test_a_terminal_shows_rounds_the_queue_and_the_best_so_far() -> None:
    panel = shown(terminal=True)
    assert "1/2" in panel
    assert "1/4" in panel
    assert "1 queued, 2 running" in panel
    assert "41.5 dB" in panel
    assert "+1 failed" in panel


def test_only_as_many_rounds_as_fit_are_shown() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, force_terminal=True, width=100, color_system=None), 40, 0) as progress:
        for number in range(1, 41):
            progress.round_done(Round(number, number / 100, [0], [], [], "cpu", "ab"))
    last = output.getvalue().rpartition("round ")[2]
    assert "0.4000" in last
    assert "0.0500" not in last
