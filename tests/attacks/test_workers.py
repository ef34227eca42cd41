import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError

from attacks import workers
from attacks.attack import AttackError, Reconstruction
from attacks.registry import create
from attacks.workers import AttackPool, Counts, Job
from tests.attacks.conftest import make_victim
from tests.attacks.toy_attacks import tiny_observation
from tests.own_networks import config, trusting

TOYS = "tests.attacks.toy_attacks"


class GatedSlot:
    """Stands in for a Ray worker: every job waits at the gate."""

    gate = threading.Event()

    def __init__(self, *_: object) -> None:
        self.closed = False

    def warm_up(self) -> bool:
        return True

    def run(self, job: Job) -> str:
        self.gate.wait(10)
        return "skipped: pool closed" if self.closed else f"ran {job.seed}"

    def close(self) -> None:
        self.closed = True
        self.gate.set()


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.setattr(workers, "_Slot", GatedSlot)
    monkeypatch.setattr(workers, "_ensure_ray", lambda: None)
    monkeypatch.setattr(GatedSlot, "gate", threading.Event())
    return GatedSlot.gate


def test_the_callers_thread_starts_ray_which_ends_with_its_thread(gate, monkeypatch):
    started = []
    monkeypatch.setattr(workers, "_ensure_ray", lambda: started.append(threading.current_thread()))
    pool = AttackPool()
    pool.submit(job(0), lambda _: None)
    gate.set()
    pool.close()
    assert started == [threading.current_thread()]


def test_a_worker_that_starts_while_the_pool_closes_is_let_go(monkeypatch):
    slot, cluster = workers._Slot(1, 0.0, 1.0), mock.MagicMock()
    cluster.cluster_resources.side_effect = lambda: slot.close() or {}
    monkeypatch.setattr(workers, "ray", cluster)
    with pytest.raises(AttackError, match="pool closed"):
        slot._started_actor()
    [started] = [call.args[0] for call in cluster.kill.call_args_list]
    assert started is cluster.remote.return_value.options.return_value.remote.return_value


def job(seed: int, capture: Path = Path("capture")) -> Job:
    return Job(capture, "guess", {}, seed)


def test_submitting_neither_waits_nor_reads_the_capture(gate):
    pool, results = AttackPool(2), []
    for seed in range(50):
        pool.submit(job(seed), results.append)
    assert not pool.drain(timeout=0.2)
    assert results == []
    assert pool.counts() == Counts(queued=48, running=2, done=0)
    gate.set()
    assert pool.drain(timeout=10)
    assert sorted(results) == sorted(f"ran {seed}" for seed in range(50))
    assert pool.counts() == Counts(done=50)
    pool.close()


def test_beyond_the_queue_limit_jobs_are_skipped(gate):
    pool, results = AttackPool(1, queue_limit=2), []
    pool.submit(job(0), results.append)
    while pool.counts().running < 1:
        time.sleep(0.01)
    for seed in (1, 2, 3):
        pool.submit(job(seed), results.append)
    assert results == ["skipped: queue full"]
    gate.set()
    pool.drain()
    assert results == ["skipped: queue full", "ran 0", "ran 1", "ran 2"]
    assert pool.counts() == Counts(done=4)
    pool.close()


def test_closing_gives_every_job_its_reason(gate):
    pool, results = AttackPool(1), []
    for seed in range(3):
        pool.submit(job(seed), results.append)
    pool.close()
    pool.submit(job(3), results.append)
    assert results == ["skipped: pool closed"] * 4
    assert pool.counts() == Counts(done=4)


def test_a_failing_callback_is_raised_when_drained_and_stops_no_other_job(gate):
    def fail(_: object) -> None:
        raise OSError("disk full")

    pool, results = AttackPool(1), []
    gate.set()
    pool.submit(job(0), fail)
    pool.submit(job(1), results.append)
    with pytest.raises(OSError, match="disk full"):
        pool.drain(timeout=10)
    assert results == ["ran 1"]
    pool.close()


def test_a_worker_without_a_place_leaves_its_jobs_to_the_others(monkeypatch):
    """Of two machines one dies with a job, and there is no place for its worker until another machine joins."""
    joined, did = threading.Event(), []

    class Slot:
        def __init__(self, *_: object) -> None:
            self.working, self.first = False, not did
            did.append(self)

        def warm_up(self) -> bool:
            self.working = self.first or self.lost == 0 or joined.is_set()
            return self.working

        lost = 0

        def run(self, job: Job) -> str:
            if not self.first and not joined.is_set():
                self.lost, self.working = 1, False
                raise RayActorError
            time.sleep(0.01)
            return "first" if self.first else "late"

        def close(self) -> None: ...

    monkeypatch.setattr(workers, "_Slot", Slot)
    monkeypatch.setattr(workers, "RESTART_PAUSE", 0.01)
    pool, results = AttackPool(2), []
    for _ in range(5):
        pool.submit(job(1), results.append)
    assert pool.drain(timeout=10)
    assert results == ["first"] * 5
    joined.set()
    while len(set(results)) == 1:
        pool.submit(job(1), results.append)
        assert pool.drain(timeout=10)
    assert set(results) == {"first", "late"}
    pool.close()


@pytest.mark.parametrize(("arguments", "message"), [({"workers": 0}, "^workers = 0"), ({"timeout": 0}, "^timeout = 0")])
def test_impossible_pools_are_refused(arguments, message):
    with pytest.raises(AttackError, match=message):
        AttackPool(**arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [(f"{TOYS}:Nothing", "cannot be imported"), ("no.module:X", "cannot be imported"), ("pathlib:Path", "no subclass")],
)
def test_a_dotted_path_that_leads_to_no_attack_is_refused(name, message):
    with pytest.raises(AttackError, match=message):
        create(name)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    path = tmp_path_factory.mktemp("captures") / "capture.safetensors"
    tiny_observation().save(path)
    return path


@pytest.mark.parametrize(("times", "becomes"), [(1, "found"), (2, "attack worker was killed twice: out of memory")])
def test_a_worker_that_ray_kills_for_its_memory_is_replaced_once(times, becomes, capture, monkeypatch):
    cluster, killed = (
        mock.MagicMock(**{"cluster_resources.return_value": {}}),
        OutOfMemoryError("1 worker(s) were killed; on 10.0.0.1:\n14180 python"),
    )
    cluster.get.side_effect = [answer for _ in range(times) for answer in ("cpu", killed)] + ["cpu", "found"]
    monkeypatch.setattr(workers, "ray", cluster)
    pool, results = AttackPool(1), []
    pool.submit(job(0, capture), results.append)
    assert pool.drain(10)
    assert results == [becomes]
    assert cluster.kill.call_count == times


@pytest.fixture(scope="module")
def _ray():
    ray.init(num_cpus=1, resources={"attack": 2}, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
class TestOnRay:
    """One pool for all: what one test does to its worker, the next one's job must survive."""

    @pytest.fixture(scope="class")
    def pool(self, _ray):
        pool = AttackPool(1, threads=2, timeout=180)
        yield pool
        pool.close()

    def run(self, pool: AttackPool, capture: Path, attack: str, **arguments: object) -> Reconstruction | str:
        results: list[Reconstruction | str] = []
        pool.submit(Job(capture, f"{TOYS}:{attack}", arguments, seed=5), results.append)
        assert pool.drain(timeout=400)
        assert len(results) == 1
        return results[0]

    def test_a_worker_finds_what_the_driver_would(self, pool, capture):
        result = self.run(pool, capture, "Guess")
        here = create(f"{TOYS}:Guess").reconstruct(tiny_observation(), seed=5)
        assert isinstance(result, Reconstruction)
        assert torch.equal(result.images, here.images)
        assert result.matching_loss == 2.0, "threads"
        assert result.device == "cpu"

    def test_failures_are_one_line(self, pool, capture):
        assert self.run(pool, capture, "Fail") == "RuntimeError: no luck today"
        assert "not a readable capture" in self.run(pool, Path("nowhere"), "Guess")
        assert "unknown argument" in self.run(pool, capture, "Guess", budget=1)

    def test_a_dead_worker_is_replaced_and_its_job_tried_again(self, pool, capture, tmp_path):
        result = self.run(pool, capture, "Die", graves=str(tmp_path), times=1)
        assert len(list(tmp_path.iterdir())) == 1
        assert isinstance(result, Reconstruction)

    def test_a_job_that_kills_every_worker_ends_in_a_reason(self, pool, capture, tmp_path):
        assert self.run(pool, capture, "Die", graves=str(tmp_path), times=9) == "attack worker died twice"
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_job_over_its_time_is_stopped_and_the_next_one_runs(self, capture):
        pool = AttackPool(1, timeout=45)
        assert self.run(pool, capture, "Sleep") == "timeout after 45 s"
        assert isinstance(self.run(pool, capture, "Guess"), Reconstruction)
        pool.close()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_worker_with_a_share_of_a_gpu_attacks_there(self, capture):
        pool = AttackPool(1, gpus_per_worker=0.5)
        result = self.run(pool, capture, "Guess")
        pool.close()
        assert isinstance(result, Reconstruction)
        assert result.device == "cuda"


def test_a_worker_builds_a_network_of_ones_own_where_it_was_told_to_trust_it(monkeypatch):
    monkeypatch.setattr(workers.os, "nice", lambda _: 0)
    named = "tests.own_networks:build"
    with trusting("build"):
        observation = make_victim(model_config=config("build")).observation
    with trusting():
        job = (observation, "residual", {"max_evaluations": 1}, 7, "cpu")
        refused = workers.AttackWorker(1, False, []).attack(*job)
        assert isinstance(refused, str)
        assert f"--trust '{named}'" in refused
        found = workers.AttackWorker(1, False, [named]).attack(*job)
        assert isinstance(found, Reconstruction)
        assert found.timesteps.tolist() == [400]


def test_workers_are_told_what_the_driver_trusts(monkeypatch):
    cluster = mock.MagicMock()
    cluster.cluster_resources.return_value = {}
    monkeypatch.setattr(workers, "ray", cluster)
    with trusting("build"):
        workers._Slot(3, 0.0, 1.0).warm_up()
    [started] = cluster.remote.return_value.options.return_value.remote.call_args_list
    assert started.args == (3, False, ["tests.own_networks:build"])
