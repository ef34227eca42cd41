import torch
from torch import nn

from fl_sim.network import LocalOptimizer


def test_local_optimisers_are_torchs() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    sgd = LocalOptimizer(lr=0.5, momentum=0.9, weight_decay=0.1).build(parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.5, 0.9, 0.1)
    assert not LocalOptimizer(lr=0.5).adaptive
    adamw = LocalOptimizer(name="adamw", lr=0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    assert adamw.adaptive
    built = adamw.build(parameters)
    assert isinstance(built, torch.optim.AdamW)
    assert [built.defaults[key] for key in ("betas", "eps", "weight_decay")] == [(0.8, 0.9), 1e-3, 0.1]
    adam = LocalOptimizer(name="adam", lr=0.5, betas=(0.8, 0.9), eps=1e-3).build(parameters)
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.9), 1e-3)
