"""Model inversion during a run, by a search of few steps."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from PIL import Image

from attacks.attack import AttackError
from attacks.model_inversion.diff_mi import DiffMI
from attacks.model_inversion.max_margin import MaxMargin
from attacks.model_inversion.reconstructions_file import load_reconstructions
from attacks.model_inversion.target import TrainedClassifier
from experiments.checkpoint import load_checkpoint
from experiments.experiment import prepare
from experiments.inversion_table import BLIND, FIGURES, summarise_inversions
from experiments.public_images import public_images
from experiments.report import build_report
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings, load_run
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed
from fl_sim.settings_file import load_settings
from tests.attacks.model_inversion.conftest import TINY
from tests.experiments.in_process import Recorded, Tape, record, run_in_process

ARGUMENTS = {"iterations": 2, "images_per_class": 2, "classes": [1, 4, 7], "augmentation": {"copies": 1}}
BASE: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "digits", "channels": 1, "limit": 60, "public": {"name": "faces", "limit": 20}},
    "model": {"classifier": "ConvNet", "classifier_args": {"channels": [4, 4]}},
    "federation": {"clients": 2, "rounds": 3},
    "client": {"seed": 11, "batch_size": 2},
    "attack": {"name": "none"},
    "inversion": {"name": "max-margin", "every": 2, "args": {"max-margin": ARGUMENTS}, "evaluator_steps": 3},
}


def settings(*overrides: str) -> ExperimentSettings:
    return load_settings(ExperimentSettings, BASE, overrides)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded") / "run", settings())


def found_in(directory: RunDirectory, server_round: int) -> torch.Tensor:
    return load_reconstructions(directory.class_reconstructions(server_round, "max-margin")).images


def test_the_chosen_rounds_and_the_last_are_inverted(recorded: Recorded) -> None:
    table = pd.read_parquet(recorded.directory.inversion)
    assert table["round"].unique().tolist() == [2, 3]
    assert set(table["method"]) == {"max-margin", BLIND}
    for (_, method), rows in table.groupby(["round", "method"]):
        assert list(zip(rows["class"], rows["image"], strict=True)) == [(c, i) for c in (1, 4, 7) for i in (0, 1)]
        assert rows["class_name"].tolist() == list("114477")
        assert (rows["evaluations"] > 0).all() == (method == "max-margin")
    assert (table["status"] == "ok").all()
    assert table[list(FIGURES)].notna().all(axis=None)
    assert table["target_probability"].between(0, 1).all()
    assert table["evaluator_accuracy"].between(0, 1).all()
    assert set(table["chance_top1"]) == {0.1}
    assert set(table["chance_top5"]) == {0.5}
    assert [path.name for path in sorted(recorded.directory.inversions.iterdir())] == [
        f"round-000{number}-max-margin.{kind}" for number in (2, 3) for kind in ("png", "safetensors")
    ]
    picture = Image.open(recorded.directory.class_reconstructions(3, "max-margin").with_suffix(".png"))
    assert picture.size == (8 * 33, 8 * 50), "a row for every class"


def test_it_attacks_the_global_weights_of_that_round_as_the_library_does(recorded: Recorded) -> None:
    public = public_images(settings().data, 1)
    assert public.shape == (20, 1, 16, 16)
    for server_round in (2, 3):
        checkpoint = load_checkpoint(recorded.directory.global_model(server_round))
        classifier = TrainedClassifier(checkpoint.model, checkpoint.weights)
        seed = derive_seed(0, "inversion", "max-margin")
        expected = MaxMargin(**ARGUMENTS).reconstruct(classifier, public, seed)
        assert torch.equal(found_in(recorded.directory, server_round), expected.images)
    assert recorded.directory.global_model(3).read_bytes() == recorded.directory.model.read_bytes()
    assert not torch.equal(found_in(recorded.directory, 2), found_in(recorded.directory, 3))


def test_another_private_seed_with_the_same_global_weights_changes_nothing_that_is_found(
    recorded: Recorded, tmp_path: Path
) -> None:
    other = settings("client.seed=12")
    replayed = run_in_process(tmp_path / "run", other, Tape(other, recorded.tape))
    for server_round in (2, 3):
        assert torch.equal(found_in(recorded.directory, server_round), found_in(replayed, server_round))
    judged = [pd.read_parquet(run.inversion)["knn_distance"] for run in (recorded.directory, replayed)]
    assert (judged[0] != judged[1]).all(), "the evaluator has other images and other weights"


def test_diff_mi_inverts_a_run_as_the_library_does(tmp_path: Path) -> None:
    arguments = {**TINY, "classes": [1, 4]}
    chosen = settings("inversion.name=diff-mi", "inversion.every=0", "federation.rounds=1", "data.image_size=12")
    section = chosen.inversion.model_copy(update={"args": {"diff-mi": arguments}})
    directory = run_in_process(tmp_path / "run", chosen.model_copy(update={"inversion": section}))
    table = pd.read_parquet(directory.inversion)
    assert set(table["method"]) == {"diff-mi", BLIND}
    assert (table["status"] == "ok").all()
    found = load_reconstructions(directory.class_reconstructions(1, "diff-mi"))
    assert found.images.shape == (2, 2, 1, 12, 12)
    checkpoint = load_checkpoint(directory.global_model(1))
    classifier = TrainedClassifier(checkpoint.model, checkpoint.weights)
    seed = derive_seed(0, "inversion", "diff-mi")
    expected = DiffMI(**arguments).reconstruct(classifier, public_images(chosen.data, 1), seed)
    assert torch.equal(found.images, expected.images)


def test_a_failure_is_a_status_and_not_the_end_of_the_run(tmp_path: Path) -> None:
    with patch.object(MaxMargin, "search", side_effect=[AttackError("it ran away"), RuntimeError("no\nmemory")]):
        directory = run_in_process(tmp_path / "run", settings())
    table = pd.read_parquet(directory.inversion)
    assert table.groupby("round")["status"].unique().map(list).to_dict() == {
        2: ["it ran away"],
        3: ["RuntimeError: no memory"],
    }
    assert len(table) == 2 * 3 * 2
    assert table[list(FIGURES)].isna().all(axis=None)
    assert summarise_inversions(table)[0].line() == "round 2 max-margin: it ran away"
    html = directory.report.read_text(encoding="utf-8")
    assert "RuntimeError: no memory" in html


def test_the_report_shows_private_images_beside_what_was_found(recorded: Recorded) -> None:
    html = build_report(recorded.directory.path).read_text(encoding="utf-8")
    assert "From the global model alone, max-margin found images of its classes" in html
    section = html.partition("<h2>Model inversion")[2].partition("<h2>")[0]
    assert len(re.findall(r'alt="private image', section)) == 2 * 3 * 3, "three of every class"
    assert len(re.findall(r'alt="found by max-margin', section)) == 2 * 3 * 2
    for words in ("Class 4", BLIND, "chance", "Round 2", "Round 3"):
        assert words in section, words


def test_config_toml_runs_again(recorded: Recorded) -> None:
    assert load_run(str(recorded.directory.config)) == recorded.directory.settings()
    assert load_run(str(recorded.directory.config)).inversion.args["max-margin"]["iterations"] == 2


def test_without_an_inversion_nothing_is_kept_for_it(tmp_path: Path) -> None:
    directory = run_in_process(tmp_path / "run", settings("inversion.name=none", "federation.rounds=1"))
    assert not [path for path in (directory.models, directory.inversion, directory.inversions) if path.exists()]


def test_after_which_rounds() -> None:
    def due(*overrides: str) -> list[int]:
        return [number for number in range(1, 6) if settings(*overrides).inversion.due(number, 5)]

    assert due() == [2, 4, 5]
    assert due("inversion.every=0") == [5]
    assert due("inversion.every=1") == [1, 2, 3, 4, 5]
    assert due("inversion.name=none") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inversion.name=max-margn"], r"inversion\.name = 'max-margn': unknown; .*did you mean 'max-margin'"),
        (["inversion.args.max-margin.iteration=3"], r"inversion\.args\.max-margin\.iteration = 3: .*'iterations'"),
        (["inversion.args.max-margin.classes=[12]"], r"classes = 12; the classifier has 10, allowed: 0 to 9"),
        (["inversion.args.max-margin.classes=[0,0]"], r"args\.max-margin\.classes = \[0, 0\]: .*named twice"),
        (["inversion.args.max-margin.classes=[true]"], r"args\.max-margin\.classes = true: neither true nor false"),
        (
            ["inversion.args.max-margin.loss.top_k=true"],
            r"args\.max-margin\.loss\.top_k = true: neither true nor false",
        ),
        (["inversion.args.max-margin.lr=inf"], r"args\.max-margin\.lr = inf: .*finite"),
        (["inversion.args.max-margin.images_per_class=1000000000000"], r"images_per_class = 1000000000000: .*10000"),
        (["inversion.args.max-margin.augmentation.copies=1000000000"], r"augmentation\.copies = 1000000000: .*1024"),
        (
            ["inversion.args.max-margin.augmentation={blur_radius=16, blur_probability=1.0}"],
            r"blur_radius = 16: the images' shorter side has 16 pixels; allowed: less",
        ),
        (
            ["inversion.name=diff-mi", "inversion.args.diff-mi.training.unet.num_class_embeds=3"],
            r"inversion\.args\.diff-mi: training\.unet\.num_class_embeds = 3: .*allowed: unset",
        ),
        (
            ["inversion.name=diff-mi", "inversion.args.diff-mi.training.unet.down_block_types=[1, 2]"],
            r"inversion\.args\.diff-mi: model\.down_block_types",
        ),
        (["inversion.args.diff-mi.variant=full"], r"inversion\.args\.diff-mi: inversion\.name = 'max-margin' does not"),
        (["inversion.args.diff-my.variant=full"], r"inversion\.args\.diff-my: unknown .*did you mean 'diff-mi'"),
        (["inversion.every=-1"], r"inversion\.every = -1: "),
        (["data.public.name=digits"], r"data\.public\.name = 'digits': .* of 20 are private images as well; allowed"),
        (["data.public.name=folder"], r"data\.public\.path is not set; data\.public\.name = 'folder' needs"),
        (
            ["data.public.name=folder", "data.public.path=/no/such"],
            r"data\.public\.path = '/no/such': no such folder",
        ),
        (["data.public.path=/photos"], r"data\.public\.path = '/photos': with data\.public\.name = 'faces' no folder"),
        (
            ["task=diffusion", "inversion.name=diff-mi"],
            r"inversion\.name = 'diff-mi': with task = 'diffusion' nothing is classified",
        ),
    ],
)
def test_what_cannot_be_inverted_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises((SettingsError, AttackError), match=message) as caught:
        prepare(settings(*overrides))
    assert "\n" not in str(caught.value)


def test_an_inversion_needs_public_images() -> None:
    file = {"task": "classification", "data": {"name": "digits"}, "inversion": {"name": "diff-mi"}}
    with pytest.raises(
        SettingsError, match=r"^data\.public\.name is not set; inversion\.name = 'diff-mi' needs images"
    ):
        load_settings(ExperimentSettings, file)


def test_another_task_or_another_inversion_leaves_nothing_behind() -> None:
    diffusion = settings("task=diffusion")
    assert diffusion.inversion.name == "none"
    assert diffusion.inversion.args == {}
    assert diffusion.data.public.name is None
    assert settings("inversion.name=diff-mi").inversion.args == {}
