import doctest
from importlib import import_module

import pytest

MODULES = [
    "fl_sim.diffusion.noise_schedule",
    "fl_sim.network.parameters",
    "fl_sim.draws",
    "attacks.model_inversion.arguments",
    "attacks.model_inversion.margin_loss",
    "attacks.model_inversion.pseudo_labels",
    "experiments.users",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_what_comes(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name))
    assert tried > 0
    assert failed == 0
