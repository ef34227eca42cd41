"""Many bad inputs of every kind, one after the other, and figures of what came of them."""

import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz.attempt import FAULTS, Outcome, attempt
from tests.fuzz.kinds import KINDS

Note = Callable[[str, Outcome, Path], None]


def try_inputs(kind: str, count: int, seed: int, note: Note, until: float = float("inf")) -> None:
    """Make and read ``count`` inputs of a kind, or fewer if the clock passes ``until``."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:  # hypothesis makes some that it then does not use
        _try_inputs(kind, count, seed, note, until, home)


def _try_inputs(kind: str, count: int, seed: int, note: Note, until: float, home: str) -> None:
    chosen = KINDS[kind]

    @st.composite
    def inputs(draw: st.DrawFn) -> Path:
        folder = Path(tempfile.mkdtemp(dir=home)) / "input"
        folder.mkdir()
        chosen.make(draw, folder)
        return folder

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(folder=inputs())
    def one(folder: Path) -> None:
        try:
            if time.monotonic() < until:
                note(kind, attempt(chosen.read, folder, chosen.imports, chosen.memory_mib), folder)
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    one()


def run_campaign(
    kinds: Sequence[str], minutes: float, seed: int, corpus: Path, say: Callable[[str], None]
) -> dict[str, Counter[str]]:
    """Try inputs of the kinds in turn for so long; failing ones are kept in the folder ``corpus``.

    Returns how many of each kind were tried, and how often each outcome was seen.
    """
    figures = {kind: Counter[str]() for kind in kinds}
    until, turn = time.monotonic() + 60 * minutes, 0

    def note(kind: str, outcome: Outcome, folder: Path) -> None:
        figures[kind].update(["tried", outcome.kind])
        if outcome.kind in FAULTS:
            say(f"{kind}: {outcome.kind}: {outcome.text.strip().splitlines()[-1][:300] if outcome.text else ''}")
            _keep(corpus / kind.replace(" ", "-"), folder, outcome)

    while time.monotonic() < until:
        for kind in kinds:
            share = max(1, int(2.0 / KINDS[kind].cost))
            try_inputs(kind, share, seed + turn, note, until)
        turn += 1
    return figures


def _keep(place: Path, folder: Path, outcome: Outcome) -> None:
    """Keep an input, once for each fault: those whose tracebacks end alike are taken for one."""
    fault = hashlib.sha256("\n".join(outcome.text.strip().splitlines()[-3:]).encode()).hexdigest()[:12]
    kept = place / f"{outcome.kind.replace(' ', '-')}-{fault}"
    if not kept.exists():
        shutil.copytree(folder, kept / "input", symlinks=True)
        (kept / "outcome.txt").write_text(outcome.text, encoding="utf-8", errors="backslashreplace")
