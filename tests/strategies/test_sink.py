from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.attack import AttackError, Reconstruction
from attacks.observation import Observation, UpdateId
from attacks.reconstruction_file import load_reconstruction
from attacks.registry import create
from attacks.workers import POOL_CLOSED, QUEUE_FULL, Job, Result
from fl_sim.draws import derive_seed
from strategies.errors import StrategyError
from strategies.sink import DirectorySink, log_result
from tests.attacks.toy_attacks import tiny_observation

GUESS = "tests.attacks.toy_attacks:Guess"
FAIL = "tests.attacks.toy_attacks:Fail"


class InlinePool:
    """Runs every job at once, in this process."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.closed = False

    def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
        self.jobs.append(job)
        try:
            on_result(create(job.attack, job.arguments).reconstruct(Observation.load(job.capture), job.seed))
        except RuntimeError as error:
            on_result(str(error))

    def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def told():
    return []


def make(directory: Path, told: list, *attacks: str, **options: object) -> tuple[DirectorySink, InlinePool]:
    pool = InlinePool()
    arguments = {name: {} for name in attacks}
    return DirectorySink(
        directory, arguments, pool, 4, on_reconstruction=lambda *row: told.append(row), **options
    ), pool


def test_an_observation_becomes_a_capture_and_a_reconstruction(tmp_path, told):
    observation = tiny_observation(server_round=12, client=3)
    make(tmp_path, told, GUESS)[0].observe(observation)
    loaded = Observation.load(tmp_path / "captures" / "round-0012-client-0003.safetensors")
    assert all(torch.equal(loaded.update[name], value) for name, value in observation.update.items())
    kept = load_reconstruction(tmp_path / "reconstructions" / "round-0012-client-0003-guess.safetensors")
    expected = create(GUESS).reconstruct(observation, derive_seed(4, "attack", "guess", 12, 3))
    assert torch.equal(kept.images, expected.images)
    [(update_id, attack, result)] = told
    assert (update_id, attack) == (UpdateId(12, 3), "guess")
    assert torch.equal(result.images, kept.images)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_every_attack_has_a_job_and_failures_have_no_file(tmp_path, told):
    make(tmp_path, told, GUESS, FAIL)[0].observe(tiny_observation())
    assert [(attack, type(result)) for _, attack, result in told] == [("guess", Reconstruction), ("fail", str)]
    assert len(list((tmp_path / "reconstructions").iterdir())) == 1


def test_without_attacks_there_are_captures_only(tmp_path, told):
    directory_sink, pool = make(tmp_path, told)
    directory_sink.observe(tiny_observation())
    assert len(list((tmp_path / "captures").iterdir())) == 1
    assert pool.jobs == told == []


def test_attacks_may_wait_for_the_end(tmp_path, told):
    directory_sink, pool = make(tmp_path, told, GUESS, when="after")
    for client in (1, 0):
        directory_sink.observe(tiny_observation(client=client))
    assert pool.jobs == []
    directory_sink.drain()
    assert [update_id.client for update_id, _, _ in told] == [1, 0]
    directory_sink.drain()
    assert len(told) == 2, "once each"


def test_attacks_may_be_left_for_another_time(tmp_path, told):
    directory_sink, pool = make(tmp_path, told, GUESS, when="never")
    directory_sink.observe(tiny_observation())
    directory_sink.failed(UpdateId(2, 1), "update holds NaN")
    directory_sink.drain()
    assert len(list((tmp_path / "captures").iterdir())) == 1
    assert pool.jobs == []
    assert told == [(UpdateId(2, 1), "guess", "update holds NaN")], "of this there is no capture"


def test_a_reply_that_could_not_be_observed_is_a_result_of_every_attack(tmp_path, told):
    unseen = UpdateId(2, 1)
    make(tmp_path, told, GUESS, FAIL)[0].failed(unseen, "update holds NaN")
    assert told == [(unseen, "guess", "update holds NaN"), (unseen, "fail", "update holds NaN")]


def test_a_directory_with_captures_is_refused(tmp_path, told):
    make(tmp_path, told)[0].observe(tiny_observation())
    with pytest.raises(StrategyError, match="already holds captures"):
        make(tmp_path, told)


def test_wrong_arguments_are_refused_at_once(tmp_path):
    with pytest.raises(AttackError, match="budget"):
        DirectorySink(tmp_path, {GUESS: {"budget": 1}}, InlinePool())


def test_closing_releases_the_workers(tmp_path, told):
    directory_sink, pool = make(tmp_path, told)
    directory_sink.close()
    assert pool.closed


def test_results_are_logged_unless_taken(caplog):
    caplog.set_level("INFO")
    log_result(UpdateId(1, 2), "guess", "timeout after 3 s")
    log_result(UpdateId(1, 2), "guess", create(GUESS).reconstruct(tiny_observation(), 0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "round 1 client 2 guess: no reconstruction: timeout after 3 s" in caplog.text


class RefusingPool(InlinePool):
    """Gives every job a reason in the place of a result."""

    def __init__(self, *reasons: str) -> None:
        super().__init__()
        self.reasons = list(reasons)

    def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
        self.jobs.append(job)
        on_result(self.reasons.pop(0))


def captured(directory: Path) -> list[str]:
    return sorted(path.stem for path in (directory / "captures").glob("*"))


def test_a_capture_that_need_not_stay_is_there_until_its_last_attack_has_ended(tmp_path, told):
    there = []

    class Watching(InlinePool):
        def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
            there.append(job.capture.is_file())
            super().submit(job, on_result)

    sink = DirectorySink(
        tmp_path, {GUESS: {}, FAIL: {}}, Watching(), on_reconstruction=lambda *row: told.append(row), capture="none"
    )
    sink.observe(tiny_observation())
    assert there == [True, True]
    assert [attack for _, attack, _ in told] == ["guess", "fail"]
    assert captured(tmp_path) == []


@pytest.mark.parametrize(
    ("capture", "reasons", "stays"),
    [
        ("none", [POOL_CLOSED, "timeout after 3 s"], True),
        ("none", [QUEUE_FULL, "timeout after 3 s"], False),
        ("attacked", [QUEUE_FULL, "timeout after 3 s"], True),
        ("attacked", [QUEUE_FULL, QUEUE_FULL], False),
        ("attacked", [QUEUE_FULL, POOL_CLOSED], True),
        ("all", [QUEUE_FULL, QUEUE_FULL], True),
    ],
)
def test_what_becomes_of_the_attacks_decides_which_captures_stay(tmp_path, capture, reasons, stays):
    sink = DirectorySink(tmp_path, {GUESS: {}, FAIL: {}}, RefusingPool(*reasons), capture=capture)
    sink.observe(tiny_observation())
    assert bool(captured(tmp_path)) is stays


def test_a_run_that_goes_on_removes_captures_whose_attacks_had_ended(tmp_path, told):
    sink, _ = make(tmp_path, told, GUESS, FAIL, when="never")
    for client in (0, 1):
        sink.observe(tiny_observation(client=client))
    ended = [(UpdateId(1, 0), "guess"), (UpdateId(1, 0), "fail"), (UpdateId(1, 1), "fail")]
    sink, _ = make(tmp_path, told, GUESS, FAIL, ended=ended, capture="none")
    sink.attack_the_rest()
    assert [(update_id.client, attack) for update_id, attack, _ in told] == [(1, "guess")]
    assert captured(tmp_path) == []


def test_updates_that_are_not_chosen_are_captured_and_not_attacked(tmp_path, told):
    sink, _ = make(tmp_path, told, GUESS, chosen=lambda update_id: update_id.client == 1)
    for client in (0, 1):
        sink.observe(tiny_observation(client=client))
    sink.failed(UpdateId(2, 0), "update holds NaN")
    assert [update_id.client for update_id, _, _ in told] == [1]
    assert len(captured(tmp_path)) == 2


def test_captures_take_no_more_room_than_they_may(tmp_path, told):
    make(tmp_path / "one", told)[0].observe(tiny_observation())
    size = next((tmp_path / "one").rglob("*.safetensors")).stat().st_size
    said: list[str] = []
    options = {"when": "never", "max_disk": 2 * size + 1, "say": said.append}
    sink, _ = make(tmp_path / "run", told, GUESS, **options)
    for client in range(4):
        sink.observe(tiny_observation(client=client))
    assert captured(tmp_path / "run") == ["round-0001-client-0000", "round-0001-client-0001"]
    assert [(update_id.client, reason.partition(" = ")[0]) for update_id, _, reason in told] == [
        (2, "not captured: captures fill max_disk"),
        (3, "not captured: captures fill max_disk"),
    ]
    assert len(said) == 1
    assert said[0].startswith("round 1 client 2: not captured: captures fill max_disk = ")
    told.clear()
    make(tmp_path / "run", told, GUESS, ended=(), **options)[0].observe(tiny_observation(client=5))
    assert [update_id.client for update_id, _, _ in told] == [5], "what was there before counts"


def test_room_that_a_removed_capture_took_is_free_again(tmp_path, told):
    size = tiny_observation().nbytes
    sink, _ = make(tmp_path, told, GUESS, capture="none", max_disk=2 * size)
    for client in range(4):
        sink.observe(tiny_observation(client=client))
    assert [type(result) for _, _, result in told] == [Reconstruction] * 4


def test_not_even_the_header_of_a_file_goes_beyond_the_room(tmp_path, told):
    sink, _ = make(tmp_path, told, GUESS, max_disk=tiny_observation().nbytes + 1)
    sink.observe(tiny_observation())
    assert captured(tmp_path) == []
    assert len(told) == 1
