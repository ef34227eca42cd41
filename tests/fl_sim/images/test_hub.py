from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import datasets
import pytest

from fl_sim.images.hub import cached_if_unreachable, is_hub_id


@contextmanager
def hub(status: int) -> Iterator[str]:
    """The address of a server that answers every request with ``status``."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "offline"), [(200, False), (401, False), (404, False), (502, True)])
def test_only_a_hub_that_does_not_answer_is_left_alone(
    status: int, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(status) as address:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
        with cached_if_unreachable():
            assert datasets.config.HF_HUB_OFFLINE is offline
    assert not datasets.config.HF_HUB_OFFLINE


def test_who_asked_for_offline_mode_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with hub(200) as address:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
        with cached_if_unreachable():
            assert datasets.config.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["some/digits", "a-b/c.d_e", "hf://datasets/some/digits", "buckets/some/digits/part"])
def test_ids_on_the_hub(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["digits", "./digits", "../digits", "/digits", "~/digits", "a/b/c", "some/", "a b/c"])
def test_paths_and_single_words_are_no_ids(name: str) -> None:
    assert not is_hub_id(name)
