"""The first sentence of a report, for whatever may have happened in a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.report.gallery import Guess
from experiments.report.run import Run
from experiments.report.verdict import NO_PROOF, Verdict, verdict
from experiments.summary import RECOGNISABLE_DB
from tests.experiments.made_up_run import make_up_run

GUESS = Guess("7 public images", nearest_psnr=14.5, nearest_recognisable=0.0, level={"residual": 11.25, "dlg": 10.0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds of two clients; the last attack failed."""
    return Run.read(make_up_run(tmp_path_factory.mktemp("verdict") / "run").path)


def of(run: Run, psnr: list[float], guess: Guess | None = GUESS, **columns: Any) -> Verdict:
    """The verdict if the attacks had reached ``psnr``; NaN where one failed."""
    status = ["ok" if not math.isnan(value) else "timeout" for value in psnr]
    changed = run.leakage.assign(**({"psnr": psnr, "status": status, "flat_psnr": 12.0} | columns))
    return verdict(replace(run, leakage=changed), guess)


def said(found: Verdict) -> str:
    return " ".join(found.sentence.split())


def test_the_sentence_says_who_what_from_how_much_and_against_what(run: Run) -> None:
    found = of(run, [60.0, 20.0, 40.0, 35.0])
    assert said(found) == (
        "The server reconstructed 3 of 4 private images, from 3 of 4 updates: 37.5 dB at the median, "
        "where a guess reaches 11.2 dB and the nearest public image 14.5 dB."
    )
    assert any("7 public images" in note for note in found.notes)
    assert NO_PROOF not in found.notes


def test_all_of_them_are_all(run: Run) -> None:
    assert said(of(run, [math.inf] * 4)).startswith(
        "The server reconstructed all 4 private images, from 4 of 4 updates: ∞ dB at the median"
    )


def test_nothing_found_is_no_proof(run: Run) -> None:
    found = of(run, [15.0, 12.0, 10.0, math.nan])
    assert said(found).startswith(
        "The server reconstructed none of 4 private images, from 4 updates: at best 15.0 dB, 12.0 dB at the median of "
        "the 3 that did not fail, where a guess"
    )
    assert "The attack failed on 1 of 4; these count as not reconstructed." in found.notes
    assert found.notes[-1] == NO_PROOF


def test_failures_alone_say_nothing(run: Run) -> None:
    found = of(run, [math.nan] * 4)
    assert said(found).startswith("No attack ended with a result: 4 of 4 attempts at a private image failed")
    assert found.notes == [NO_PROOF]


def test_originals_without_content_are_no_evidence(run: Run) -> None:
    assert said(of(run, [60.0] * 4, flat_psnr=RECOGNISABLE_DB)).startswith("There is no evidence")


def test_the_strongest_of_several_attacks_is_named(run: Run) -> None:
    found = of(run, [60.0, 20.0, 70.0, 35.0], attack=["residual", "residual", "dlg", "dlg"])
    assert said(found).startswith("The server reconstructed all 2 private images, from 2 of 2 updates")
    assert "a guess reaches 10.0 dB" in said(found)
    assert "This is said of dlg, the strongest of 2 attacks." in found.notes


def test_updates_that_nobody_attacked_are_counted(run: Run) -> None:
    captured = replace(run, leakage=run.leakage.iloc[:1].assign(psnr=40.0, flat_psnr=12.0))
    assert "4 updates were sent, of which 1 have been attacked." in verdict(captured, GUESS).notes


def test_peers_sums_and_users_are_called_what_they_are(run: Run, tmp_path: Path) -> None:
    ring = make_up_run(tmp_path / "ring", "federation.topology=ring", "federation.curious_peers=[0]")
    assert said(of(Run.read(ring.path), [60.0] * 4)).startswith("Curious peers reconstructed all 4 private images")
    assert "from 2 of 2 sums of updates" in said(of(run, [60.0] * 4, client=-1))
    users = of(run, [60.0] * 4, image="user")
    assert said(users).startswith("The server reconstructed all 4 clients' mean images")


def test_a_defence_and_public_images_as_near_are_told(run: Run, tmp_path: Path) -> None:
    defended = make_up_run(tmp_path / "run", "defence.name=top-k", "defence.args.fraction=0.1")
    notes = of(Run.read(defended.path), [60.0] * 4, replace(GUESS, nearest_recognisable=0.25)).notes
    assert any("defence was top-k, of which the attacker" in note for note in notes)
    assert any("a public image is just as near" in note for note in notes)


def test_what_is_not_known_is_not_said(run: Run) -> None:
    assert said(of(run, [60.0] * 4, None)).endswith("; what a guess reaches is not known.")
    alone = of(run, [60.0] * 4, replace(GUESS, level={}))
    assert said(alone).endswith(", where the nearest public image reaches 14.5 dB.")
    assert not any("A guess" in note for note in alone.notes)
    assert said(verdict(replace(run, leakage=run.leakage.iloc[:0]), None)) == (
        "It is not known what the updates leak: no attack has ended yet."
    )


def test_a_model_inversion_is_set_beside_images_drawn_blindly(run: Run) -> None:
    rows = [
        {"round": 1, "method": method, "class": 0, "status": "ok", "evaluator_top1": top1, "evaluator_top5": 1.0}
        for method, top1s in (("diff-mi", [1.0, 0.0, 1.0, 1.0]), ("random public images", [0.0, 0.0, 1.0, 0.0]))
        for top1 in top1s
    ]
    numbers = dict.fromkeys(("knn_distance", "psnr", "target_probability", "evaluator_accuracy", "seconds"), 1.0)
    table = pd.DataFrame(rows).assign(**numbers, evaluations=1, chance_top1=0.1, chance_top5=0.5)
    inverted = replace(run, leakage=run.leakage.iloc[:0], inversion=table)
    assert said(verdict(inverted, None)) == (
        "From the global model alone, diff-mi found images of its classes: a judge names the class of 75 % of 4 "
        "correctly, where public images drawn blindly reach 25 % and a guess reaches 10 %."
    )
