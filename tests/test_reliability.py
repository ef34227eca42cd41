"""The table of docs/reliability.md is that of the figures beside it, and says that nothing was lost."""

import json
from typing import Any

import pytest
import typer

from tests.faults import KINDS as FAULTS
from tests.faults import NAMES, says_in_one_line
from tests.fuzz.kinds import KINDS as INPUTS
from tests.pages.pages import REPOSITORY
from tests.reliability import KEPT, Row, table, write_figures

CAMPAIGNS: list[dict[str, Any]] = json.loads(KEPT.read_text())


def test_the_page_has_the_table_of_the_figures() -> None:
    assert table(CAMPAIGNS) in (REPOSITORY / "docs" / "reliability.md").read_text()


def test_every_kind_was_tried_and_nothing_was_lost_wrong_or_hung() -> None:
    rows = [row for campaign in CAMPAIGNS for row in campaign["rows"]]
    assert {row["kind"] for row in rows if row["tried"]} >= {*INPUTS, *(NAMES[kind] for kind in FAULTS)}
    assert [row for row in rows if row["lost"] or row["wrong"] or row["hung"]] == []


def test_campaigns_of_a_kind_are_added_up() -> None:
    first = {"rows": [{"kind": "capture", "tried": 1200, "lost": 0, "wrong": 1, "hung": 0}]}
    assert "| capture | 2,400 | 0 | 2 | 0 |" in table([first, first])


def test_a_campaign_with_a_fault_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        write_figures([Row("capture", 3, 0, 0, 0)], None)
    assert ended.value.exit_code == 0
    with pytest.raises(typer.Exit) as ended:
        write_figures([Row("capture", 3, 0, 0, 0), Row("image", 3, 0, 0, 1)], None)
    assert ended.value.exit_code == 1
    assert '"hung": 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "fine"),
    [
        ("fl-sim: Ray's raylet died; to go on: fl-sim run --resume x\n", True),
        ("attack worker did not start: its process died\nfl-sim: stopped\n", True),
        ("[2026-11-28 15:02:37,341 E 7573 7978] core_worker.cc:475: gone\nfl-sim: Ray's raylet died\n", True),
        ("Traceback\nfl-sim: stopped\n", False),
        ("fl-sim: stopped\nmore\n", False),
        ("", False),
    ],
)
def test_what_a_run_that_ends_may_say(said: str, fine: bool) -> None:
    assert says_in_one_line(said) == fine
