import re
import subprocess
import sys
from typing import Any

import psutil
import pytest
import torch

from attacks import memory
from attacks.attack import AttackError
from attacks.memory import MIB, estimate_memory
from attacks.registry import create
from fl_sim import diffusion, network
from tests.attacks.conftest import MODEL, Victim, make_victim
from tests.attacks.toy_attacks import Guess, tiny_observation
from tests.own_networks import config, trusting


def touched(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB // 4)


def test_the_peak_is_that_of_the_block_and_not_of_what_the_process_did_before() -> None:
    """In a process of its own: one that has run many tests has freed memory to give out again."""
    code = (
        "import psutil\n"
        "from attacks.memory import MIB, SAMPLED_EVERY, PeakMemory\n"
        "from tests.attacks.test_memory import touched\n"
        "large = touched(300)\n"
        "del large\n"
        "before = psutil.Process().memory_info().rss / MIB\n"
        "with PeakMemory('cpu') as peak:\n"
        "    medium = touched(100)\n"
        "    peak._done.wait(5 * SAMPLED_EVERY)\n"
        "    del medium\n"
        "print(peak.mib - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 90 < float(done.stdout) < 200


def test_every_reconstruction_tells_its_peak() -> None:
    assert Guess().reconstruct(tiny_observation(), seed=1).peak_memory == pytest.approx(
        psutil.Process().memory_info().rss / MIB, rel=0.2
    )


def test_an_attack_that_would_not_fit_says_so_before_it_starts(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = create("residual")
    needed = estimate_memory(victim.observation, attack.update_copies, attack.curvature_pairs)
    monkeypatch.setattr("attacks.attack.InversionProblem", None)
    monkeypatch.setattr("attacks.attack.available_memory", lambda _: needed - 1)
    line = (
        rf"^attack 'residual' needs about {needed:.0f} MiB of memory on cpu, {needed - 1:.0f} MiB are left; allowed: "
    )
    with pytest.raises(AttackError, match=line) as caught:
        attack.reconstruct(victim.observation, seed=1)
    assert not re.search("\n", str(caught.value))


def test_the_estimate_counts_weights_update_activations_and_history() -> None:
    one, four = (make_victim(timesteps).observation for timesteps in ((400,), (400, 300, 200, 100)))
    parameters = sum(value.numel() for value in one.weights.values())
    update = 4 * parameters / MIB
    assert estimate_memory(one, 12, 0) - estimate_memory(one, 2, 0) == pytest.approx(10 * update)
    assert estimate_memory(one, 0, 10) - estimate_memory(one, 0, 0) == pytest.approx(10 * 2 * 2 * 4 * 3 * 8 * 8 / MIB)
    activations = [estimate_memory(seen, 0, 0) - memory.SMALL_THINGS - update for seen in (one, four)]
    assert 3 * activations[0] < activations[1] < 4.1 * activations[0]


@pytest.mark.parametrize("config", [MODEL, config("build"), config("labelled", num_class_embeds=10)], ids=str)
def test_activations_are_those_that_a_forward_pass_keeps(victim: Victim, config: dict[str, Any]) -> None:
    circumstances = victim.observation.circumstances.model_copy(update={"model": config})
    labels = torch.tensor([3]) if "num_class_embeds" in config else None
    kept = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with trusting("build", "labelled"):
        model = network.build_model(config)
        estimated = memory._kept_for_backward(circumstances, 1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        held = diffusion.predict(model, torch.zeros(1, 3, 8, 8, requires_grad=True), torch.tensor([400]), labels)
    assert held.requires_grad
    assert estimated == pytest.approx(sum(kept.values()), rel=0.05)
