"""The ServerApp in docs/strategies.md, run as it stands; only the attack and its workers are replaced by quick ones."""

import pytest

from attacks.registry import ATTACKS
from strategies import honest_but_curious
from tests.pages.pages import pages
from tests.strategies.stub_federation import NODES, StubGrid, client_of
from tests.strategies.test_sink import GUESS, InlinePool


@pytest.fixture
def code():
    [block] = pages()["docs/strategies.md"].of_kind("python")
    return block.text


def test_the_example_is_short(code):
    assert len(code.splitlines()) < 40


def test_the_example_attacks_every_client_in_every_round(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ATTACKS.built_in, "residual", GUESS)
    monkeypatch.setattr(honest_but_curious, "AttackPool", lambda _workers: InlinePool())
    example: dict[str, object] = {}
    exec(code, example)
    example["main"](StubGrid(client_of("weights")), None)
    names = {file.name for file in (tmp_path / "leakage" / "captures").iterdir()}
    assert names == {f"round-{r:04d}-client-{c:04d}.safetensors" for r in (1, 2, 3) for c in range(len(NODES))}
    assert len(list((tmp_path / "leakage" / "reconstructions").iterdir())) == len(names)
