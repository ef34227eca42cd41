from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import torch

from fl_sim import registry
from fl_sim.config import SettingsError
from fl_sim.defences.defence import Update, UpdateDefence
from fl_sim.defences.registry import DEFENCES, create
from tests.fl_sim.defences.stub import RECIPES, flat, own_update, sent_update


class Halved(UpdateDefence):
    name = "halved"

    def protect(self, update: Update, generator: torch.Generator) -> Update:
        return {name: value / 2 for name, value in update.items()}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entry = EntryPoint("halved", f"{__name__}:Halved", "fl_sim.defences")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    registry.plugins.cache_clear()
    yield
    registry.plugins.cache_clear()


@pytest.mark.parametrize("name", DEFENCES.names())
def test_every_defence_goes_by_its_own_name_and_needs_no_argument(name: str) -> None:
    assert create(name).name == name
    assert DEFENCES.find(name).__doc__


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("topk", {}, r"unknown; available: clip-noise, .*; did you mean 'top-k'\?"),
        ("nonsense:Class", {}, "cannot be imported: ModuleNotFoundError: No module named 'nonsense'"),
        ("pathlib:Path", {}, r"no subclass of fl_sim\.defences\.defence\.Defence"),
        ("fl_sim.defences.defence:UpdateDefence", {}, "abstract, it lacks protect"),
        ("top-k", {"fraction": 0}, r"fraction = 0: input should be greater than 0"),
        ("top-k", {"fractoin": 0.1}, r"fractoin = 0\.1: .*top-k takes: fraction; did you mean 'fract"),
        ("secure-aggregation", {"k": 1}, "k = 1: unknown argument; secure-aggregation takes: none"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^defence '{name}': {message}") as caught:
        create(name, arguments)
    assert "\n" not in str(caught.value)


def test_what_came_from_settings_is_named_as_there() -> None:
    with pytest.raises(SettingsError, match=r"^defence\.name = 'topk': unknown"):
        create("topk", table="defence")
    with pytest.raises(SettingsError, match=r"^defence\.args\.fraction = 0: "):
        create("top-k", {"fraction": 0}, table="defence")


def test_a_third_partys_defence_is_found_by_its_entry_point(plugin: None) -> None:
    assert "halved" in DEFENCES.names()
    assert create("halved") == Halved()
    own = own_update(RECIPES["gradient"])
    torch.testing.assert_close(flat(sent_update("halved", RECIPES["gradient"], own)), flat(own) / 2)


def test_a_dotted_path_will_do() -> None:
    assert DEFENCES.find(f"{__name__}:Halved") is Halved


def test_without_a_defence_the_reply_is_not_touched() -> None:
    for recipe in RECIPES.values():
        own = own_update(recipe)
        torch.testing.assert_close(sent_update("none", recipe, own), own, rtol=1e-4, atol=1e-6)
    assert create("none").disclosure(RECIPES["gradient"]) == {}
