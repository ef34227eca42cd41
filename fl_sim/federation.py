"""Runs a federation on Ray, on this machine or on an existing cluster.

Flower starts as many client actors as fit the cluster, so the share of the attack workers is reserved first: they ask
for the custom resource ``attack`` and no CPU, and the GPUs are split between clients and attack workers.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.app.exception import AppExitException
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_sim.config import FederationSettings, Settings, SettingsError
from fl_sim.errors import one_line
from fl_sim.repeatable_grid import FederationError, NumberedGrid

CONNECT_SECONDS = 10.0
"""How long an existing cluster may take to accept a connection."""


@dataclass(frozen=True)
class AttackResources:
    """What is reserved for attack workers: how many there are, and the share of a GPU that each takes."""

    workers: int = 0
    gpus_per_worker: float = 0.0


def clients_at_once(federation: FederationSettings, cpus: int) -> int:
    """How many clients train side by side on so many processors, if there are GPUs enough."""
    return min(federation.clients_per_round or federation.clients, max(1, int(cpus / federation.client_cpus)))


def split_resources(settings: Settings, cpus: int, gpus: int, attack: AttackResources) -> tuple[int, float]:
    """How many client actors run at once, and the share of a GPU each gets, on a machine with ``cpus`` and ``gpus``.

    There are at most as many actors as clients train in a round, because each spends seconds on importing torch. With
    ``federation.client_gpus`` unset, the actors share the GPUs that the attack workers leave.

    Raises:
        SettingsError: if the attack workers need more GPUs than there are, or leave less than a client asks for.
    """
    federation = settings.federation
    actors = clients_at_once(federation, cpus)
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
    """SettingsError if this machine has too few GPUs for the settings, or nothing listens at ``ray.address``."""
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
    check_cluster: Callable[[], None] | None = None,
) -> None:
    """Run both apps to the end on Ray, and shut Ray down.

    ``check_cluster`` is called once an existing cluster was joined, before its clients start.

    Raises:
        SettingsError: if there are too few GPUs for the settings, or there is no cluster at ``ray.address``.
        FederationError: if the backend fails.
        Exception: whatever the ServerApp raised.
    """
    import ray

    # Imported late: it loads half of Flower, which the command line's help and the clients do not need.
    from flwr.simulation import run_simulation
    from flwr.simulation.ray_transport.ray_actor import ClientAppActor

    from fl_sim.flower_simulation import simulation

    # To Ray, an actor that Flower terminates has died: that must not be retried (see _RESTARTS).
    ClientAppActor.__ray_metadata__.method_meta.max_task_retries["terminate"] = 0  # type: ignore[attr-defined]
    if not verbose:
        # An error is raised once; Flower would also log the traceback of every client.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    guard = _Guard(server_app)
    try:
        with _own_signal_handler():
            client_resources = _start_ray(settings, attack, verbose)
        if settings.ray.address and check_cluster is not None:
            check_cluster()
        with simulation(guard.partitions, guard.ended):
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
        guard.ended.set()
        guard.stopped.set()
        ray.shutdown()
    if guard.failure:
        raise guard.failure


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Restore the process's handler of SIGTERM once Ray has started.

    Ray replaces the handler twice while it starts: in Python by one that exits silently, in C++ by one that prints a
    stack trace. A SIGTERM that reaches the former is raised again for the restored handler.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
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
    """Start or join Ray before Flower does; returns the resources that each client actor asks for."""
    import ray

    logs: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if settings.ray.address:
        try:
            _check_reachable(settings.ray.address)
            with _without_future_warnings():
                ray.init(address=settings.ray.address, **logs)
        except (OSError, ValueError) as error:
            raise SettingsError(f"ray.address = {settings.ray.address!r}: {one_line(str(error))}") from error
        total = ray.cluster_resources()
        _check_a_client_fits(settings)
        _, client_gpus = split_resources(settings, int(total.get("CPU", 1)), int(total.get("GPU", 0)), attack)
        return {"num_cpus": settings.federation.client_cpus, "num_gpus": client_gpus}
    gpus = torch.cuda.device_count()
    actors, client_gpus = split_resources(settings, os.cpu_count() or 1, gpus, attack)
    # Flower starts one actor per client's share of the CPUs. To Ray a CPU is only a number: one stands for one actor.
    with _without_future_warnings():
        ray.init(
            num_cpus=actors,
            num_gpus=gpus,
            resources={"attack": attack.workers} if attack.workers else None,
            include_dashboard=False,
            **logs,
        )
    return {"num_cpus": 1, "num_gpus": client_gpus}


@contextmanager
def _without_future_warnings() -> Iterator[None]:
    """Ray warns those who start or join it of what it will do in later versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _check_a_client_fits(settings: Settings) -> None:
    """SettingsError if no node of the cluster has the processors that a client asks for."""
    import ray

    most = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if settings.federation.client_cpus > most:
        raise SettingsError(
            f"federation.client_cpus = {settings.federation.client_cpus:g}: no node of the cluster has more than "
            f"{most:g} CPUs; allowed: at most that"
        )


def _check_reachable(address: str) -> None:
    """OSError if nothing listens there; Ray itself would try for minutes. Addresses without a port are left to Ray."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


# Flower passes these to Ray as options of its client actors. Ray restarts a dead process. The messages that wait for it
# need a retry, or they would fail at once; _Supervised refuses the retry of the message that the process died of.
_RESTARTS = {"max_restarts": -1, "max_task_retries": 1}


class _Supervised(ClientApp):
    """A ClientApp whose process may die or hang without harm to the other clients.

    The message that the process was working on is not retried: the round goes on without that client. A process that
    works on one message for more than ``limit`` seconds ends itself. Messages of an earlier round are refused.
    """

    def __init__(self, client_app: ClientApp, limit: float) -> None:
        super().__init__()
        self.client_app, self.limit = client_app, limit

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer the message, unless a process died of it before."""
        if _attempts_before():
            raise FederationError(f"the client's process died, or was ended after {self.limit:g} s")
        if time.time() > message.metadata.created_at + message.metadata.ttl:
            raise FederationError("asked in an earlier round, which did not wait")
        # Its timer is in C, so it ends the process even if Python hangs.
        faulthandler.dump_traceback_later(self.limit, exit=True)
        try:
            return self.client_app(message, context)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _attempts_before() -> int:
    """How often the task that this process works on was begun before, in processes that died."""
    from ray._private.worker import global_worker

    return global_worker.core_worker.get_current_task_attempt_number()  # type: ignore[attr-defined]  # set once connected


@dataclass
class _Guard:
    """Keeps what a ServerApp raised in Flower's thread, and ends that thread when the backend is gone."""

    inner: ServerApp
    failure: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    partitions: dict[int, int] = field(default_factory=dict)
    """Node id -> partition index, once Flower has registered the clients."""

    def server_app(self) -> ServerApp:
        guarded = ServerApp()

        @guarded.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                self.inner(_StoppableGrid(grid, self.stopped, self.partitions), context)
            except AppExitException as error:  # Flower's own, of strategies that cannot go on
                self.failure = FederationError(f"{type(error).__name__}: {one_line(error)}")
            except BaseException as error:
                self.failure = error
            finally:
                self.ended.set()

        return guarded


class _StoppableGrid(NumberedGrid):
    """Raises at the next poll after the backend has stopped; else the ServerApp's thread would wait for ever."""

    def __init__(self, grid: Grid, stopped: threading.Event, numbers: Mapping[int, int]) -> None:
        super().__init__(grid, numbers)
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
