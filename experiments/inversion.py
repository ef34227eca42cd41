"""The model inversion of a run: it attacks the global weights of the chosen rounds once the federation has ended."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.model_inversion.model_inversion import ClassReconstructions
from attacks.model_inversion.reconstructions_file import save_reconstructions
from attacks.model_inversion.registry import create
from attacks.model_inversion.target import TrainedClassifier
from experiments.commands import choose_device
from experiments.experiment import Experiment
from experiments.inversion_judge import Judge
from experiments.inversion_table import BLIND, FIGURES, chance, read_inversions, summarise_inversions, to_frame
from experiments.leakage import OK
from experiments.pictures import save_grid
from experiments.progress import Progress
from experiments.public_images import draw_blindly
from experiments.run_directory import RunDirectory
from fl_sim.checkpoint import read_checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.draws import derive_seed
from fl_sim.errors import explain
from fl_sim.files import write_atomically

Row = dict[str, Any]


def invert_rounds(experiment: Experiment, directory: RunDirectory, display: Progress) -> None:
    """Invert the global models that the run has kept, and write images and the table; nothing if no inversion is set.

    What fails becomes the status of its rows.
    """
    if experiment.public is None:
        return
    settings = experiment.settings
    judge = Judge(settings, experiment.recipe)
    earlier = read_inversions(directory.inversion).to_dict("records")  # of a run that goes on
    rows: list[Row] = [{str(column): value for column, value in row.items()} for row in earlier]
    inverted = {row["round"] for row in rows}
    for server_round in range(1, settings.federation.rounds + 1):
        if server_round in inverted or not settings.inversion.due(server_round, settings.federation.rounds):
            continue
        display.step(f"inverting the classifier of round {server_round} by {settings.inversion.name}")
        of_round = _rows_of_round(experiment, experiment.public, judge, directory, server_round)
        rows += of_round
        write_atomically(directory.inversion, to_frame(rows).to_parquet)
        for summary in summarise_inversions(to_frame(of_round)):
            display.inverted(summary.line())


def _rows_of_round(
    experiment: Experiment, public: Tensor, judge: Judge, directory: RunDirectory, server_round: int
) -> list[Row]:
    """The rows of the inversion and of public images drawn blindly."""
    settings, task = experiment.settings, experiment.recipe.task
    assert isinstance(task, ClassificationTask)
    chosen = create(settings.inversion.name, settings.inversion.arguments, "inversion")
    classes = chosen.chosen_classes(task.num_classes)
    labels = torch.tensor(classes).repeat_interleave(chosen.images_per_class)
    shared = {"run": directory.run_name(), "round": server_round, **chance(task.num_classes)}
    cost: Row = {"evaluations": 0, "seconds": 0.0, "device": "cpu"}
    try:
        checkpoint = read_checkpoint(directory.global_model(server_round))
        classifier = TrainedClassifier(checkpoint.model, checkpoint.weights)
        seed = derive_seed(settings.seed, "inversion", chosen.name)  # as fl-sim invert derives it
        found = chosen.reconstruct(classifier, public, seed, choose_device("auto"))
        _save(directory, server_round, found)
        target = classifier.build()
        blind = draw_blindly(public, len(labels), derive_seed(settings.seed, BLIND))
        shared["evaluator_accuracy"] = judge.accuracy
        figures = judge.figures(found.images.flatten(0, 1), labels, target)
        guessed = judge.figures(blind, labels, target)
    except Exception as error:  # whatever an inversion or a library raises: the run has its results, and keeps them
        shared |= {"evaluator_accuracy": None, "method": chosen.name, "status": explain(error)}
        return _rows(shared | cost, labels, judge.class_names, dict.fromkeys(FIGURES, [None] * len(labels)))
    spent = {"evaluations": found.evaluations, "seconds": found.seconds, "device": found.device}
    return [
        *_rows(shared | spent | {"method": found.method, "status": OK}, labels, judge.class_names, figures),
        *_rows(shared | cost | {"method": BLIND, "status": OK}, labels, judge.class_names, guessed),
    ]


def _save(directory: RunDirectory, server_round: int, found: ClassReconstructions) -> None:
    """Write the images, and a picture with a row for every class."""
    path = directory.class_reconstructions(server_round, found.method)
    write_atomically(path, lambda file: save_reconstructions(file, found))
    images, columns = found.images.flatten(0, 1), found.images.shape[1]
    write_atomically(path.with_suffix(".png"), lambda file: save_grid(file, images, columns))


def _rows(shared: Row, labels: Tensor, names: Sequence[str], figures: Mapping[str, Sequence[Any]]) -> list[Row]:
    """A row for every image; ``labels`` int64 [N] are sorted by class, ``figures`` have N values each."""
    rows, numbers = [], labels.tolist()
    for place, number in enumerate(numbers):
        which = {"class": number, "class_name": names[number] if number < len(names) else str(number)}
        which["image"] = place - numbers.index(number)
        rows.append(shared | which | {name: values[place] for name, values in figures.items()})
    return rows
