from dataclasses import replace

import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.timesteps.conditions import Conditions
from attacks.timesteps.labels import candidate_labels, label_table, pairings, recover_labels
from attacks.timesteps.recovery import MINIMAL_MARGIN, recover_timesteps, timestep_hypotheses
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import CLASS_CONDITIONAL, Victim, make_victim
from tests.attacks.timesteps.test_recovery import defended, noisy, without
from tests.own_networks import config, trusting

TABLE = "class_embedding.weight"
WIDE = CLASS_CONDITIONAL | {"block_out_channels": [32, 32]}


def labelled(timesteps: tuple[int, ...], labels: tuple[int, ...], **options: object) -> Victim:
    return make_victim(timesteps, labels=labels, **{"model_config": WIDE} | options)


def problem_of(victim: Victim) -> InversionProblem:
    return InversionProblem(victim.observation, "cpu")


def pairs(conditions: Conditions) -> list[tuple[int, int]]:
    assert conditions.labels is not None
    return sorted(zip(conditions.timesteps.tolist(), conditions.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("timesteps", "labels"),
    [
        ((400,), (3,)),
        ((80, 240, 400, 560), (1, 4, 7, 9)),
        ((80, 240, 400, 560), (1, 1, 4, 4)),
        ((300, 300, 500, 500), (1, 4, 1, 4)),
        ((300, 300, 300, 301), (1, 4, 5, 1)),
        ((300,) * 3, (0, 1, 2)),
        ((300,) * 3, (2,) * 3),
        ((10, 11, 12, 13), (9, 3, 9, 3)),
        (tuple(range(0, 960, 80)), (0, 1, 2, 3, 4, 5) * 2),
    ],
)
def test_labels_and_timesteps_are_told_together(timesteps, labels):
    recovered = recover_timesteps(problem_of(labelled(timesteps, labels)))
    assert pairs(Conditions(recovered.timesteps, recovered.labels)) == sorted(zip(timesteps, labels, strict=True))
    assert recovered.margin > MINIMAL_MARGIN


@pytest.mark.parametrize(
    ("timesteps", "labels"), [((400,), (3,)), ((90, 240, 400, 560), (1, 4, 1, 7)), ((300, 300, 500), (1, 4, 1))]
)
def test_they_are_told_of_a_network_of_ones_own(timesteps, labels):
    with trusting("labelled"):
        victim = labelled(timesteps, labels, model_config=config("labelled", num_class_embeds=10))
        problem = problem_of(victim)
        recovered = recover_timesteps(problem)
        assert recover_labels(problem).tolist() == sorted(set(labels))
    assert pairs(Conditions(recovered.timesteps, recovered.labels)) == sorted(zip(timesteps, labels, strict=True))


def test_where_the_timesteps_must_have_numbers_the_pairs_are_told_without_the_table():
    with trusting("reads_the_timesteps"):
        victim = labelled((90, 240), (1, 4), model_config=config("reads_the_timesteps", num_class_embeds=10))
        problem = problem_of(victim)
        recovered = recover_timesteps(problem)
        assert label_table(problem) is None
    assert pairs(Conditions(recovered.timesteps, recovered.labels)) == [(90, 1), (240, 4)]


def test_which_pair_is_there_twice_is_ranked_but_not_claimed():
    problem = problem_of(labelled((120, 120, 420), (2, 2, 5)))
    recovered = recover_timesteps(problem)
    assert not recovered.known
    assert pairs(Conditions(recovered.distinct, recovered.distinct_labels)) == [(120, 2), (420, 5)]
    answers = [pairs(answer) for answer in timestep_hypotheses(problem)]
    assert answers == [[(120, 2), (120, 2), (420, 5)], [(120, 2), (420, 5), (420, 5)]]


def test_the_table_alone_shows_the_labels():
    problem = problem_of(labelled((80, 240, 400), (7, 1, 7)))
    assert recover_labels(problem).tolist() == [1, 7]
    assert candidate_labels(problem).tolist() == [1, 7]


def test_a_network_without_classes_has_no_candidates(victim):
    problem = problem_of(victim)
    assert candidate_labels(problem) is None
    assert recover_timesteps(problem).labels is None


@pytest.mark.parametrize("optimizer", [{"name": "adam", "lr": 1e-3}, {"lr": 1e-2, "weight_decay": 0.1}])
def test_one_step_of_an_optimizer_hides_neither(optimizer):
    victim = labelled((240, 560), (4, 1), optimizer=LocalOptimizer(**optimizer))
    recovered = recover_timesteps(problem_of(victim))
    assert pairs(Conditions(recovered.timesteps, recovered.labels)) == [(240, 4), (560, 1)]


@pytest.mark.parametrize(("timesteps", "labels"), [((240, 560), (4, 1)), ((240, 560), (3, 3))])
def test_after_local_steps_the_likeliest_pairing_is_the_right_one(timesteps, labels):
    victim = labelled(timesteps, labels, local_steps=2, optimizer=LocalOptimizer(lr=1e-2))
    likeliest, *others = timestep_hypotheses(problem_of(victim))
    assert pairs(likeliest) == sorted(zip(timesteps, labels, strict=True))
    assert len(others) == (labels[0] != labels[1])


def test_pairings_use_every_label():
    problem = problem_of(labelled((80, 240, 400), (1, 4, 4)))
    ways = pairings(problem, torch.tensor([80, 240, 400]), torch.tensor([1, 4]))
    assert pairs(ways[0]) == [(80, 1), (240, 4), (400, 4)]
    assert len(ways) == 6
    with pytest.raises(AttackError, match="too many ways"):
        pairings(problem, torch.arange(12), torch.tensor([1, 4, 5]))


def test_signs_tell_a_single_label():
    victim = labelled((400,), (3,))
    signs = {name: value.sign() for name, value in victim.observation.update.items()}
    recovered = recover_timesteps(InversionProblem(defended(victim, signs, signs=True), "cpu"))
    assert (recovered.timesteps.tolist(), recovered.labels.tolist()) == ([400], [3])


def test_noise_fills_all_rows_and_hides_neither():
    victim = labelled((200,), (6,))
    update, deviation = noisy(victim, 0.1)
    problem = InversionProblem(defended(victim, update, noise_std=deviation), "cpu")
    recovered = recover_timesteps(problem)
    assert (recovered.timesteps.tolist(), recovered.labels.tolist()) == ([200], [6])
    assert recover_labels(problem).tolist() == [6]


def test_rows_of_noise_alone_tell_no_label():
    victim = labelled((200,), (6,))
    generator = torch.Generator().manual_seed(1)
    update = {k: torch.randn(v.shape, generator=generator) for k, v in victim.observation.update.items()}
    problem = InversionProblem(defended(victim, update, noise_std=1.0), "cpu")
    assert recover_timesteps(problem).timesteps.tolist() == [-1]
    with pytest.raises(AttackError, match="labels cannot be read off"):
        recover_labels(problem)


def test_without_the_table_the_time_projections_tell_the_label():
    recovered = recover_timesteps(InversionProblem(without(labelled((400,), (3,)), TABLE), "cpu"))
    assert (recovered.timesteps.tolist(), recovered.labels.tolist()) == ([400], [3])


def test_without_the_table_too_many_classes_are_one_line():
    victim = labelled((400,), (3,), model_config=WIDE | {"num_class_embeds": 500})
    with pytest.raises(AttackError, match=r"no table with a row for each was sent, .* 500 classes"):
        recover_timesteps(InversionProblem(without(victim, TABLE), "cpu"))


def test_without_the_time_projections_pairings_compete():
    observation = without(labelled((80, 240), (1, 4)), "time_emb_proj")
    ways = [pairs(way) for way in timestep_hypotheses(InversionProblem(observation, "cpu"))]
    assert sorted(ways) == [[(80, 1), (240, 4)], [(80, 4), (240, 1)]]


def test_the_labels_of_an_update_change_what_is_read(victim):
    one, other = (labelled((400,), (label,)) for label in (3, 8))
    swapped = replace(one.observation, update=other.observation.update)
    assert recover_timesteps(InversionProblem(swapped, "cpu")).labels.tolist() == [8]
