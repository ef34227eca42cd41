"""Networks of somebody's own: a capture names the factory, whose code runs where it is trusted and nowhere else."""

from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.attack import AttackError
from attacks.observation import CaptureError, Observation
from attacks.registry import create
from fl_sim import network
from tests.attacks.conftest import MODEL, make_victim
from tests.attacks.toy_attacks import tiny_observation
from tests.own_networks import HERE, config, trusting

LUCIDRAINS = "denoising_diffusion_pytorch:Unet"


def write_capture(path: Path, observation: Observation, model: dict[str, Any]) -> Path:
    """A capture of the observation that says it is of that model."""
    told = copy(observation)
    object.__setattr__(told, "circumstances", observation.circumstances.model_copy(update={"model": model}))
    told.save(path)
    return path


def test_a_capture_cannot_choose_what_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef build(**_): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for model in ({"_factory": "evil:build"}, MODEL | {"_factory": "evil:build"}):
        path = write_capture(tmp_path / "capture", tiny_observation(), model)
        with trusting("build"), pytest.raises(CaptureError, match="fl-sim attack --trust 'evil:build'") as caught:
            Observation.load(path, trust=["json:loads", "evil.more:build"])
        assert "\n" not in str(caught.value)
        assert not marker.exists()


def test_a_capture_is_read_where_its_factory_is_trusted_by_name(tmp_path: Path):
    with trusting("build"):
        observation = make_victim(model_config=config("build")).observation
    never_built = config("build", width=32, steps=None)
    path = write_capture(tmp_path / "capture", observation, never_built)
    with trusting():
        with pytest.raises(CaptureError, match=f"--trust '{HERE}:build'"):
            Observation.load(path)
        loaded = Observation.load(path, trust=[f"{HERE}:build"])
        assert loaded.circumstances.model == never_built
        assert create("residual", {"max_evaluations": 1}).reconstruct(loaded, seed=7).timesteps.tolist() == [400]


@pytest.mark.parametrize("arguments", [{}, {"steps": 1000}])
def test_a_network_of_ones_own_is_attacked_like_any_other(arguments: dict[str, int]):
    with trusting("build"):
        victim = make_victim(model_config=config("build", **arguments))
        result = create("residual", {"max_evaluations": 150}).reconstruct(victim.observation, seed=7)
    assert result.timesteps.tolist() == [400]
    assert victim.psnr(result.images) > 60


def test_a_class_conditional_network_of_ones_own_leaks_labels_too():
    with trusting("labelled"):
        victim = make_victim(labels=(3,), model_config=config("labelled", num_class_embeds=10))
        result = create("residual", {"max_evaluations": 150}).reconstruct(victim.observation, seed=7)
    assert (result.timesteps.tolist(), result.labels.tolist()) == ([400], [3])
    assert victim.psnr(result.images) > 60


def test_without_time_layers_the_timestep_is_searched_for():
    with trusting("needs_numbers"):
        observation = make_victim(model_config=config("needs_numbers")).observation
        assert create("residual", {"max_evaluations": 60}).reconstruct(observation, seed=7).evaluations > 60
        with pytest.raises(AttackError, match="timesteps cannot be read off"):
            create("residual", {"search_timestep": False}).reconstruct(observation, seed=7)


def test_the_unet_of_denoising_diffusion_pytorch_leaks_as_it_is():
    pytest.importorskip("denoising_diffusion_pytorch")
    with trusting():
        network.trust([LUCIDRAINS])
        model = {"_factory": LUCIDRAINS, "dim": 16, "dim_mults": [1, 2]}
        victim = make_victim((700,), prediction_type="v_prediction", model_config=model)
        result = create("residual", {"max_evaluations": 150}).reconstruct(victim.observation, seed=7)
    assert result.timesteps.tolist() == [700]
    assert victim.psnr(result.images) > 45


@pytest.mark.parametrize("attack", ["gidm-plus", "gidm"])
def test_attacks_of_papers_take_it_too(attack: str, short_recipe: None):
    with trusting("build"):
        victim = make_victim(model_config=config("build"), known=attack == "gidm")
        result = create(attack, {"recipe": "short"}).reconstruct(victim.observation, seed=101)
    assert torch.isfinite(result.images).all()


def test_a_table_of_timesteps_cannot_be_relaxed():
    with trusting("build"):
        victim = make_victim(model_config=config("build", steps=1000))
        with pytest.raises(AttackError, match="needs a time embedding of real numbers; this network has none"):
            create("gidm-plus").reconstruct(victim.observation, seed=101)
