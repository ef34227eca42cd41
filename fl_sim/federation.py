"""Runs a federation on Ray, on this machine or on an existing cluster.

Flower starts as many client actors as fit the cluster, so the attack workers' share is set aside before: they ask for
the custom resource ``attack`` and no CPU, and the GPUs are split between both.
"""

import faulthandler
import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.app.exception import AppExitException
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_sim.config import Settings, SettingsError
from fl_sim.errors import one_line
from fl_sim.repeatable_grid import FederationError, GridProxy

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class AttackResources:
    """What is set aside for attack workers: how many, and the share of a GPU that each takes."""

    workers: int = 0
    gpus_per_worker: float = 0.0


def split_resources(settings: Settings, cpus: int, gpus: int, attack: AttackResources) -> tuple[int, float]:
    """How many client actors run at once, and the share of a GPU each gets, on a machine with ``cpus`` and ``gpus``.

    No more actors than clients train in a round: each pays for importing torch. With ``federation.client_gpus`` unset,
    the actors share what the attack workers leave of the GPUs.

    Raises:
        SettingsError: if the attack workers leave too little of the GPUs.
    """
    federation = settings.federation
    actors = min(federation.clients_per_round or federation.clients, max(1, int(cpus / federation.client_cpus)))
    left = gpus - attack.workers * attack.gpus_per_worker
    if left < 0:
        raise SettingsError(
            f"attack.gpus_per_worker = {attack.gpus_per_worker:g} for attack.workers = {attack.workers} is more than "
            f"the {gpus} GPUs there are"
        )
    if federation.client_gpus is None:
        return actors, min(1.0, math.floor(1e4 * left / actors) / 1e4)
    if federation.client_gpus > left:
        raise SettingsError(
            f"federation.client_gpus = {federation.client_gpus:g}: attack workers leave {left:g} of {gpus} GPUs; "
            "allowed: at most that"
        )
    if federation.client_gpus > 0:
        actors = min(actors, int(left / federation.client_gpus + 1e-9))
    return actors, federation.client_gpus


def check_resources(settings: Settings, attack: AttackResources = AttackResources()) -> None:
    """See that this machine can be split as asked, or that somebody listens at ``ray.address``; SettingsError else."""
    if settings.ray.address is None:
        split_resources(settings, os.cpu_count() or 1, torch.cuda.device_count(), attack)
        return
    try:
        _check_reachable(settings.ray.address)
    except (OSError, ValueError) as error:
        raise SettingsError(f"ray.address = {settings.ray.address!r}: {one_line(str(error))}") from error


def run_federation(
    server_app: ServerApp,
    client_app: ClientApp,
    settings: Settings,
    attack: AttackResources = AttackResources(),
    verbose: bool = False,
) -> None:
    """Run both apps to the end on Ray, which is shut down again before this returns.

    Raises:
        SettingsError: if the machine cannot be split as asked, or there is no cluster at ``ray.address``.
        FederationError: if the backend fails.
        Exception: whatever the ServerApp raised.
    """
    import ray

    # Imported late: it brings in half of Flower, which the command line's help and the clients do without.
    from flwr.simulation import run_simulation
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor

    # What Flower ends its actors with looks like a death to Ray: not that too is to be retried (see _RESTARTS).
    ClientAppActor.__ray_metadata__.method_meta.max_task_retries["terminate"] = 0  # type: ignore[attr-defined]
    if not verbose:
        # What goes wrong is raised, once; Flower would also log every client's traceback.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    guard = _Guard(server_app)
    BasicActorPool.fetch_result_and_return_actor_to_pool = _fetch_until(guard.ended)  # type: ignore[assignment]
    try:
        with _own_signal_handler():
            client_resources = _start_ray(settings, attack, verbose)
        run_simulation(
            guard.server_app(),
            _Supervised(client_app, settings.federation.client_timeout or settings.federation.timeout),
            num_supernodes=settings.federation.clients,
            backend_config={"client_resources": {**client_resources, **_RESTARTS}},
            verbose_logging=verbose,
        )
    except SettingsError:
        raise
    except Exception as error:
        raise guard.failure or FederationError(f"the simulation backend failed: {one_line(_root(error))}") from error
    finally:
        guard.stopped.set()
        ray.shutdown()
    if guard.failure:
        raise guard.failure


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Put the process's handler of SIGTERM back once Ray has started.

    Starting it replaces the handler twice: in Python by one that exits without a word, in C++ by one that prints a
    stack. A SIGTERM that meets the former is handed on.
    """
    if threading.current_thread() is not threading.main_thread():  # where nobody can set a handler
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _start_ray(settings: Settings, attack: AttackResources, verbose: bool) -> dict[str, float]:
    """Start or join Ray, before Flower would; returns what each client actor is to ask for."""
    import ray

    logs: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if settings.ray.address:
        try:
            _check_reachable(settings.ray.address)
            ray.init(address=settings.ray.address, **logs)
        except (OSError, ValueError) as error:
            raise SettingsError(f"ray.address = {settings.ray.address!r}: {one_line(str(error))}") from error
        total = ray.cluster_resources()
        _, client_gpus = split_resources(settings, int(total.get("CPU", 1)), int(total.get("GPU", 0)), attack)
        return {"num_cpus": settings.federation.client_cpus, "num_gpus": client_gpus}
    gpus = torch.cuda.device_count()
    actors, client_gpus = split_resources(settings, os.cpu_count() or 1, gpus, attack)
    # Flower starts one actor per client's share of the CPUs. Ray only keeps the books, so one CPU is one actor here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            num_cpus=actors,
            num_gpus=gpus,
            resources={"attack": attack.workers} if attack.workers else None,
            include_dashboard=False,
            **logs,
        )
    return {"num_cpus": 1, "num_gpus": client_gpus}


def _check_reachable(address: str) -> None:
    """OSError where nobody listens: Ray itself would try for minutes. Addresses without a port are for Ray to find."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


# Flower hands these on to Ray as options of its client actors. A dead process is started again, and what waits for it
# waits on: without the retry it would fail at once. _Supervised turns the retry of the work that died into an error.
_RESTARTS = {"max_restarts": -1, "max_task_retries": 1}


class _Supervised(ClientApp):
    """A ClientApp in whose process a client may die, or never end, without taking the other clients along.

    What it was at then is given up, not begun again: the round goes on without that client. A process that is at work
    on one message for ``limit`` seconds ends itself, and messages that nobody waits for any more are refused.
    """

    def __init__(self, client_app: ClientApp, limit: float) -> None:
        super().__init__()
        self.client_app, self.limit = client_app, limit

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer the message, unless it has cost a process before."""
        if _attempts_before():
            raise FederationError(f"the client's process died, or was ended after {self.limit:g} s")
        if time.time() > message.metadata.created_at + message.metadata.ttl:
            raise FederationError("asked in an earlier round, which did not wait")
        # From C, and so even where Python itself hangs.
        faulthandler.dump_traceback_later(self.limit, exit=True)
        try:
            return self.client_app(message, context)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _attempts_before() -> int:
    """How often Ray began the task that this process works on before, in processes that have died."""
    from ray._private.worker import global_worker

    return global_worker.core_worker.get_current_task_attempt_number()  # type: ignore[attr-defined]  # set once connected


def _fetch_until(ended: threading.Event) -> Callable[[Any, Any], tuple[Message, Context]]:
    """How Flower's actor pool is to wait for a client: no longer than there is a server, which Flower would.

    Where the cluster has nothing free, a client's process never starts.
    """
    import ray

    def fetch(pool: Any, future: Any) -> tuple[Message, Context]:
        while not ray.wait([future], timeout=1.0)[0]:
            if ended.is_set():
                raise FederationError("the server has gone")
        _, reply, context = ray.get(future)
        pool.add_actor_back_to_pool(future)
        return reply, context

    return fetch


@dataclass
class _Guard:
    """Keeps what a ServerApp raised in Flower's thread, and ends that thread when the backend is gone."""

    inner: ServerApp
    failure: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def server_app(self) -> ServerApp:
        guarded = ServerApp()

        @guarded.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                self.inner(_StoppableGrid(grid, self.stopped), context)
            except AppExitException as error:  # Flower's own, of strategies that cannot go on
                self.failure = FederationError(f"{type(error).__name__}: {one_line(error)}")
            except BaseException as error:
                self.failure = error
            finally:
                self.ended.set()

        return guarded


class _StoppableGrid(GridProxy):
    """Raises at the next poll once the backend is gone: no reply will come, and the thread would outlive the run."""

    def __init__(self, grid: Grid, stopped: threading.Event) -> None:
        super().__init__(grid)
        self.stopped = stopped

    def get_node_ids(self) -> Iterable[int]:
        self._check()
        return super().get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._check()
        return super().pull_messages(message_ids)

    def _check(self) -> None:
        if self.stopped.is_set():
            raise FederationError("the simulation backend has stopped")


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error
