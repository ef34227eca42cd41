import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_sim.config import Settings, SettingsError, flower_run_directory, resolve
from fl_sim.settings_file import dump_toml, load_settings


def test_overrides_win_over_the_file_and_keep_their_toml_types(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\n[client]\nbatch_size = 2\noptimizer = "adam"\n')
    overrides = ["client.batch_size=4", "client.lr = 1e-3", "data.partition=photo", "strategy.args.inner=Krum"]
    settings = load_settings(Settings, file, [*overrides, "client.update=weights"])
    assert (settings.seed, settings.client.batch_size, settings.client.lr) == (3, 4, 1e-3)
    assert (settings.client.optimizer, settings.data.partition) == ("adam", "photo")
    assert settings.strategy.args == {"inner": "Krum"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["client.epochs=2"], r"client\.epochs = 2: with client\.update = 'gradient' .* allowed: unset"),
        (
            ["client.update=weights", "client.epochs=2", "client.local_steps=2"],
            r"client\.local_steps = 2: with client\.epochs = 2 the number of steps follows; allowed: unset",
        ),
        (["client.update=weights", "client.lr_schedule=cosin"], "did you mean 'cosine'"),
    ],
)
def test_a_local_recipe_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(Settings, {}, overrides)
    assert "\n" not in str(caught.value)


def test_a_dump_reads_back_unchanged(tmp_path: Path) -> None:
    overrides = ["model.checkpoint=none", "model.block_out_channels=[8,16]", "strategy.args.lr=0.5"]
    settings = resolve(load_settings(Settings, {}, overrides))
    (tmp_path / "config.toml").write_text(dump_toml(settings))
    assert load_settings(Settings, tmp_path / "config.toml") == settings


def test_resolve_draws_the_private_seed_and_leaves_a_given_one_alone() -> None:
    open_ended = load_settings(Settings, {})
    assert resolve(open_ended).client.seed != resolve(open_ended).client.seed
    assert resolve(open_ended).federation == open_ended.federation
    assert resolve(load_settings(Settings, {}, ["client.seed=5"])).client.seed == 5


def test_resolved_paths_mean_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "trained.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    given = ["data.name=folder", "data.path=images", "model.checkpoint=trained.safetensors"]
    resolved = resolve(load_settings(Settings, {}, given))
    assert resolved.data.path == tmp_path / "images"
    assert resolved.model.checkpoint == str(tmp_path / "trained.safetensors")
    assert resolve(load_settings(Settings, {}, ["data.name=./images"])).data.name == str(tmp_path / "images")
    assert resolve(load_settings(Settings, {})).model.checkpoint == "bundled"


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("client.btch_size=3", ["client.btch_size = 3", "unknown setting", "did you mean 'client.batch_size'?"]),
        ("fedration.clients=3", ["fedration.clients = 3", "did you mean 'federation.clients'?"]),
        ("strategy.args.lr=nan", ["strategy.args.lr = nan", "not a number"]),
        ("strategy.args.betas=[0.9,nan]", ["strategy.args.betas = [0.9, nan]", "not a number"]),
        ("model.block_out_channels=[0]", ["model.block_out_channels = 0", "greater than or equal to 1"]),
        ("client.batch_size=true", ["client.batch_size = true", "neither true nor false"]),
        ("client.trainable=foo", ["client.trainable = 'foo'", "should be a list"]),
        ("model.attention=1", ["model.attention = 1", "true or false"]),
        ("no.such=1", ["no.such = 1", "unknown setting", "allowed here: seed, task, threat"]),
        ("client=3", ["client = 3", "a table, not a value", "client.batch_size"]),
        ("client.update=gradiant", ["client.update = 'gradiant'", "'weights'", "did you mean 'gradient'?"]),
        ("data.image_size=10", ["data.image_size = 10", "greater than or equal to 11"]),
        ("data.image_size=1025", ["data.image_size = 1025", "less than or equal to 1024"]),
        ("data.image_size=[10,28]", ["data.image_size = 10", "greater than or equal to 11"]),
        ("data.image_size=[28]", ["data.image_size = [28]", "allowed: a side in pixels, or [height, width]"]),
        ("data.image_size=28x28", ["data.image_size = '28x28'", "valid integer"]),
        ("data.channels=2", ["data.channels = 2", "should be 1 or 3"]),
        ("data.strict=true", ["data.strict = True", "data.name = 'bundled'"]),
        ("data.config=plain", ["data.config = 'plain'", "there is no Hugging Face dataset"]),
        ("data.partition=folder", ["data.partition = 'folder'", "needs data.name = 'folder'", "'bundled'"]),
        ("data.path=", ["data.path = ''"]),
        ("model.checkpoint=~no-such-user/x", ["model.checkpoint = '~no-such-user/x'", "no such user"]),
        ("data.name=~no-such-user/x", ["data.name = '~no-such-user/x'", "no such user"]),
        ("client.batch_size=0", ["client.batch_size = 0", "greater than or equal to 1"]),
        ("strategy.ema=2", ["strategy.ema = 2", "less than 1"]),
        ("client.seed=0", ["client.seed = 0", "the public seed too"]),
        ("seed=true", ["seed = true", "neither true nor false"]),
        ("client.local_steps=3", ["client.local_steps = 3", "client.update = 'gradient'"]),
        ("federation.clients_per_round=9", ["federation.clients_per_round = 9", "federation.clients = 4"]),
        ("data.name=folder", ["data.path", "data.name = 'folder'"]),
        ("seed", ["'seed'", "key=value"]),
        (".x=1", ["'.x=1'", "key=value"]),
        ("# seed=1", ["'# seed=1'", "key=value"]),
        ("client.batch_size=1000000000000", ["client.batch_size = 1000000000000", "less than or equal to 10000"]),
        ("model.layers_per_block=1000000", ["model.layers_per_block = 1000000", "less than or equal to 64"]),
        ("federation.timeout=1e13", ["federation.timeout = 10000000000000.0", "less than or equal to"]),
        ("federation.client_cpus=1e400", ["federation.client_cpus = inf", "finite number"]),
        ("federation.timeout=inf", ["federation.timeout = inf", "finite number"]),
        (f"seed=0x{'f' * 5000}", ["seed = '0xfff", "valid integer"]),
        (f"{'a.' * 5000}b=1", ["expected key=value"]),
        ("model.num_train_timesteps=1000000000", ["model.num_train_timesteps = 1000000000", "100000"]),
        ("ray.address=", ["ray.address = ''"]),
        ("ray.address=nonsense", ["ray.address = 'nonsense'"]),
        ("ray.address=ray://127.0.0.1:10001", ["ray.address = 'ray://127.0.0.1:10001'", "Ray Client"]),
        ("model.checkpoint=\udcff", ["model.checkpoint", "not valid UTF-8"]),
        ("task=[]", ["task = []", "'classification'"]),
        ("task={}", ["task"]),
        (f"seed={'9' * 5000}", ["seed = '999", "valid integer"]),
        (f"client.lr={'[' * 5000}", ["client.lr = '[[["]),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(override: str, fragments: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, {}, [override])
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_adam_has_two_betas() -> None:
    adam = ["client.update=weights", "client.optimizer=adam"]
    with pytest.raises(SettingsError, match=r"client\.betas = \[0\.9\]: allowed: two numbers"):
        load_settings(Settings, {}, [*adam, "client.betas=[0.9]"])


def test_a_client_draws_no_more_images_than_fit_anywhere() -> None:
    with pytest.raises(SettingsError, match=r"client\.batch_size = 10000: .* would draw 100,000,000 images in a round"):
        load_settings(Settings, {}, ["client.batch_size=10000", "client.gradient_accumulation=10000"])


@pytest.mark.parametrize(
    "content",
    ["a = " + "[" * 5000 + "]" * 5000, "a = " + "[" * 40 + "]" * 40, "a = 0x" + "f" * 5000, "a = " + "9" * 5000],
)
def test_a_file_that_nests_too_deep_or_has_endless_numbers_is_no_toml(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(SettingsError, match=r"run\.toml: not valid TOML: "):
        load_settings(Settings, tmp_path / "run.toml")


def test_infinity_is_recorded_as_such() -> None:
    settings = load_settings(Settings, {}, ["strategy.args.clipping_norm=inf"])
    assert load_settings(Settings, tomllib.loads(dump_toml(settings))) == settings


def test_a_name_with_dots_stands_in_quotes() -> None:
    settings = load_settings(Settings, {}, ['strategy.args."my.package:Thing".depth=3', "strategy.args.plain = 1"])
    assert settings.strategy.args == {"my.package:Thing": {"depth": 3}, "plain": 1}


def test_a_value_is_no_table() -> None:
    with pytest.raises(SettingsError, match="seed is a value, not a table"):
        load_settings(Settings, {"seed": 1}, ["seed.x=3"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    endless = tmp_path / "endless.toml"
    with endless.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SettingsError, match=r"endless\.toml: larger than 4 MiB"):
        load_settings(Settings, endless)
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1")
    with pytest.raises(SettingsError, match=r"broken\.toml: not valid TOML"):
        load_settings(Settings, broken)
    with pytest.raises(SettingsError, match=r"missing\.toml: cannot be read"):
        load_settings(Settings, tmp_path / "missing.toml")


def test_overrides_do_not_change_their_source() -> None:
    source = {"client": {"update": "weights", "lr": 0.5}}
    load_settings(Settings, source, ["client.lr=0.25"])
    assert source == {"client": {"update": "weights", "lr": 0.5}}


def test_the_flower_run_directory_follows_config_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_HOME", "/env")
    assert flower_run_directory(SimpleNamespace(run_config={"out": ""}, run_id=7)) == Path("/env/run-7")
    assert flower_run_directory(SimpleNamespace(run_config={"out": "/out"}, run_id=7)) == Path("/out/run-7")


def test_the_home_folder_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = load_settings(Settings, {}, ["data.name=folder", "data.path=~/my photos"])
    assert folder.data.path == tmp_path / "my photos"
    assert load_settings(Settings, {}, ["data.name=~/saved"]).data.name == str(tmp_path / "saved")
    assert load_settings(Settings, {}, ["data.name=some/one~s"]).data.name == "some/one~s"
    assert tomllib.loads(dump_toml(folder))["data"]["path"] == str(tmp_path / "my photos")
