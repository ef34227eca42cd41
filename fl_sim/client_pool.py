"""Flower's pool of client processes, for clusters whose machines may go.

Flower waits for a process for ever. If the machine of one has gone and no other has room for it, Ray does not start
it again. Its message then goes to another process, and it is left out until it is there again. The same holds for a
process that is killed a second time before it has taken its message up again.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from ray.exceptions import ActorUnavailableError

from fl_sim.repeatable_grid import FederationError

PATIENCE = 30.0
"""Seconds that a process may take to be started again before its message goes to another one."""

_POLL = 0.05
_ASK_EVERY = 5.0


class ClientPool(BasicActorPool):
    """Waits no longer for a client's reply than the server does, and not at all for a process that cannot come back.

    Attributes:
        ended: set when the server has gone. If the cluster has no free resources, the clients' processes never start.
    """

    ended: threading.Event

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[Any, tuple[Callable[..., Any], Any]] = {}
        self._without_place: list[Any] = []
        self._taking = threading.Lock()

    def submit(self, actor_fn: Callable[..., Any], job: Any) -> Any:
        """Give the job to an idle process, once there is one; returns the future of its reply."""
        actor = self._idle_actor()
        future = actor_fn(actor, *job)
        self._future_to_actor[future] = actor
        self._jobs[future] = (actor_fn, job)
        return future

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Message, Context]:
        """The client's reply, and the client's context after it.

        Raises:
            FederationError: if the server has gone meanwhile.
        """
        actor_fn, job = self._jobs.pop(future)
        try:
            answer = future if self._wait(future) else self._move(future, actor_fn, job)
            _, reply, context = ray.get(answer)
        except ActorUnavailableError:  # its machine does not answer, or it was killed twice for one message
            _, reply, context = ray.get(self._move(future, actor_fn, job))
        self.add_actor_back_to_pool(future)
        return reply, context

    def _wait(self, future: Any) -> bool:
        """Wait for the reply; False if the process has no place any more."""
        missed: float | None = None
        asked = time.monotonic()
        while not ray.wait([future], timeout=1.0)[0]:
            self._check_server()
            if (now := time.monotonic()) - asked < _ASK_EVERY:
                continue
            asked = now
            missed = (missed or now) if _is_restarting(self._future_to_actor[future]) else None
            if missed is not None and now - missed > PATIENCE:
                return False
        return True

    def _move(self, future: Any, actor_fn: Callable[..., Any], job: Any) -> Any:
        """Give the job to another process, or to the same one if that is back before another is idle."""
        with self._taking:
            self._without_place.append(self._future_to_actor[future])
        actor = self._idle_actor()
        self._future_to_actor[future] = actor
        answer = actor_fn(actor, *job)
        while not ray.wait([answer], timeout=1.0)[0]:
            self._check_server()
        return answer

    def _idle_actor(self) -> Any:
        """Take an idle process out of the pool; waits until there is one."""
        asked = 0.0
        while True:
            with self._taking:
                if self._without_place and time.monotonic() - asked > _ASK_EVERY:
                    asked = time.monotonic()
                    back = [actor for actor in self._without_place if not _is_restarting(actor)]
                    self.pool[:0] = back
                    self._without_place = [actor for actor in self._without_place if actor not in back]
                if self.pool:
                    return self.pool.pop()
            self._check_server()
            time.sleep(_POLL)

    def _check_server(self) -> None:
        if self.ended.is_set():
            raise FederationError("the server has gone")


def _is_restarting(actor: Any) -> bool:
    """Whether Ray is to start the process again, which it does as soon as a machine has room for it."""
    from ray._private import state

    found = state.actors(actor._actor_id.hex())
    return bool(found) and found["State"] == "RESTARTING"
