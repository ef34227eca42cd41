"""What becomes of a client's message if its process does not come back, with processes and futures made up."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from fl_sim import client_pool
from fl_sim.client_pool import ClientPool
from fl_sim.repeatable_grid import FederationError


class MadeUpPool(ClientPool):
    def __init__(self, *actors: str) -> None:
        self.pool, self._future_to_actor, self._jobs, self._without_place = list(actors), {}, {}, []
        self._taking, self.ended = threading.Lock(), threading.Event()


def ask(actor: str, number: int) -> tuple[str, int]:
    """The future of a reply."""
    return actor, number


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The processes that are gone."""
    gone: set[str] = set()

    def get(future: tuple[str, int]) -> Any:
        if future[0] in gone:
            raise ActorUnavailableError("no answer", None)
        return None, *future

    monkeypatch.setattr(client_pool.ray, "wait", lambda futures, **_: ([f for f in futures if f[0] not in gone], []))
    monkeypatch.setattr(client_pool.ray, "get", get)
    monkeypatch.setattr(client_pool, "_is_restarting", gone.__contains__)
    monkeypatch.setattr(client_pool, "_ASK_EVERY", 0.0)
    monkeypatch.setattr(client_pool, "PATIENCE", 0.0)
    return gone


def test_a_message_goes_to_another_process_if_its_own_has_no_place(lost: set[str]) -> None:
    pool = MadeUpPool("here", "gone")
    future = pool.submit(ask, (3,))
    lost.add("gone")
    assert pool.fetch_result_and_return_actor_to_pool(future) == ("here", 3)
    assert pool.pool == ["here"], "the other one is left out"
    lost.clear()
    assert pool.fetch_result_and_return_actor_to_pool(pool.submit(ask, (4,))) == ("here", 4)
    assert sorted(pool.pool) == ["gone", "here"], "until it is back"


def test_a_message_goes_to_another_process_if_its_own_does_not_answer(
    lost: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_pool.ray, "wait", lambda futures, **_: (futures, []))
    pool = MadeUpPool("here", "gone")
    lost.add("gone")
    assert pool.fetch_result_and_return_actor_to_pool(pool.submit(ask, (3,))) == ("here", 3)


def test_a_message_goes_to_its_own_process_again_if_that_is_back_and_there_is_no_other(
    lost: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_back(_: float) -> None:
        assert lost, "nobody is to be waited for any more"
        lost.clear()

    monkeypatch.setattr(client_pool.ray, "wait", lambda futures, **_: (futures, []))
    monkeypatch.setattr(client_pool.time, "sleep", be_back)
    pool = MadeUpPool("only")
    lost.add("only")
    assert pool.fetch_result_and_return_actor_to_pool(pool.submit(ask, (3,))) == ("only", 3)
    assert pool.pool == ["only"]


def test_nobody_is_waited_for_once_the_server_has_gone(lost: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pool, waits = MadeUpPool("gone"), []

    def wait(futures: list[object], timeout: float) -> tuple[list[object], list[object]]:
        waits.append(timeout)
        if len(waits) == 3:
            pool.ended.set()
        return [], futures

    monkeypatch.setattr(client_pool, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(client_pool, "PATIENCE", 60.0)
    future = pool.submit(ask, (1,))
    with pytest.raises(FederationError, match="the server has gone"):
        pool.fetch_result_and_return_actor_to_pool(future)
    assert len(waits) == 3
    with pytest.raises(FederationError, match="the server has gone"):
        pool.submit(ask, (2,))
