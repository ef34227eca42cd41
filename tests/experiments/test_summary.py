import math

import pandas as pd

from experiments.summary import blank_originals, describe_blank, dropout_caveat, summarise


def table(*rows: tuple[str, int, float | None, float | None]) -> pd.DataFrame:
    """(attack, client, PSNR or None for a failure, flat PSNR) in round 1."""
    return pd.DataFrame(
        [
            {
                "round": 1,
                "client": client,
                "image": 0,
                "attack": attack,
                "threat": "private",
                "timestep": 7,
                "timestep_recovered": 7 if psnr else None,
                "label": 3,
                "label_recovered": 3 if psnr else None,
                "psnr": psnr or math.nan,
                "ssim": 0.5,
                "flat_psnr": flat_psnr or math.nan,
                "evaluations": 100.0,
                "seconds": 1.0,
                "status": "ok" if psnr else "timeout",
            }
            for attack, client, psnr, flat_psnr in rows
        ]
    )


def test_an_original_without_content_counts_in_no_figure_but_its_own() -> None:
    (summary,) = summarise(table(("dlg", 0, 20.0, 12.0), ("dlg", 1, 84.0, 30.0), ("dlg", 2, None, math.inf)))
    assert (summary.images, summary.blank, summary.finished) == (1, 2, 1)
    assert (summary.median_psnr, summary.best_psnr, summary.recognisable) == (20.0, 20.0, 0)
    assert (summary.timesteps_recovered, summary.labels_recovered, summary.share_recognisable) == (1, 1, 0.0)


def test_what_the_server_dictated_is_not_recovered() -> None:
    (summary,) = summarise(table(("dlg", 0, 20.0, 12.0)).assign(threat="known"))
    assert (summary.timesteps_recovered, summary.labels_recovered) == (None, None)


def test_the_table_of_an_earlier_run_has_content() -> None:
    (summary,) = summarise(table(("dlg", 0, 31.0, None), ("dlg", 1, None, None)))
    assert (summary.images, summary.blank, summary.share_recognisable) == (2, 0, 0.5)


def test_nothing_but_blank_originals_is_no_figure() -> None:
    (summary,) = summarise(table(("dlg", 0, 84.0, 40.0)))
    assert (summary.images, summary.blank) == (0, 1)
    assert all(math.isnan(figure) for figure in (summary.median_psnr, summary.share_recognisable, summary.best_psnr))


def test_an_original_that_two_attacks_met_is_blank_once() -> None:
    rows = table(("dlg", 0, 84.0, 40.0), ("gidm", 0, None, 40.0), ("gidm", 1, 20.0, 12.0))
    assert blank_originals(rows).to_numpy().tolist() == [[1, 0, 0]]
    assert describe_blank(0) == ""
    assert describe_blank(1).startswith("1 original without")
    assert describe_blank(2).startswith("2 originals without")


def test_dropout_is_told_where_there_is_some() -> None:
    assert dropout_caveat({"dropout": 0.3}).startswith("Clients trained with dropout 0.3, whose masks are private.")
    assert dropout_caveat({"dropout": 0.0}) == dropout_caveat({}) == ""
