import pytest
import torch

from attacks.registry import create
from attacks.trace import Trace
from tests.attacks.conftest import Victim

SHORT = {
    "dlg": {"max_evaluations": 40},
    "gidm": {},
    "gidm-plus": {},
    "gradient-guided-finetuning": {"iterations": 12, "sampler_steps": 2, "candidates": 1},
    "gradient-guided-sampling": {"steps": 12},
    "inverting-gradients": {"iterations": 12},
    "residual": {"max_evaluations": 90},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_trace_changes_no_bit(name: str, known_victim: Victim, short_recipe: None) -> None:
    attack, trace = create(name, SHORT[name]), Trace(every=2)
    plain = attack.reconstruct(known_victim.observation, seed=7)
    traced = attack.reconstruct(known_victim.observation, seed=7, trace=trace)
    assert torch.equal(traced.images, plain.images)
    assert (traced.matching_loss, traced.evaluations) == (plain.matching_loss, plain.evaluations)
    assert [snapshot.evaluations for snapshot in trace.snapshots[:4]] == [0, 2, 4, 6]
    assert trace.snapshots[-1].evaluations >= plain.evaluations - 4
    assert trace.snapshots[0].images.shape == plain.images.shape


def test_a_trace_shows_the_images_and_not_the_unknowns(victim: Victim) -> None:
    """Private noise: the unknowns are a noisy image and a residual, neither of them like the truth."""
    trace = Trace(every=1)
    found = create("residual").reconstruct(victim.observation, seed=7, trace=trace)
    assert victim.psnr(trace.snapshots[0].images) < 20
    assert victim.psnr(trace.snapshots[-1].images) == pytest.approx(victim.psnr(found.images), abs=3)
    assert victim.psnr(found.images) > 40


def test_snapshots_grow_rare_and_their_own_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("attacks.trace.time.perf_counter", lambda: float(next(clock)))
    trace = Trace(every=5)
    for evaluations in range(1000):
        trace.record(evaluations, lambda: torch.full((1, 3, 2, 2), 3.0))
    taken = [snapshot.evaluations for snapshot in trace.snapshots]
    assert taken[:3] == [0, 5, 10]
    assert taken[-1] - taken[-2] == 19
    # The clock ticks once from start to snapshot, and once for the snapshot itself, which is not the attack's.
    assert [snapshot.seconds for snapshot in trace.snapshots[:3]] == [1, 2, 3]
    assert trace.own_seconds == len(taken)
    assert (trace.snapshots[0].images == 1).all()
