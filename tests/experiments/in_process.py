"""A whole run with its clients and its attacks in this process, where the real one would start Ray."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import ServerApp
from rich.console import Console

from attacks.observation import Observation
from attacks.registry import create
from attacks.workers import Counts, Job, Result
from experiments.experiment import prepare
from experiments.launch import build_server_app
from experiments.progress import run_progress
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.sweep.processes import Task, carry_out
from fl_sim.client_app import build_client_app
from fl_sim.config import Settings
from fl_sim.errors import UserError
from fl_sim.local_grid import Client
from fl_sim.repeatable_grid import FederationError
from fl_sim.wire import CONFIG, ROUND
from tests.fl_sim.federations import LocalGrid


class PoolInThisProcess:
    """Does every job at once."""

    def __init__(self, workers: int, **_: Any) -> None: ...

    def warm_up(self) -> None: ...

    def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
        try:
            on_result(create(job.attack, job.arguments).reconstruct(Observation.load(job.capture), job.seed))
        except RuntimeError as error:
            on_result(" ".join(str(error).split()))

    def counts(self) -> Counts:
        return Counts()

    def drain(self) -> None: ...

    def close(self) -> None: ...


class ObserverInThisThread(ThreadPoolExecutor):
    """Does at once what the strategy would do beside the clients' training.

    Clients and attacks share torch's global generator here, which a real run has in processes of their own: attacks
    beside the training would change its dropout masks.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def federation_in_process(server_app: ServerApp, client_app: Client, settings: Settings, *_: Any, **__: Any) -> None:
    """What ``fl_sim.federation.run_federation`` does on Ray."""
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server_app(LocalGrid(client_app, settings.federation.clients), context)


def in_turn(
    tasks: Sequence[Task], jobs: int, begun: Callable[[Task], None], work: Callable[[Task], None]
) -> Iterator[tuple[Task, str | None]]:
    """What ``experiments.sweep.processes.side_by_side`` does in processes."""
    for task in tasks:
        begun(task)
        try:
            carry_out(task)
            yield task, None
        except (UserError, FederationError) as error:
            yield task, str(error)


@contextmanager
def without_ray() -> Iterator[None]:
    """Federations that the command line starts, and the attacks on them, run in this process meanwhile."""
    with (
        patch("experiments.sweep.processes.side_by_side", in_turn),
        patch("experiments.launch.run_federation", federation_in_process),
        patch("strategies.honest_but_curious.ThreadPoolExecutor", ObserverInThisThread),
        patch("experiments.launch.AttackPool", PoolInThisProcess),
        patch("experiments.attack_later.AttackPool", PoolInThisProcess),
    ):
        yield


def run_in_process(path: Path, settings: ExperimentSettings, client: Client | None = None) -> RunDirectory:
    """Run a federation into ``path``; ``client`` answers in the place of the ClientApp."""
    experiment = prepare(settings)
    settings = experiment.settings
    directory = RunDirectory.create(path, settings)
    with without_ray(), run_progress(experiment, directory, Console(quiet=True)) as display:
        server_app = build_server_app(experiment, directory, display)
        federation_in_process(server_app, client or build_client_app(settings), settings)
    return directory


class Tape:
    """Keeps the clients' train replies by round and client, or plays them back."""

    def __init__(self, settings: ExperimentSettings, recorded: "Tape | None" = None) -> None:
        self.honest: Client = build_client_app(settings)
        self.replies = recorded.replies if recorded else {}
        self.plays_back = recorded is not None

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":
            return self.honest(message, context)
        who = int(message.content.config_records[CONFIG][ROUND]), int(context.node_config["partition-id"])
        if not self.plays_back:
            self.replies[who] = deepcopy(self.honest(message, context).content)
        return Message(deepcopy(self.replies[who]), reply_to=message)


@dataclass(frozen=True)
class Recorded:
    """A run in this process, and the replies of its clients."""

    directory: RunDirectory
    tape: Tape


def record(path: Path, settings: ExperimentSettings) -> Recorded:
    """Run a federation into ``path`` and keep the clients' replies."""
    tape = Tape(settings)
    return Recorded(run_in_process(path, settings, tape), tape)
