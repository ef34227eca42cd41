import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.bench import users
from experiments.bench.users import (
    ADAM,
    ALL_IMAGES,
    CHANCE,
    LABELS,
    MEAN_OF_ALL,
    METHODS,
    UserCase,
    UserMeasurement,
    bench_users,
    cases,
    load_scene,
    methods,
)
from experiments.public_images import check_disjoint

SCALE = replace(
    users.SHORT, steps=8, draws=2, all_images_steps=8, prior_steps=2, prior_channels=(8, 8), evaluator_steps=3
)


@pytest.fixture(autouse=True)
def _forget():
    """What was trained at one scale is not for the next test."""
    yield
    for trained in (users._prior, users._evaluator):
        trained.cache_clear()


@pytest.mark.parametrize(("data", "size", "count"), [("digits", 12, 10), ("photographs", 16, 8)])
def test_nobody_holds_public_or_held_out_images_and_labels_do_not_tell_users(data: str, size: int, count: int) -> None:
    scene = load_scene(data, size, 1)
    assert len(scene.images) == len(scene.names) == count
    held = torch.cat(scene.images)
    check_disjoint(scene.public, held)
    check_disjoint(scene.held_out, held)
    assert set(scene.held_out_users.tolist()) == set(range(count))
    assert set(torch.cat([*scene.labels, scene.public_labels]).tolist()) == set(range(LABELS))
    for user, labels in enumerate(scene.labels):
        if data == "digits":
            assert set(labels.tolist()) == {user % 2}
        else:
            assert 0.3 < labels.float().mean() < 0.7


def test_the_cases_are_those_asked_for() -> None:
    full = list(cases(False))
    for data in ("digits", "photographs"):
        for model in ("untrained", "trained"):
            of = [case for case in full if (case.data, case.model) == (data, model)]
            assert {case.batch_size for case in of if case.task == "classification"} == {16, 64, 256}
            assert {case.batch_size for case in of if case.task == "diffusion"} == {16, 64}
            assert {case.local_steps for case in of if case.optimizer == ADAM} == {10, 50}
    assert len(list(cases(True))) < len(full) / 4
    assert ALL_IMAGES in methods(UserCase())
    assert ALL_IMAGES not in methods(UserCase(optimizer=ADAM, local_steps=10))


def test_every_method_is_measured_and_a_benchmark_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(users, "SHORT", SCALE)
    monkeypatch.setattr(users, "METHODS", {name: METHODS[name] for name in ("plug-and-play", "no prior")})
    some = [UserCase(), UserCase(local_steps=2, optimizer=ADAM)]
    monkeypatch.setattr(users, "cases", lambda _: some)
    out = tmp_path / "out"
    bench_users(True, False, None, 1, 1, out, Console(quiet=True))
    written = json.loads((out / "users.json").read_text())
    assert {user["status"] for row in written["rows"] for of in row["judged"].values() for user in of} == {"ok"}
    lines = [(line["case"], line["method"]) for line in written["figures"]]
    assert lines == [
        (str(case), method)
        for case in some
        for method in [*users.METHODS, *([] if case.optimizer else [ALL_IMAGES, MEAN_OF_ALL]), CHANCE]
    ]
    guess = [line["by_features"]["hits"] for line in written["figures"] if line["method"] == CHANCE]
    assert max(guess) <= 1  # one guess for everybody is right once at most
    page = (out / "users.md").read_text()
    assert "chance of identifying one of 10 users: 0.100; with the label alone, odd or even: 0.2" in page
    monkeypatch.setattr(UserMeasurement, "measure", lambda _: pytest.fail("it was measured already"))
    bench_users(True, False, None, 1, 1, out, Console(quiet=True))
    assert json.loads((out / "users.json").read_text())["rows"] == written["rows"]


def test_short_searches_say_what_they_leave_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(users, "cases", lambda _: [UserCase(batch_size=256)])
    failed = [{"user": 0, "status": "out of luck"}]
    row = {"users": 1, "evaluator_accuracy": 1.0}
    monkeypatch.setattr(UserMeasurement, "measure", lambda self: row | {"judged": {self.method: failed}})
    bench_users(False, True, None, 1, 1, tmp_path / "out", Console(quiet=True))
    written = json.loads((tmp_path / "out" / "users.json").read_text())
    assert ALL_IMAGES not in {row["method"] for row in written["rows"]}
    assert ALL_IMAGES in written["left_out"][0]


def test_a_failure_identifies_nobody_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "attempt", lambda *_: "out of luck")
    monkeypatch.setattr(users, "SHORT", SCALE)
    row = UserMeasurement(UserCase(), "no prior", 0, True, 1).measure() | {"case": UserCase().model_dump(mode="json")}
    (figures,) = users.figures([row])
    assert (figures["by_features"]["hits"], figures["attacked"], figures["finished"], figures["psnr"]) == (
        0,
        10,
        0,
        None,
    )
    (table,) = users.tables([row | {"revision": "abc"}])
    assert "no prior: out of luck" in table.notes


def test_a_digit_is_named_from_the_update_of_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity is all that the label says: who knew it would name one of five."""
    monkeypatch.setattr(users, "SHORT", replace(users.SHORT, steps=120, evaluator_steps=150))
    judged = UserMeasurement(UserCase(), "no prior", 0, True, 5).measure()["judged"]["no prior"]
    assert sum(user["by_pixels"] for user in judged) >= 8
    assert sum(user["class_named"] for user in judged) >= 6
    assert sum(user["to_own_mean"] < user["to_others_mean"] for user in judged) >= 8
