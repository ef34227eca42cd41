from typing import Any

import pytest

from experiments.bench.attack_tables import describe_client, tables
from experiments.bench.cases import Case
from experiments.bench.summary import summarise
from experiments.bench.tables import markdown, rich_table


def row(psnr: list[float], attack: str = "residual", **facts: Any) -> dict[str, Any]:
    cell = Case(suite=facts.pop("suite", "batch"), threat=facts.pop("threat", "private"), batch_size=len(psnr))
    return {
        "cell": cell.model_dump(mode="json") | {"attack": attack, "arguments": {}},
        "status": "ok",
        "parameters": 635_427,
        "psnr": psnr,
        "timesteps_verdict": {"exact": len(psnr), "unknown": 0, "wrong": 0},
        "evaluations": 100,
        "seconds": 2.0,
        "evaluations_to_40_db": 50,
        "seconds_to_40_db": 1.0,
        "revision": "0.1+a",
    } | facts


def failed(images: int) -> dict[str, Any]:
    verdict = {"exact": 0, "unknown": images, "wrong": 0}
    missing = dict.fromkeys(("evaluations", "seconds", "evaluations_to_40_db", "seconds_to_40_db"))
    return row([0.0] * images, status="timesteps cannot be read off", timesteps_verdict=verdict, **missing)


def test_a_summary_is_what_a_hand_computes() -> None:
    slow = {"evaluations": 300, "seconds": 6.0, "evaluations_to_40_db": 250, "seconds_to_40_db": 5.0}
    (summary,) = summarise([row([50.0, 30.0]), row([60.0, 20.0], **slow), failed(2)])
    # 0 0 20 30 50 60
    assert summary.median_psnr == 25
    assert (summary.least_psnr, summary.lower_quartile, summary.upper_quartile) == (0, 5, 45)
    assert (summary.victims, summary.images) == (3, 6)
    assert summary.share_recognisable == 0.5
    assert summary.timesteps == {"exact": 4, "unknown": 2, "wrong": 0}
    assert (summary.evaluations, summary.seconds) == (200, 4)
    assert (summary.evaluations_to_40_db, summary.seconds_to_40_db) == (250, 5)
    assert summary.failures == {"timesteps cannot be read off": 1}


def test_a_median_victim_that_never_got_there_has_no_time() -> None:
    (summary,) = summarise([row([50.0]), failed(1)])
    assert summary.seconds_to_40_db is None
    assert summary.seconds == 2


def test_cells_stay_apart_and_in_order() -> None:
    rows = [row([50.0], "dlg", suite="strata"), row([60.0]), row([70.0], "dlg", suite="strata")]
    assert [(s.case.suite, s.attack, s.victims) for s in summarise(rows)] == [
        ("strata", "dlg", 2),
        ("batch", "residual", 1),
    ]


def test_the_table_tells_failures_and_what_was_given() -> None:
    rows = [row([50.0, 30.0]), failed(2), row([41.0], "dlg", threat="known", timesteps_verdict=None)]
    (table,) = tables(rows)
    page = markdown(table)
    where = "| trained 16, t 0-800"
    assert (
        f"{where}, private, B = 2 | residual | 2 | 15.0 | 0.0-35.0 | 0.0 | 50 % | 2/2/0 | 100 | 2.0 | - | 0.1+a |"
        in page
    )
    assert (
        f"{where}, known, B = 1 | dlg | 1 | 41.0 | 41.0-41.0 | 41.0 | 100 % | given | 100 | 2.0 | 50 in 1.0 s | 0.1+a |"
        in page
    )
    assert "residual: 1 of 2 failed: timesteps cannot be read off" in page


def test_ranges_of_timesteps_are_pooled_where_nothing_else_differs() -> None:
    def single(psnr: float, timesteps: list[int], attack: str = "residual") -> dict[str, Any]:
        made = row([psnr], attack)
        return made | {"cell": made["cell"] | {"timesteps": timesteps}}

    early, late, other = single(50.0, [0, 20]), single(30.0, [501, 800]), single(9.0, [0, 20], "dlg")
    each, pooled = tables([early, other, late, single(20.0, [501, 800])])
    assert [line[1:4] for line in each.rows] == [
        ("residual", "1", "50.0"),
        ("dlg", "1", "9.0"),
        ("residual", "2", "25.0"),
    ]
    assert pooled.title == "batch, over all timesteps"
    assert [line[:4] for line in pooled.rows] == [("trained 16, t 0-800, private, B = 1", "residual", "3", "30.0")]
    assert early["cell"]["timesteps"] == [0, 20]


def test_a_narrow_terminal_has_the_most_important_figures() -> None:
    (table,) = tables([row([50.0])])
    shown = {width: [column.header for column in rich_table(table, width).columns] for width in (80, 160)}
    assert shown[160] == list(table.headings)
    assert shown[80] == ["case", "attack", "dB", ">= 30 dB", "timesteps", "to 40 dB"]


def test_the_race_is_one_row_that_names_the_winner() -> None:
    def runner(attack: str, seconds: float | None, evaluations: int | None) -> dict[str, Any]:
        facts = {"seconds_to_40_db": seconds, "evaluations_to_40_db": evaluations, "timesteps_verdict": None}
        return row([50.0], attack, suite="speed", threat="known", **facts)

    runners = [runner("residual", 3.0, 100), runner("dlg", None, None), runner("gidm-published", 600.0, 4000)]
    race = tables(runners)[-1]
    assert race.headings == ("residual", "dlg", "gidm-published", "winner")
    assert race.rows == [("100 in 3.0 s", "-", "4000 in 600.0 s", "residual")]
    assert race.notes == ["times as fast as gidm-published: residual 200.0, gidm-published 1.0"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"batch_size": 4}, "B = 4"),
        (
            {"local_steps": 2, "optimizer": {"lr": 0.01, "momentum": 0.9}},
            "B = 1, 2 steps of sgd, lr 0.01, momentum 0.9",
        ),
        ({"optimizer": {"name": "adam", "lr": 0.001}}, "B = 1, 1 step of adam, lr 0.001"),
        ({"defence": "noise", "strength": 0.1, "defence_known": False}, "B = 1, noise 10 %, defence unknown"),
        ({"defence": "signs"}, "B = 1, signs"),
        ({"num_clients": 4}, "B = 1, sum of 4 clients"),
    ],
)
def test_a_client_in_a_few_words(case: dict[str, Any], words: str) -> None:
    assert describe_client(Case(suite="test", **case)) == words
