"""The loop that all benchmarks share, on measurements that count."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.bench import __main__ as rewriting
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.tables import Table
from fl_sim.config import SettingsError

RESULTS = sorted((Path(__file__).parents[3] / "docs" / "results").glob("*.json"))

made: list[int] = []
"""What has been measured, in this process."""


@dataclass(frozen=True)
class Square(Measurement):
    number: int

    @property
    def cost(self) -> float:
        return self.number

    def subject(self) -> Row:
        return {"number": self.number, "pair": (1, 2)}

    def measure(self) -> Row:
        made.append(self.number)
        if self.number == 13:
            raise KeyboardInterrupt
        return {"square": self.number**2}


def tables(rows: Sequence[Row]) -> list[Table]:
    return [Table("squares", ("number", "square"), [(str(row["number"]), str(row["square"])) for row in rows])]


SQUARES = Benchmark(
    "squares",
    "squares",
    announce=lambda row: f"{row['number']}^2 = {row['square']}",
    figures=lambda rows: {"sum": sum(row["square"] for row in rows)},
    tables=tables,
)


@pytest.fixture(autouse=True)
def _forget() -> None:
    made.clear()


def run(out: Path, *numbers: int, left_out: Sequence[str] = ()) -> dict[str, Any]:
    SQUARES.run(Plan([Square(number) for number in numbers], left_out), {"seed": 5}, out, 1, Console(quiet=True))
    return json.loads((out / "squares.json").read_text())


def test_the_costly_come_first_and_the_tables_are_in_the_order_of_the_plan(tmp_path: Path) -> None:
    content = run(tmp_path, 2, 5, 3, left_out=["seven"])
    assert made == [5, 3, 2]
    assert [row["number"] for row in content["rows"]] == [2, 5, 3]
    assert content["figures"] == {"sum": 38}
    assert (content["benchmark"], content["left_out"], content["about"]["options"]) == (
        "squares",
        ["seven"],
        {"seed": 5},
    )
    page = (tmp_path / "squares.md").read_text()
    assert "| 2 | 4 |\n| 5 | 25 |\n| 3 | 9 |" in page
    assert "Left out: seven." in page
    assert f"Revision: {content['rows'][0]['revision']}." in page


def test_done_is_not_done_again_and_what_is_not_asked_for_is_kept_but_not_shown(tmp_path: Path) -> None:
    run(tmp_path, 2, 3)
    content = run(tmp_path, 3, 4)
    assert made == [3, 2, 4]
    assert [row["number"] for row in content["rows"]] == [3, 4]
    assert [json.loads(line)["number"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [3, 2, 4]


def test_interrupted_it_keeps_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 1, 13, 20)
    assert made == [20, 13]
    assert "| 20 | 400 |" in (tmp_path / "squares.md").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SettingsError, match="not empty"):
        run(tmp_path, 1)
    assert made == []


@pytest.mark.parametrize(
    "content", [b"garbage\n", b"garbage", b"{\n", b"\n", b"[1]\n", b'{"a": 1}\n', b'{"a": 1}', b"\xff\n"]
)
def test_rows_of_something_else_are_refused_and_stay(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(SettingsError, match=r"rows\.jsonl: not a benchmark's rows"):
        run(tmp_path, 1)
    assert (tmp_path / "rows.jsonl").read_bytes() == content


def test_a_last_row_that_was_left_half_written_is_measured_again(tmp_path: Path) -> None:
    run(tmp_path, 2)
    whole = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(whole + whole[:20])
    run(tmp_path, 2, 3)
    assert made == [2, 3]
    (tmp_path / "rows.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes().rstrip())
    run(tmp_path, 2, 3)
    assert made == [2, 3]


@pytest.mark.parametrize(
    "content", ["garbage", "[1]", "{}", '{"benchmark": []}', '{"benchmark": "labels"}', "[" * 10_000]
)
def test_only_results_are_rewritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SettingsError, match="no results of a benchmark"):
        rewriting.rewrite(tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("kept", RESULTS, ids=lambda path: path.stem)
def test_the_tables_in_the_documentation_are_those_of_their_rows(kept: Path, tmp_path: Path) -> None:
    copy = tmp_path / kept.name
    copy.write_text(kept.read_text())
    rewriting.rewrite(copy)
    assert copy.read_text() == kept.read_text()
    assert copy.with_suffix(".md").read_text() == kept.with_suffix(".md").read_text()
