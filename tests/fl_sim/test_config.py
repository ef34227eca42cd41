from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_sim.config import Settings, SettingsError, dump_toml, flower_run_directory, load_settings, resolve


def test_overrides_win_over_the_file_and_keep_their_toml_types(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\n[client]\nbatch_size = 2\noptimizer = "adam"\n')
    settings = load_settings(
        Settings, file, ["client.batch_size=4", "client.lr = 1e-3", "data.partition=photo", "strategy.args.inner=Krum"]
    )
    assert (settings.seed, settings.client.batch_size, settings.client.lr) == (3, 4, 1e-3)
    assert (settings.client.optimizer, settings.data.partition) == ("adam", "photo")
    assert settings.strategy.args == {"inner": "Krum"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["client.epochs=2"], r"client\.epochs = 2: with client\.update = 'gradient' .* allowed: unset"),
        (["client.max_grad_norm=1.0"], r"client\.max_grad_norm = 1\.0: .*no local step"),
        (["client.lr_schedule=cosine"], r"client\.lr_schedule = 'cosine': .*allowed: 'constant'"),
        (["client.update=weights", "client.epochs=2", "client.local_steps=2"], r"replaces client\.local_steps = 2"),
        (["client.update=weights", "client.lr_schedule=cosin"], "did you mean 'cosine'"),
    ],
)
def test_a_local_recipe_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(Settings, {}, overrides)
    assert "\n" not in str(caught.value)


def test_a_dump_reads_back_unchanged(tmp_path: Path) -> None:
    overrides = ["data.path=/some/where", "model.block_out_channels=[8,16]", "strategy.args.lr=0.5"]
    settings = resolve(load_settings(Settings, {}, overrides))
    (tmp_path / "config.toml").write_text(dump_toml(settings))
    assert load_settings(Settings, tmp_path / "config.toml") == settings


def test_resolve_draws_the_private_seed_and_leaves_a_given_one_alone() -> None:
    open_ended = load_settings(Settings, {})
    assert resolve(open_ended).client.seed != resolve(open_ended).client.seed
    assert resolve(open_ended).federation.clients_per_round == open_ended.federation.clients
    assert resolve(load_settings(Settings, {}, ["client.seed=5"])).client.seed == 5


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("client.btch_size=3", ["client.btch_size = 3", "unknown setting", "did you mean 'client.batch_size'?"]),
        ("fedration.clients=3", ["fedration", "did you mean 'federation'?"]),
        ("client.update=gradiant", ["client.update = 'gradiant'", "'weights'", "did you mean 'gradient'?"]),
        ("data.image_size=20", ["data.image_size = 20", "16, 32, 64 or 128"]),
        ("client.batch_size=0", ["client.batch_size = 0", "greater than or equal to 1"]),
        ("client.lr=nan", ["client.lr = nan", "finite"]),
        ("seed=true", ["seed = True", "integer"]),
        ("client.local_steps=3", ["client.local_steps = 3", "client.update = 'gradient'"]),
        ("federation.clients_per_round=9", ["federation.clients_per_round = 9", "federation.clients = 4"]),
        ("data.name=folder", ["data.path", "data.name = 'folder'"]),
        ("seed", ["'seed'", "key=value"]),
        (".x=1", ["'.x=1'", "key=value"]),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(override: str, fragments: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, {}, [override])
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_value_is_no_table() -> None:
    with pytest.raises(SettingsError, match="seed is a value, not a table"):
        load_settings(Settings, {"seed": 1}, ["seed.x=3"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1")
    with pytest.raises(SettingsError, match=r"broken\.toml: not valid TOML"):
        load_settings(Settings, broken)
    with pytest.raises(SettingsError, match=r"missing\.toml: cannot be read"):
        load_settings(Settings, tmp_path / "missing.toml")


def test_overrides_do_not_change_their_source() -> None:
    source = {"client": {"lr": 0.5}}
    load_settings(Settings, source, ["client.lr=0.25"])
    assert source == {"client": {"lr": 0.5}}


def test_the_flower_run_directory_follows_config_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_HOME", "/env")
    assert flower_run_directory(SimpleNamespace(run_config={"out": ""}, run_id=7)) == Path("/env/run-7")
    assert flower_run_directory(SimpleNamespace(run_config={"out": "/out"}, run_id=7)) == Path("/out/run-7")
