from pathlib import Path

import pytest

from experiments.settings import AttackSettings, load_run, preset_names
from fl_sim.config import SettingsError


@pytest.mark.parametrize("preset", preset_names())
def test_presets_load_and_decide_the_private_seed(preset: str) -> None:
    assert load_run(preset).client.seed is not None


@pytest.mark.parametrize("preset", ["demo", "demo-16"])
def test_the_demo_is_the_hard_case(preset: str) -> None:
    demo = load_run(preset)
    assert (demo.threat, demo.model.num_train_timesteps, demo.client.batch_size) == ("private", 1000, 1)
    assert demo.federation.clients >= 4
    assert demo.federation.rounds >= 3
    assert load_run(preset).client.seed != demo.client.seed


def test_attack_names_may_be_one_or_many_or_none() -> None:
    assert AttackSettings(name="dlg").names == ("dlg",)
    assert AttackSettings(name=("dlg", "gidm", "dlg")).names == ("dlg", "gidm")
    assert AttackSettings(name="none").names == ()
    assert AttackSettings(name="dlg", args={"gidm": {"a": 1}}).arguments == {"dlg": {}}


def test_a_file_is_told_from_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("seed = 5")
    assert load_run(str(tmp_path / "mine.toml"), ["threat=known"]).seed == 5
    with pytest.raises(SettingsError, match=r"nowhere\.toml: cannot be read"):
        load_run("nowhere.toml")
    with pytest.raises(SettingsError, match="did you mean 'demo'"):
        load_run("demmo")
    with pytest.raises(SettingsError, match="'': must not be empty"):
        load_run("")


@pytest.mark.parametrize("name", ["1.5", "true", "[1, 2]", "{a = 1}"])
def test_an_attacks_name_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^attack\.name = ") as caught:
        load_run("demo-16", [f"attack.name={name}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["metrics.names=5"], r"^metrics\.names = 5: "),
        (["metrics.names=[1]"], r"^metrics\.names = "),
        (["metrics.names={a = 1}"], r"^metrics\.names = "),
        (["metrics.names=[]"], r"^metrics\.names = \[\]: "),
        (["metrics.chance_pairs=-1"], r"^metrics\.chance_pairs = -1: "),
        (["metrics.lpips_weights=''"], r"^metrics\.lpips_weights = .*must not be empty"),
        (
            ["metrics.names=fsim", "metrics.lpips_weights=a.pth"],
            r"^metrics\.lpips_weights = 'a\.pth': with metrics\.names = 'fsim' LPIPS is not computed; allowed: ",
        ),
        (
            ["attack.name=none", "metrics.names=fsim"],
            r"^metrics\.names = 'fsim': with attack\.name = 'none' nothing is",
        ),
    ],
)
def test_settings_of_metrics_that_cannot_be_are_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        load_run("demo-16", overrides)
    assert "\n" not in str(caught.value)


def test_the_files_of_lpips_are_recorded_by_their_whole_paths() -> None:
    settings = load_run("demo-16", ["metrics.lpips_weights=weights/alex.pth"])
    assert settings.metrics.lpips_weights == (str(Path.cwd() / "weights" / "alex.pth"),)
    assert load_run("demo-16", ["metrics.names=fsim"]).metrics.names == ("fsim",)
