"""A pool of Ray actors that attack captures beside the rounds of a federation.

A job is a few words: it names a capture file, which the driver reads only when a worker is free. So the queue may grow
without holding updates in memory, and submitting never waits. The worker gets the Observation, the attack's name and
arguments, its seed and the device, and nothing else; from its start it has the names of the factories whose networks it
may build, those that the driver trusts.
"""

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

from attacks.attack import AttackError, Reconstruction
from attacks.observation import Observation
from attacks.registry import create
from fl_sim import network
from fl_sim.errors import explain

logger = logging.getLogger(__name__)

RESOURCE = "attack"
"""Ray resource that a cluster sets aside for attack workers; where it has none, workers go without."""

START_LIMIT = 120.0
"""Seconds that a worker may take to start."""

TRIES = 2
"""How often a job is begun: the death of a worker, or of its machine, is forgiven once."""

RESTART_PAUSE = 1.0
"""Seconds between two attempts to start a worker."""

CLOSE_LIMIT = 10.0
"""Seconds that closing waits for the threads of the pool, which have only to notice that their workers are gone."""

Result = Reconstruction | str
"""What becomes of a job: a reconstruction, or the reason in one line why there is none."""

DIED = "attack worker died twice"
OUT_OF_MEMORY = "attack worker was killed twice: out of memory"
"""Ray kills a worker where the machine runs out of memory; its own words would name the machine and its processes."""

_DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray raises where a worker is gone."""

POOL_CLOSED = "skipped: pool closed"
"""The reason of a job that had not ended when its pool was closed: it was never tried to the end."""

QUEUE_FULL = "skipped: queue full"
"""The reason of a job that nobody tried, because too many waited."""


@dataclass(frozen=True)
class Job:
    """One attack on one capture."""

    capture: Path
    attack: str
    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Counts:
    """How many jobs are in which state; ``done`` includes those that failed."""

    queued: int = 0
    running: int = 0
    done: int = 0


_GIVES_WAY = 10
"""Niceness of the workers: where cores are scarce the rounds come first, on which the clients are waiting."""


class AttackWorker:
    """The actor: an attack in a process of its own, with a fixed number of torch threads.

    ``trusted``: the factories of networks that it may import (fl_sim/network/factory.py).
    """

    def __init__(self, threads: int, on_gpu: bool, trusted: list[str]) -> None:
        if hasattr(os, "nice"):  # not on Windows
            os.nice(_GIVES_WAY)
        torch.set_num_threads(threads)
        network.trust(trusted)
        self._on_gpu = on_gpu

    def device(self) -> str:
        """Where attacks run here: on the CPU unless a GPU was both granted and found."""
        return "cuda" if self._on_gpu and torch.cuda.is_available() else "cpu"

    def attack(self, observation: Observation, name: str, arguments: dict[str, Any], seed: int, device: str) -> Result:
        """Run one attack; whatever goes wrong in it is returned as the reason."""
        try:
            return create(name, arguments).reconstruct(observation, seed, device)
        except Exception as error:
            return explain(error)


class AttackPool:
    """Runs attack jobs on a fixed number of Ray actors.

    Ray is used as it is found, or started at the first job, by the caller's thread, with which it ends on Linux. Every
    job ends in exactly one call of its ``on_result``, with a Reconstruction or with the reason why there is none; the
    calls come from the threads of the pool, several at a time, but for jobs that are refused. A worker that dies is
    replaced, and its job is tried once more by whoever is free; one that overruns the time limit is killed and
    replaced. A worker for which the cluster has no place, as long as too few machines are there, waits for one while
    the others do its share.

    Args:
        workers: number of actors.
        threads: torch threads in each.
        gpus_per_worker: share of a GPU for each; attacks run on the CPU if 0.
        timeout: seconds that one job may take, not counting the worker's start. No limit if None.
        queue_limit: most jobs that may wait; further ones are skipped. No limit if None.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        threads: int = 1,
        gpus_per_worker: float = 0.0,
        timeout: float | None = 600.0,
        queue_limit: int | None = None,
    ) -> None:
        if workers < 1:
            raise AttackError(f"workers = {workers}: must be at least 1")
        if timeout is not None and timeout <= 0:
            raise AttackError(f"timeout = {timeout}: must be above 0 seconds")
        self._slots = [_Slot(threads, gpus_per_worker, timeout) for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[Result], None], int] | None] = queue.SimpleQueue()
        self._queue_limit = queue_limit
        self._counts = Counts()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None

    def warm_up(self) -> None:
        """Start the workers now instead of at the first job; returns at once.

        Under Flower's simulation, call it only once a client has answered: Flower starts Ray itself and must be first.
        """
        with self._changed:
            self._start_threads()

    def _start_threads(self) -> None:
        """The caller holds ``_changed``, so that no job is queued for threads that ``close`` has kept from starting."""
        if self._threads or self._closed:
            return
        with suppress(Exception):  # the workers try it once more, and say what is wrong
            _ensure_ray()  # not by a thread of the pool: on Linux Ray's processes end with the thread that started them
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in self._slots]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
        """Queue a job and return at once; a full or closed queue calls ``on_result`` with the reason right here."""
        with self._changed:
            full = self._queue_limit is not None and self._counts.queued >= self._queue_limit
            refusal = POOL_CLOSED if self._closed else QUEUE_FULL if full else None
            if refusal:
                self._count(done=1)
            else:
                self._count(queued=1)
                self._jobs.put((job, on_result, 1))
                self._start_threads()
        if refusal:
            on_result(refusal)

    def counts(self) -> Counts:
        """The state of the queue, for a progress display."""
        return self._counts

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every job has ended, at most ``timeout`` seconds; False if some have not.

        Raises:
            Exception: whatever an ``on_result`` raised first; the jobs after it were run all the same.
        """
        with self._changed:
            ended = self._changed.wait_for(lambda: not (self._counts.queued or self._counts.running), timeout)
        if self._failure is not None:
            raise self._failure
        return ended

    def close(self) -> None:
        """Release the workers; jobs that have not ended get ``skipped: pool closed``. Harmless when repeated."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        for slot in self._slots:
            slot.close()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(CLOSE_LIMIT)

    def _serve(self, slot: "_Slot") -> None:
        self._start(slot)
        while (item := self._jobs.get()) is not None:
            job, on_result, begun = item
            with self._changed:
                self._count(queued=-1, running=1)
            try:
                result = slot.run(job)
            except _DEATHS as error:
                if self._queue_again(job, on_result, begun):
                    self._start(slot)
                    logger.warning("attack worker died during %s on %s: tried again", job.attack, job.capture.name)
                    continue
                died = OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else DIED
                result = POOL_CLOSED if self._closed else died
            try:
                on_result(result)
            except Exception as error:  # a full disk, say: ``drain`` raises the first
                self._failure = self._failure or error
            with self._changed:
                self._count(running=-1, done=1)

    def _start(self, slot: "_Slot") -> None:
        """Start the slot's worker; while there is no place for it, the jobs are left to the others."""
        while not slot.warm_up() and not self._closed and any(other.working for other in self._slots):
            time.sleep(RESTART_PAUSE)

    def _queue_again(self, job: Job, on_result: Callable[[Result], None], begun: int) -> bool:
        """Queue a job again whose worker died; False if that happened too often, or the pool is closed."""
        with self._changed:
            if begun >= TRIES or self._closed:
                return False
            self._jobs.put((job, on_result, begun + 1))
            self._count(running=-1, queued=1)
            return True

    def _count(self, queued: int = 0, running: int = 0, done: int = 0) -> None:
        """Move jobs between states; the caller holds ``_changed``."""
        counts = self._counts
        self._counts = replace(
            counts, queued=counts.queued + queued, running=counts.running + running, done=counts.done + done
        )
        self._changed.notify_all()


class _Slot:
    """One place in the pool: the actor that works there, and its successors."""

    _starting = threading.Lock()

    def __init__(self, threads: int, gpus: float, timeout: float | None) -> None:
        self._threads, self._gpus, self._timeout = threads, gpus, timeout
        self._actor: Any = None
        self._device = "cpu"
        self._reserved: dict[str, float] | None = None
        self._closed = False
        self.working = False
        """Whether its actor has started, as far as is known."""

    def warm_up(self) -> bool:
        """Start the actor ahead of its first job, which meets and reports what goes wrong here; whether it started."""
        try:
            self._started_actor()
        except Exception as error:
            died = isinstance(error, _DEATHS)  # Ray's own words name the machine and its processes
            logger.warning("attack worker did not start: %s", "its process died" if died else explain(error))
            self._discard()
        return self.working

    def run(self, job: Job) -> Result:
        """The job's result; one of _DEATHS if the worker died of it, or before."""
        if self._closed:
            return POOL_CLOSED
        try:
            return self._attack(Observation.load(job.capture), job)
        except _DEATHS:
            self._discard()
            raise
        except Exception as error:  # an unreadable capture, a lost cluster: this job's reason, not the pool's end
            return explain(error)

    def close(self) -> None:
        """Kill the actor and start no other."""
        self._closed = True
        self._discard()

    def _attack(self, observation: Observation, job: Job) -> Result:
        actor = self._started_actor()
        reply = actor.attack.remote(observation, job.attack, job.arguments, job.seed, self._device)
        try:
            return ray.get(reply, timeout=self._timeout)
        except GetTimeoutError:
            self._discard()
            return f"timeout after {self._timeout:g} s"

    def _started_actor(self) -> Any:
        if self._closed:
            raise AttackError(POOL_CLOSED)
        if self._actor is None:
            with self._starting:
                _ensure_ray()
                if self._reserved is None:  # for good: the machine that has the resource may go, and another one come
                    self._reserved = {RESOURCE: 1} if ray.cluster_resources().get(RESOURCE, 0) >= 1 else {}
            # num_cpus=0: Flower's client actors take all CPUs, and a worker that asked for one would wait for ever.
            remote = ray.remote(AttackWorker).options(num_cpus=0, num_gpus=self._gpus, resources=self._reserved)
            self._actor = remote.remote(self._threads, self._gpus > 0, network.trusted())
            try:
                self._device = ray.get(self._actor.device.remote(), timeout=START_LIMIT)
            except GetTimeoutError as error:
                self._discard()
                raise AttackError(f"no attack worker started within {START_LIMIT:g} s") from error
            if self._closed:  # while it started
                self._discard()
                raise AttackError(POOL_CLOSED)
            self.working = True
        return self._actor

    def _discard(self) -> None:
        actor, self._actor, self.working = self._actor, None, False
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


def _ensure_ray() -> None:
    """Join the Ray that runs here, or the cluster of RAY_ADDRESS, or start one."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Ray, to those who start it
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
