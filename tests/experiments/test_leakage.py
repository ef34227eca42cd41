import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.experiment import build_recipe
from experiments.leakage import (
    ADDED_COLUMNS,
    COLUMNS,
    TIME_COLUMNS,
    USER,
    Evaluator,
    LeakageTable,
    check_metrics,
    client_truth,
    match,
    read_leakage,
)
from experiments.metrics import mse
from experiments.metrics.fsim import FSIM
from experiments.metrics.gmsd import GMSD
from experiments.metrics.registry import METRICS, create_metrics
from experiments.settings import ExperimentSettings, MetricsSettings
from fl_sim.config import SettingsError
from fl_sim.settings_file import load_settings
from tests.experiments.made_up_run import reconstruction, tiny_settings


def evaluator(*overrides: str) -> Evaluator:
    settings = tiny_settings(*overrides)
    return Evaluator("a-run", settings, build_recipe(settings))


def rows_of(client: int = 0, round_number: int = 1, seconds_apart: float = 0.0) -> list[dict]:
    judge = evaluator()
    truth = client_truth(judge.settings, judge.recipe, client, round_number)
    rows = judge.rows(round_number, client, "residual", reconstruction(truth.images * 0.9, truth.timesteps))
    return [row | {"seconds": row["seconds"] + seconds_apart} for row in rows]


def table(folder: Path) -> LeakageTable:
    folder.mkdir(exist_ok=True)
    return LeakageTable(folder / "leakage.csv", folder / "leakage.parquet")


def test_a_row_compares_with_what_the_client_trained_on() -> None:
    (row,) = rows_of()
    judge = evaluator()
    truth = client_truth(judge.settings, judge.recipe, 0, 1)
    assert list(row) == list(COLUMNS)
    assert row["mse"] == pytest.approx((0.1 * truth.images).square().mean().item(), rel=1e-5)
    assert row["timestep"] == row["timestep_recovered"] == truth.timesteps.item()
    assert (row["run"], row["threat"], row["status"], row["evaluations"]) == ("a-run", "private", "ok", 420)
    assert 0 <= truth.images.min() < truth.images.max() <= 1


def test_a_batch_is_matched_to_the_truth_and_so_are_its_timesteps() -> None:
    judge = evaluator("client.batch_size=3")
    truth = client_truth(judge.settings, judge.recipe, 1, 2)
    shuffled = [2, 0, 1]
    rows = judge.rows(2, 1, "residual", reconstruction(truth.images[shuffled], truth.timesteps[shuffled]))
    assert [row["image"] for row in rows] == [0, 1, 2]
    assert [row["mse"] for row in rows] == [0.0] * 3
    assert [row["timestep_recovered"] for row in rows] == truth.timesteps.tolist()
    assert torch.equal(match(truth.images, truth.images[shuffled]), truth.images)


def test_an_unknown_timestep_is_missing() -> None:
    judge = evaluator()
    truth = client_truth(judge.settings, judge.recipe, 0, 1)
    (row,) = judge.rows(1, 0, "dlg", reconstruction(truth.images, torch.tensor([-1])))
    assert row["timestep_recovered"] is None


def test_labels_are_matched_as_the_images_are() -> None:
    judge = evaluator("client.batch_size=3", "model.unet.num_class_embeds=5", "client.label_dropout=0.5")
    truth = client_truth(judge.settings, judge.recipe, 1, 2)
    assert truth.labels is not None
    shuffled = [2, 0, 1]
    found = reconstruction(truth.images[shuffled], truth.timesteps[shuffled])
    rows = judge.rows(2, 1, "residual", replace(found, labels=torch.tensor([-1, 7, 8])))
    assert [row["label"] for row in rows] == truth.labels.tolist()
    assert [row["label_recovered"] for row in rows] == [7, 8, None]


def test_without_labels_there_is_none_to_recover() -> None:
    (row,) = rows_of()
    assert (row["label"], row["label_recovered"]) == (None, None)


def test_a_failed_attack_has_a_row_per_image_with_the_reason() -> None:
    rows = evaluator("client.batch_size=2").rows(1, 0, "residual", "timeout after 3 s")
    assert [row["status"] for row in rows] == ["timeout after 3 s"] * 2
    assert all(row["psnr"] is None and row["timestep"] is not None for row in rows)


def test_rows_are_on_disk_at_once_and_read_back(tmp_path: Path) -> None:
    growing = table(tmp_path)
    growing.append(rows_of(client=1))
    assert len(read_leakage(tmp_path / "leakage.csv")) == 1
    growing.append(evaluator().rows(1, 0, "residual", "lost, with a comma"))
    read = read_leakage(tmp_path / "leakage.csv")
    assert read["client"].tolist() == [0, 1]
    assert read["status"].tolist() == ["lost, with a comma", "ok"]
    pd.testing.assert_frame_equal(read, growing.frame(), check_exact=False)


def test_a_line_that_a_killed_run_left_half_written_is_dropped(tmp_path: Path) -> None:
    growing = table(tmp_path)
    growing.append(rows_of(client=0) + rows_of(client=1))
    text = (tmp_path / "leakage.csv").read_text()
    (tmp_path / "leakage.csv").write_text(text[:-30])
    assert read_leakage(tmp_path / "leakage.csv")["client"].tolist() == [0]


def test_the_finished_table_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    first, second = table(tmp_path / "first"), table(tmp_path / "second")
    for client in (0, 1):
        first.append(rows_of(client))
    for client in (1, 0):
        second.append(rows_of(client, seconds_apart=1.0))
    first.close()
    second.close()
    one, other = (pd.read_parquet(tmp_path / run / "leakage.parquet") for run in ("first", "second"))
    assert not one.equals(other)
    assert one.drop(columns=list(TIME_COLUMNS)).equals(other.drop(columns=list(TIME_COLUMNS)))
    lines = [(tmp_path / run / "leakage.csv").read_text().replace("13.5", "12.5") for run in ("first", "second")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("found", ["reconstruction", "timeout after 3 s"])
def test_every_row_says_how_flat_its_original_is(found: str) -> None:
    judge = evaluator("client.batch_size=2")
    truth = client_truth(judge.settings, judge.recipe, 0, 1)
    result = found if found != "reconstruction" else reconstruction(truth.images.flip(0), truth.timesteps.flip(0))
    rows = judge.rows(1, 0, "residual", result)
    mean_squares = [np.var(image.double().numpy(), axis=(1, 2)).mean() for image in truth.images]
    assert [row["flat_psnr"] for row in rows] == pytest.approx([-10 * np.log10(value) for value in mean_squares])


def test_a_constant_original_is_read_back(tmp_path: Path) -> None:
    growing = table(tmp_path)
    growing.append([row | {"flat_psnr": float("inf")} for row in rows_of()])
    assert read_leakage(tmp_path / "leakage.csv")["flat_psnr"].tolist() == [float("inf")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attack": "/../../x"}, "an attack is called '/../../x'"),
        ({"evaluations": "inf"}, "infinity"),
        ({"observer": "x"}, "'x'"),
    ],
)
def test_a_foreign_table_names_no_file_elsewhere_and_holds_numbers(
    tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    table(tmp_path).append([row | changes for row in rows_of()])
    with pytest.raises(SettingsError, match=f"not a leakage table: .*{reason}"):
        read_leakage(tmp_path / "leakage.csv")


def test_a_reconstruction_of_another_run_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"images of shape \[2, 3, 8, 8\], the originals have \[1, 3, 8, 8\]"):
        match(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_the_table_of_an_earlier_run_lacks_the_columns_added_since(tmp_path: Path) -> None:
    table(tmp_path).append(rows_of())
    csv = tmp_path / "leakage.csv"
    written = pd.read_csv(csv).drop(columns=list(ADDED_COLUMNS))
    written.to_csv(csv, index=False)
    read = read_leakage(csv)
    assert list(read.columns) == list(COLUMNS)
    assert read[list(ADDED_COLUMNS)].isna().all(axis=None)
    written.drop(columns="psnr").to_csv(csv, index=False)
    with pytest.raises(SettingsError, match=r"leakage\.csv: not a leakage table: it lacks psnr$"):
        read_leakage(csv)
    csv.write_text("")
    with pytest.raises(SettingsError, match="not a leakage table"):
        read_leakage(csv)


def test_the_documentation_describes_every_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    section = page.partition("## The leakage table")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, flags=re.MULTILINE)
    assert described == list(COLUMNS.items())


def test_one_image_that_stands_for_a_client_is_compared_with_the_mean_of_its_images(tmp_path: Path) -> None:
    labelled = "model.unet.num_class_embeds=5", "client.label_dropout=0.5"
    judge = evaluator("attack.name=user-level", "client.batch_size=3", *labelled)
    truth = client_truth(judge.settings, judge.recipe, 1, 2)
    mean = truth.images.mean(dim=0, keepdim=True)
    found = replace(reconstruction(mean, torch.tensor([-1])), representative=True, labels=torch.tensor([-1]))
    (row,) = judge.rows(2, 1, "user-level", found)
    assert (row["image"], row["mse"], row["batch_size"], row["local_steps"]) == (USER, 0.0, 3, 1)
    assert row["timestep"] is row["timestep_recovered"] is row["label_recovered"] is None
    same = truth.labels.unique()
    assert row["label"] == (same.item() if len(same) == 1 else None)
    (failed,) = judge.rows(2, 1, "user-level", "timeout after 600 s")
    assert (failed["image"], failed["status"], failed["psnr"]) == (USER, "timeout after 600 s", None)


def test_a_table_with_users_has_strings_for_images_and_sorts_them_as_numbers(tmp_path: Path) -> None:
    judge = evaluator("client.batch_size=11")
    truth = client_truth(judge.settings, judge.recipe, 0, 1)
    one = replace(reconstruction(truth.images[:1], torch.tensor([-1])), representative=True)
    made = table(tmp_path)
    made.append(judge.rows(1, 0, "residual", reconstruction(truth.images, truth.timesteps)))
    made.append(judge.rows(1, 0, "user-level", one))
    made.close()
    for frame in (read_leakage(tmp_path / "leakage.csv"), pd.read_parquet(tmp_path / "leakage.parquet")):
        assert frame["image"].tolist() == [USER, *map(str, range(11))]
        assert frame["attack"].tolist() == ["user-level"] + ["residual"] * 11
    alone = table(tmp_path / "alone")
    alone.append(judge.rows(1, 0, "residual", reconstruction(truth.images, truth.timesteps)))
    assert alone.frame()["image"].dtype == "int64"


FURTHER = "metrics.names=['fsim', 'gmsd']"


def test_further_metrics_are_columns_of_their_own_per_image_after_the_matching(tmp_path: Path) -> None:
    judge = evaluator("client.batch_size=3", FURTHER)
    truth = client_truth(judge.settings, judge.recipe, 1, 2)
    paler = torch.stack([image * (0.9 - 0.2 * number) for number, image in enumerate(truth.images)])
    rows = judge.rows(2, 1, "residual", reconstruction(paler[[2, 0, 1]], truth.timesteps[[2, 0, 1]]))
    assert list(rows[0]) == [*COLUMNS, "fsim", "gmsd"]
    for image, row in enumerate(rows):
        one = truth.images[[image]], paler[[image]]
        assert row["mse"] == mse(*one).item()
        assert (row["fsim"], row["gmsd"]) == pytest.approx((FSIM()(*one).item(), GMSD()(*one).item()))
        assert (row["ssim"], row["lpips"]) == (None, None)
    growing = LeakageTable(tmp_path / "leakage.csv", tmp_path / "leakage.parquet", (), judge.further_columns)
    growing.append([*rows, *judge.rows(1, 0, "residual", "timeout after 3 s")])
    growing.close()
    read = read_leakage(tmp_path / "leakage.csv")
    pd.testing.assert_frame_equal(read, pd.read_parquet(tmp_path / "leakage.parquet"))
    assert list(read.columns) == [*COLUMNS, "fsim", "gmsd"]
    assert read["fsim"].tolist()[3:] == [row["fsim"] for row in rows]
    assert read["fsim"].isna().tolist() == [True] * 3 + [False] * 3


def test_a_metric_that_raises_leaves_its_column_empty(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no\x1b[31m luck")

    monkeypatch.setattr(FSIM, "compare", fail)
    judge = evaluator(FURTHER)
    truth = client_truth(judge.settings, judge.recipe, 1, 2)
    (row,) = judge.rows(2, 1, "residual", reconstruction(truth.images, truth.timesteps))
    assert np.isnan(row["fsim"])
    assert row["gmsd"] == pytest.approx(0.0, abs=1e-6)
    assert row["status"] == "ok"
    assert caplog.messages == ["metric fsim failed: RuntimeError: no\\x1b[31m luck"]


def test_a_table_that_goes_on_keeps_the_columns_that_it_has(tmp_path: Path) -> None:
    judge = evaluator(FURTHER)
    truth = client_truth(judge.settings, judge.recipe, 0, 1)
    rows = judge.rows(1, 0, "residual", reconstruction(truth.images * 0.9, truth.timesteps))
    growing = LeakageTable(tmp_path / "leakage.csv", tmp_path / "leakage.parquet", rows)
    growing.append(rows_of(client=1))
    read = read_leakage(tmp_path / "leakage.csv")
    assert read["gmsd"].notna().tolist() == [True, False]
    assert read["ssim"].notna().tolist() == [False, True]


def test_the_settings_of_an_earlier_version_give_the_columns_that_it_had() -> None:
    file = Path(__file__).with_name("config_of_an_earlier_version.toml")
    settings = load_settings(ExperimentSettings, file, recorded=True)
    assert Evaluator("a-run", settings, evaluator().recipe).further_columns == []
    assert list(create_metrics(settings.metrics)) == ["mse", "psnr", "ssim", "lpips"]


def test_a_metric_with_the_name_of_another_column_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS.built_in, "round", METRICS.built_in["ssim"])
    with pytest.raises(SettingsError, match="'round' is another column of the leakage table"):
        check_metrics(MetricsSettings(names=("round",)))
