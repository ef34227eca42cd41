"""The residual attack on class-conditional networks: it evaluates the network with the labels that it read off."""

import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.registry import create
from attacks.residual.minimiser import Candidate
from attacks.residual.unknowns import possible_unknowns
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import CLASS_CONDITIONAL, Victim, make_victim, true_unknowns
from tests.attacks.timesteps.test_recovery import without

ONE = ((400,), (3,))
TABLE = "class_embedding.weight"
FOUR = ((90, 240, 400, 90), (1, 4, 1, 7))


def labelled(timesteps: tuple[int, ...], labels: tuple[int, ...], **options: object) -> Victim:
    return make_victim(timesteps, labels=labels, **{"model_config": CLASS_CONDITIONAL} | options)


def candidate_at_the_truth(timesteps: tuple[int, ...], labels: tuple[int, ...]) -> Candidate:
    order = sorted(range(len(labels)), key=lambda sample: (labels[sample], timesteps[sample]))
    victim = labelled(tuple(timesteps[i] for i in order), tuple(labels[i] for i in order))
    problem = InversionProblem(victim.observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    assert unknowns.labels is not None
    assert unknowns.labels.tolist() == [labels[i] for i in order]
    minimiser = create("residual").minimiser(problem, [unknowns], torch.Generator())
    return minimiser.start(unknowns, true_unknowns(unknowns, victim))


@pytest.mark.parametrize("victim", [ONE, FOUR], ids=["one", "four"])
def test_the_truth_matches_and_every_sample_fits(victim):
    candidate = candidate_at_the_truth(*victim)
    assert candidate.matching.value(candidate.point) < 1e-9
    assert candidate.misfits().max() < 1e-5


def test_with_another_label_the_truth_does_not_match():
    candidate = candidate_at_the_truth(*ONE)
    candidate.unknowns.labels = torch.tensor([8])
    assert candidate.matching.value(candidate.point) > 1e-3


def test_a_private_image_comes_back_with_its_label():
    victim = labelled(*ONE)
    found = create("residual", {"max_evaluations": 400}).reconstruct(victim.observation, seed=7)
    assert (found.timesteps.tolist(), found.labels.tolist()) == ([400], [3])
    assert victim.psnr(found.images) > 40


def test_a_private_batch_is_told_with_repeated_labels_and_timesteps():
    found = create("residual", {"max_evaluations": 20}).reconstruct(labelled(*FOUR).observation, seed=7)
    pairs = zip(found.timesteps.tolist(), found.labels.tolist(), strict=True)
    assert sorted(pairs) == sorted(zip(*FOUR, strict=True))


@pytest.mark.parametrize("attack", ["residual", "dlg"])
def test_where_labels_are_known_they_are_used_and_reported(attack):
    victim = labelled(*ONE, known=True)
    found = create(attack, {"max_evaluations": 150}).reconstruct(victim.observation, seed=7)
    assert found.labels.tolist() == [3]
    assert victim.psnr(found.images) > 30


def test_gidm_samples_with_the_labels_of_the_images(short_recipe):
    found = create("gidm").reconstruct(labelled(*ONE, known=True).observation, seed=7)
    assert found.labels.tolist() == [3]
    assert found.matching_loss < 1


def test_gidm_plus_reads_the_labels_off(short_recipe):
    found = create("gidm-plus").reconstruct(labelled(*ONE).observation, seed=7)
    assert found.labels.tolist() == [3]


def test_a_timestep_that_is_searched_for_comes_with_the_label_that_the_table_shows():
    hidden = without(labelled(*ONE), "time_embedding", "time_emb_proj")
    arguments = {"max_evaluations": 20, "timestep_tournament": {"first_timesteps": 2, "distances": [1]}}
    assert create("residual", arguments).reconstruct(hidden, seed=7).labels.tolist() == [3]
    with pytest.raises(AttackError, match="labels cannot be read off this update"):
        create("residual", arguments).reconstruct(
            without(labelled(*ONE), "time_embedding", "time_emb_proj", TABLE), seed=7
        )


def test_local_steps_are_simulated_with_each_samples_label():
    victim = labelled((240, 560), (4, 1), local_steps=2, optimizer=LocalOptimizer(lr=1e-2))
    found = create("residual", {"max_evaluations": 60}).reconstruct(victim.observation, seed=7)
    assert sorted(zip(found.timesteps.tolist(), found.labels.tolist(), strict=True)) == [(240, 4), (560, 1)]


def test_a_network_without_classes_reports_no_labels(victim):
    assert create("residual", {"max_evaluations": 3}).reconstruct(victim.observation, seed=7).labels is None
