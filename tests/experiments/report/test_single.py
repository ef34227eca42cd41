import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from attacks.observation import UpdateId
from experiments.chance_table import save_chance
from experiments.experiment import build_recipe
from experiments.leakage import ADDED_COLUMNS, client_truth, read_leakage
from experiments.metrics import psnr
from experiments.pictures import to_picture
from experiments.report import build_comparison, build_report
from fl_sim.config import SettingsError
from tests.experiments.made_up_run import make_up_run, pictures
from tests.experiments.report_page import Page


def test_the_report_shows_every_victim_and_loads_nothing(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run", "attack.name=['residual', 'dlg']")
    page = Page(build_report(directory.path))
    assert len(page.rows) == 8
    assert page.having("original") == page.having("nearest") == 8
    assert page.having("found", attack="residual") == page.having("found", attack="dlg") == 3
    assert [text.split(".")[0] for text in page.charts[:3]] == ["PSNR by round", "PSNR by client", "PSNR by timestep"]
    assert all(source.startswith("data:") for source in page.sources)
    assert "timesteps recovered exactly" in page.text
    assert 'partition = "photo"' in page.text


def test_the_pictures_are_the_originals_pixel_by_pixel(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    page = Page(build_report(directory.path))
    truth = client_truth(directory.settings(), build_recipe(directory.settings()), 1, 1).images[0]
    row = next(row for row in page.rows if (row["round"], row["client"]) == (1, 1))
    assert to_picture(truth).tobytes() == page.picture(row, "original").tobytes()
    nearest = torch.from_numpy(np.asarray(page.picture(row, "nearest")) / 255).permute(2, 0, 1)
    assert psnr(truth[None], nearest[None].float()).item() == pytest.approx(row["nearest_psnr"], abs=0.1)


def test_pictures_beyond_the_limit_are_stored_with_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_up_run(tmp_path / "run").path
    assert "stored with losses" not in Page(build_report(path)).text
    monkeypatch.setattr("experiments.report.gallery.MOST_BYTES", 2_000)
    assert "stored with losses" in Page(build_report(path)).text


def test_what_a_guess_reaches_is_told_metric_by_metric(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    assert "metric by metric" not in Page(build_report(directory.path)).text
    save_chance(directory, directory.settings(), build_recipe(directory.settings()))
    text = Page(build_report(directory.path)).text
    for row in pd.read_parquet(directory.chance).to_dict("records"):
        figures = (f"{row[name]:.4g}" for name in ("reconstruction", "nearest_public", "chance"))
        assert "".join((row["attack"], row["metric"], str(row["images"]), *figures)) in text


def test_what_could_not_be_computed_is_said_with_the_reason(tmp_path: Path) -> None:
    page = Page(build_report(make_up_run(tmp_path / "run").path))
    assert "LPIPS no weights here" in page.text.replace("LPIPSno", "LPIPS no")
    assert "1 image by residual" in page.text
    assert "timeout after 600 s" in page.text


def test_a_killed_run_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run", "federation.rounds=3", rounds=2, finished=False)
    directory.captures.mkdir()
    for number, client in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0)):
        (directory.captures / f"{UpdateId(number, client).stem}.safetensors").touch()
    directory.leakage_csv.write_text(directory.leakage_csv.read_text()[:-20])
    directory.leakage_parquet.unlink(missing_ok=True)
    page = Page(build_report(directory.path))
    assert page.having("found") == 3
    assert "1 of 3 rounds" in page.text
    assert "2 attacks" in page.text


def test_a_report_without_the_originals_says_so(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    config = directory.config.read_text().replace('"astronaut"', '"mona lisa"')
    directory.config.write_text(config)
    page = Page(build_report(directory.path))
    assert page.having("original") == 0
    assert page.having("found") == 3
    assert "what a guess reaches is not known" in page.text
    assert "Originals in this report" in page.text
    assert "mona lisa" in page.text


def test_a_reconstruction_that_is_gone_is_left_out(tmp_path: Path) -> None:
    directory = make_up_run(tmp_path / "run")
    directory.reconstruction(1, 0, "residual").write_bytes(b"broken")
    assert Page(build_report(directory.path)).having("found") == 2


def test_a_run_that_nobody_attacked_has_a_report(tmp_path: Path) -> None:
    page = Page(build_report(make_up_run(tmp_path / "run", "attack.name=none").path))
    assert "nobody attacked the federation" in page.text
    assert "weights SHA-256" in page.text


def test_an_original_without_content_is_named_and_left_out(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", *pictures(tmp_path / "pictures", blank=1, others=1))
    page = Page(build_report(run.path))
    assert "37.6 dBmedian PSNR, best 39.7 dB" in page.text  # and not the 45.7 of a blank one
    assert "2 of 2 images at 30 dB or more" in page.text
    assert "2 originals without content left out: a flat picture of its mean colour already reaches 30 dB." in page.text
    assert [row["blank"] for row in page.rows].count(True) == 2
    held = re.findall(r"round (\d), client (\d), image 0", page.text)
    assert [number for number, _ in held] == ["1", "2"]
    assert len({client for _, client in held}) == 1
    side_by_side = build_comparison([run.path], tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert '<td class="n">2</td><td class="n">2</td>' in side_by_side


def test_a_run_on_nothing_but_blank_pictures_has_no_headline(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", *pictures(tmp_path / "pictures", blank=2, others=0))
    page = Page(build_report(run.path))
    assert "There is no evidence" in page.text
    assert "median PSNR, best" not in page.text
    assert page.charts == []
    assert page.having("found") == 3
    side_by_side = Page(build_comparison([run.path], tmp_path / "comparison.html"))
    assert "no evidence: every original is without content" in side_by_side.text
    assert "nan" not in (page.text + side_by_side.text).lower()


def test_the_medians_of_the_rounds_are_over_originals_with_content(tmp_path: Path) -> None:
    mixed = make_up_run(tmp_path / "mixed", *pictures(tmp_path / "pictures", blank=1, others=1))
    leakage = read_leakage(mixed.leakage_csv)
    telling = leakage[leakage["flat_psnr"] < 30].set_index("round")["psnr"]
    assert leakage["flat_psnr"].max() == math.inf
    assert pd.read_parquet(mixed.rounds)["median_psnr_residual"].tolist() == pytest.approx(
        telling.tolist(), nan_ok=True
    )
    blank = make_up_run(tmp_path / "blank", *pictures(tmp_path / "blank pictures", blank=2, others=0))
    assert pd.read_parquet(blank.rounds)["median_psnr_residual"].isna().all()


def test_the_run_of_an_earlier_version_is_reported_and_compared(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", "client.update=weights", "strategy.name=FedAvg", "client.optimizer=adam")
    # It states every default, also those that other settings make void.
    shutil.copy((Path(__file__).parents[1] / "config_of_an_earlier_version.toml"), run.config)
    pd.read_csv(run.leakage_csv).drop(columns=list(ADDED_COLUMNS)).to_csv(run.leakage_csv, index=False)
    page = Page(build_report(run.path))
    assert "of 4 images at 30 dB or more" in page.text
    assert "without content" not in page.text
    newer = make_up_run(tmp_path / "newer", "seed=1")
    assert "2 runs side by side" in Page(build_comparison([run.path, newer.path], tmp_path / "both.html")).text


def test_dropout_is_said_to_be_no_protection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_up_run(tmp_path / "run")
    assert "whose masks are private" not in Page(build_report(run.path)).text
    dropped = build_recipe(run.settings()).model_copy(
        update={"model": build_recipe(run.settings()).model | {"dropout": 0.3}}
    )
    monkeypatch.setattr("experiments.report.run.build_recipe", lambda _: dropped)
    assert "dropout 0.3, whose masks are private" in Page(build_report(run.path)).text


@pytest.mark.parametrize("name", ["rounds.parquet", "environment.json", "utility.json", "chance.parquet"])
@pytest.mark.parametrize("content", [b"", b"half a fi"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    directory = make_up_run(tmp_path / "run")
    (directory.path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=f"{name}: damaged: ") as refusal:
        build_report(directory.path)
    assert "\n" not in str(refusal.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not a run directory"):
        build_report(tmp_path)
    directory = make_up_run(tmp_path / "run")
    directory.leakage_csv.unlink()
    with pytest.raises(SettingsError, match=r"no leakage\.csv"):
        build_report(directory.path)
