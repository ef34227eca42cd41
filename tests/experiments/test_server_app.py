import pytest

from experiments.server_app import FLOWERS_OWN, _overrides
from fl_sim.config import SettingsError


def test_overrides_are_split_as_a_shell_splits_words() -> None:
    assert _overrides("seed=3 data.path='my photos'") == ["seed=3", "data.path=my photos"]


@pytest.mark.parametrize("key", FLOWERS_OWN)
def test_what_flower_decides_is_refused(key: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{key}=2: under flwr run Flower starts the clients; allowed: {key} unset"
    ):
        _overrides(f"seed=3 {key}=2")


def test_an_open_quote_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"overrides = .*: No closing quotation"):
        _overrides("data.path='my photos")
