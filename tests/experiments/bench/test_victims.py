import math

import pytest
import torch

from attacks.observation import DefenceDisclosure, ThreatModel
from experiments.bench.cases import CLASS_CONDITIONAL, IMAGES_OF_OWN_NETWORK, NETWORKS, OWN_NETWORK, Case
from experiments.bench.suites import SUITES
from experiments.bench.victims import PHOTOGRAPHS, Victim, make_victim
from experiments.checkpoint import BUNDLED
from fl_sim import diffusion, network
from fl_sim.config import DataSettings
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS
from fl_sim.images.sources import list_images
from fl_sim.network import LocalOptimizer
from tests.own_networks import trusting

SEED = 5


def victim(index: int = 0, **case: object) -> Victim:
    return make_victim(Case(suite="test", **case), BUNDLED, SEED, index)


def flat(update: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in update.values()])


@pytest.fixture(scope="module")
def plain() -> Victim:
    return victim()


def gradient(of: Victim, first: int = 0, last: int = 1) -> torch.Tensor:
    """The gradient of the samples first..last-1 of a known victim, from the truth."""
    seen = of.observation
    assert seen.noise is not None
    model = network.build_model(seen.circumstances.model)
    model.load_state_dict(seen.weights)
    scheduler = diffusion.build_scheduler(seen.circumstances.task.scheduler)
    truth = (of.images * 2 - 1, seen.noise, of.timesteps)
    return flat(diffusion.gradient(model, scheduler, *(values[first:last] for values in truth)))


def test_a_victim_is_a_function_of_its_seed_case_and_number(plain: Victim) -> None:
    again = victim()
    assert torch.equal(flat(again.observation.update), flat(plain.observation.update))
    for other in (victim(1), make_victim(Case(suite="test"), BUNDLED, SEED + 1, 0)):
        assert not torch.equal(other.images, plain.images)
        assert not torch.equal(flat(other.observation.update), flat(plain.observation.update))


def test_victims_hold_photographs_that_nothing_was_made_on() -> None:
    assert PHOTOGRAPHS == ("ihc", "hubble")
    assert not set(PHOTOGRAPHS) & {*TRAINING_PHOTOGRAPHS, "astronaut", "chelsea", "coffee", "rocket"}
    victims = [victim(index, batch_size=16) for index in range(2)]
    assert {name for one in victims for name in one.photographs} == set(PHOTOGRAPHS)
    images = torch.cat([one.images for one in victims]).flatten(1)
    assert len(images.unique(dim=0)) == 32
    assert 0 <= images.min() < images.max() <= 1


def test_both_threats_and_both_models_see_the_same_draw(plain: Victim) -> None:
    known = victim(threat=ThreatModel.KNOWN)
    assert torch.equal(flat(known.observation.update), flat(plain.observation.update))
    assert plain.observation.noise is None
    assert known.observation.timesteps is not None
    assert torch.equal(known.observation.timesteps, known.timesteps)
    untrained = make_victim(Case(suite="test", model="untrained"), None, SEED, 0)
    assert torch.equal(untrained.images, plain.images)
    assert torch.equal(untrained.timesteps, plain.timesteps)


def test_timesteps_are_drawn_from_the_stratum() -> None:
    drawn = {int(step) for index in range(2) for step in victim(index, batch_size=16, timesteps=(3, 5)).timesteps}
    assert drawn == {3, 4, 5}


def test_a_gradient_is_the_clients(plain: Victim) -> None:
    assert torch.allclose(gradient(victim(threat=ThreatModel.KNOWN)), flat(plain.observation.update), atol=1e-7)


def test_a_sum_is_over_clients() -> None:
    both = victim(threat=ThreatModel.KNOWN, num_clients=2)
    assert (both.observation.circumstances.client, both.observation.circumstances.num_samples) == (-1, 2)
    expected = gradient(both, 0, 1) + gradient(both, 1, 2)
    assert torch.allclose(flat(both.observation.update), expected, atol=1e-6)


def test_a_delta_is_what_the_local_steps_changed() -> None:
    one = victim(threat=ThreatModel.KNOWN, optimizer=LocalOptimizer(lr=0.5))
    assert one.observation.circumstances.update == "delta"
    assert torch.allclose(flat(one.observation.update), -0.5 * gradient(one), atol=1e-6)
    assert victim(local_steps=2, optimizer=LocalOptimizer(lr=0.5)).observation.circumstances.num_samples == 2


def test_noise_has_the_norm_that_was_asked_for(plain: Victim) -> None:
    clean = flat(plain.observation.update)
    noised = victim(defence="noise", strength=0.5)
    added = flat(noised.observation.update) - clean
    assert added.norm() / clean.norm() == pytest.approx(0.5, rel=0.01)
    known = noised.observation.circumstances.defence
    assert known is not None
    assert known.noise_std == pytest.approx(float(added.std()), rel=0.01)
    assert victim(defence="noise", strength=0.5, defence_known=False).observation.circumstances.defence is None


def test_the_other_defences_leave_what_they_say(plain: Victim) -> None:
    clean = flat(plain.observation.update)
    clipped = victim(defence="clip", strength=0.5).observation
    assert torch.allclose(flat(clipped.update), clean / 2)
    assert clipped.circumstances.defence is not None
    assert clipped.circumstances.defence.clip_norm == pytest.approx(float(clean.double().norm()) / 2)
    kept = victim(defence="top-k", strength=0.1).observation
    mask = flat(kept.update) != 0
    assert int(mask.sum()) == math.ceil(0.1 * len(clean))
    assert clean[mask].abs().min() >= clean[~mask].abs().max()
    assert kept.circumstances.defence == DefenceDisclosure(sparsified=True)
    signs = victim(defence="signs").observation
    assert torch.equal(flat(signs.update), clean.sign())
    assert signs.circumstances.defence == DefenceDisclosure(signs=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_there_are_images_for_every_network(network: str) -> None:
    size = NETWORKS[network].get("sample_size", IMAGES_OF_OWN_NETWORK[1:])
    assert len(list_images(DataSettings(photographs=PHOTOGRAPHS, image_size=size))) == 32


def test_a_network_of_somebody_else_predicts_what_the_case_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("denoising_diffusion_pytorch")
    small = NETWORKS[OWN_NETWORK] | {"dim": 8, "dim_mults": [1, 2]}
    monkeypatch.setitem(NETWORKS, OWN_NETWORK, small)
    case = Case(suite="test", network=OWN_NETWORK, model="untrained", prediction_type="v_prediction")
    with trusting():
        seen = make_victim(case, None, SEED, 0).observation.circumstances
    assert seen.image_shape == IMAGES_OF_OWN_NETWORK
    assert (seen.task.prediction_type, seen.model) == ("v_prediction", small)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_update_of_sixteen_bits_is_rounded_as_a_client_rounds_it(plain: Victim, dtype: str) -> None:
    kind = getattr(torch, dtype)
    rounded = victim(dtype=dtype).observation
    assert torch.equal(flat(rounded.update), flat(plain.observation.update).to(kind).float())
    assert rounded.circumstances.dtype == dtype
    step = LocalOptimizer(lr=0.5)
    before, exact = flat(rounded.weights), flat(victim(optimizer=step).observation.update)
    delta = flat(victim(optimizer=step, dtype=dtype).observation.update)
    assert torch.equal(delta, (before + exact).to(kind).float() - before)


def test_victims_may_hold_digits() -> None:
    case = Case(suite="test", network="28-grey", model="untrained", images="digits")
    held = make_victim(case, None, SEED, 0)
    assert held.images.shape == (1, 1, 28, 28)
    assert held.photographs[0].startswith("digits/")


def test_every_kind_of_case_makes_an_observation() -> None:
    for suite, entries in SUITES.items():
        if suite not in ("strata", "batch"):
            make_victim(entries[-1].case, BUNDLED, SEED, 0)


def test_a_class_conditional_victim_trains_with_labels_that_it_keeps_to_itself() -> None:
    case = Case(suite="test", network=CLASS_CONDITIONAL, model="untrained", batch_size=4)
    private = make_victim(case, None, SEED, 0)
    assert private.labels is not None
    rows = private.observation.update["class_embedding.weight"].any(dim=1).nonzero().flatten()
    assert rows.tolist() == sorted(set(private.labels.tolist()))
    assert private.observation.labels is None
    known = make_victim(case.model_copy(update={"threat": ThreatModel.KNOWN}), None, SEED, 0).observation.labels
    assert known is not None
    assert torch.equal(known, private.labels)
