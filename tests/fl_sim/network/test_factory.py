from pathlib import Path

import pytest
import torch

from fl_sim import diffusion, network, registry
from fl_sim.network import ConfigError, factory
from tests.fl_sim.diffusion.toy import draw, scheduler
from tests.own_networks import HERE, config, trusting

SHAPE = (3, 8, 8)


def check(function: str, **arguments: object) -> None:
    with trusting(function):
        diffusion.check_network(config(function, **arguments), diffusion.scheduler_config(), SHAPE)


def test_a_factory_builds_with_its_arguments_and_trains_with_the_loss_of_all():
    x0, noise, timesteps = draw()
    with trusting("build", "returns_an_object"):
        narrow = network.build_model(config("build", width=16))
        assert diffusion.gradient(narrow, scheduler(), x0, noise, timesteps)["into.weight"].shape == (16, 3, 3, 3)
        torch.manual_seed(0)
        plain = network.build_model(config("build"))
        torch.manual_seed(0)
        wrapped = network.build_model(config("returns_an_object"))
    assert torch.equal(*(diffusion.predict(model, x0, timesteps) for model in (plain, wrapped)))


def test_the_trial_lets_through_what_trains_and_draws_nothing():
    before = torch.get_rng_state()
    for function in ("build", "returns_an_object", "needs_numbers", "with_dropout", "with_batch_norm"):
        check(function)
    check("labelled", num_class_embeds=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_come_third_and_their_number_is_an_argument_of_the_factory():
    model = config("labelled", num_class_embeds=10, width=16)
    assert network.num_classes(model) == 10
    x0, noise, timesteps = draw()
    labels = torch.arange(len(timesteps))
    with trusting("labelled"):
        gradient = diffusion.gradient(network.build_model(model), scheduler(), x0, noise, timesteps, labels)
    assert gradient["kinds.0.weight"].any(dim=1).nonzero().flatten().equal(labels)
    for classes in (0, True, "ten"):
        with pytest.raises(ConfigError, match=r"num_class_embeds = .*; allowed: the number of classes, from 1"):
            check("labelled", num_class_embeds=classes)


def test_an_outline_has_no_numbers():
    with trusting("build"):
        assert {value.device.type for value in network.outline(config("build")).state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("counts", "changes its buffer calls in training"),
        ("without_parameters", "has no parameters that receive gradients"),
        ("with_an_unused_layer", r"does not use its parameter forgotten\.weight; allowed: requires_grad_"),
        ("half_precision", r"has .* of torch\.float16 on cpu; allowed: torch\.float32"),
        ("for_grey_images", r"predicts \[2, 1, 8, 8\] for images of shape \[2, 3, 8, 8\]"),
        ("with_hidden_randomness", r"predicts something else after its state_dict\(\) is loaded"),
        ("not_a_module", r"returns a str; allowed: a torch\.nn\.Module"),
        ("not_there", "cannot be imported: AttributeError"),
    ],
)
def test_a_network_that_cannot_be_trained_or_attacked_is_one_line(function: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        check(function)
    assert "\n" not in str(caught.value)
    assert f"{HERE}:{function}" in str(caught.value)


def test_arguments_that_the_factory_refuses_are_one_line():
    with pytest.raises(ConfigError, match=r"own_networks:build' with \{'depth': 3\}: TypeError: .*depth"):
        check("build", depth=3)
    with pytest.raises(ConfigError, match="predicts something else for an image when others are beside it, as batch n"):
        check("with_batch_norm", running_statistics=False)
    with pytest.raises(ConfigError, match=r"fails on images .*IndexError"):
        check("build", steps=10)  # of 1000 timesteps
    with pytest.raises(ConfigError, match=r"fails on images .* at timesteps \[0, 999\]: TypeError: .*'labels'"):
        check("needs_labels")
    with pytest.raises(ConfigError, match=r"fails on images .* with labels \[0, 19\]: IndexError"):
        check("knows_ten_classes", num_class_embeds=20)


@pytest.mark.parametrize("named", ["evil:build", "evil.nested:build"])
def test_a_factory_that_nobody_trusts_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef build(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("build"):
        for use in (network.build_model, network.outline, network.trainable_names):
            with pytest.raises(ConfigError, match=rf"--trust '{named}'"):
                use({"_factory": named, "_class_name": "UNet2DModel"})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [None, 3, ["evil:build"], "evil", "evil:", ":build"])
def test_a_factory_that_is_no_path_is_one_line(value: object):
    with pytest.raises(ConfigError, match=r"model\._factory = .*; allowed: 'package\.module:build'"):
        network.build_model({"_factory": value})


def test_trust_is_given_by_path_or_by_the_name_of_an_entry_point(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(factory, "plugins", lambda group: {"mine": f"{HERE}:build"} if group == factory.GROUP else {})
    with trusting():
        assert network.trusted() == []
        network.trust(["mine"])
        assert network.trusted() == [f"{HERE}:build"]
        assert isinstance(network.build_model(config("build")), torch.nn.Module)
        with pytest.raises(ConfigError, match=r"'mime' is no factory; .*\(installed: mine\); did you mean 'mine'"):
            network.trust(["mime"])


def test_the_names_of_entry_points_are_those_of_the_group():
    assert registry.plugins(factory.GROUP) == {}


def test_a_factorys_network_says_no_size_and_its_dropout_by_its_argument():
    assert network.image_shape(config("build", sample_size="large")) is None
    assert network.dropout_of(config("build", dropout=0.1)) == 0.1
    assert network.dropout_of(config("build", dropout="none")) == 0
