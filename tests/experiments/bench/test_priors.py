import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.bench import priors
from experiments.bench.classifiers import ClassifierCase
from experiments.bench.priors import SUITES, Options, bench_priors, contenders, make_plan, untrained
from experiments.checkpoint import load_checkpoint
from experiments.package_data import BUNDLED_FILES, BUNDLED_PRIORS
from fl_sim.config import SettingsError

SMALL = ClassifierCase(classifier="ConvNet", data="photographs", image_size=16)


def test_every_attack_is_measured_on_the_same_victim(monkeypatch, tmp_path):
    monkeypatch.setitem(SUITES, "convnet", [SMALL])
    options = Options(quick=True, evaluations=8, seed=4, priors=(BUNDLED_FILES["bundled"],))
    bench_priors(options, 1, tmp_path / "out", Console(quiet=True))
    content = json.loads((tmp_path / "out" / "priors.json").read_text())
    assert [entry["attack"] for entry in content["figures"]] == [each.name for each in contenders(8)]
    assert {row["status"] for row in content["rows"]} == {"ok"}
    assert {row["labels_exact"] for row in content["rows"]} == {True}
    assert {row["prior"] for row in content["rows"]} == {"demo.safetensors", None}
    evaluations = {row["attack"]: row["evaluations"] for row in content["rows"]}
    assert max(evaluations.values()) - min(evaluations.values()) <= 3
    page = (tmp_path / "out" / "priors.md").read_text()
    assert "untrained ConvNet, photographs 16x16, B = 1" in page


def test_a_failure_counts_as_the_worst(monkeypatch, tmp_path):
    monkeypatch.setitem(SUITES, "convnet", [SMALL])
    monkeypatch.setattr(priors, "attempt", lambda *_: "no memory")
    bench_priors(Options(quick=True, priors=(BUNDLED_FILES["bundled"],)), 1, tmp_path / "out", Console(quiet=True))
    figures = json.loads((tmp_path / "out" / "priors.json").read_text())["figures"]
    assert {(entry["median"], entry["recognisable"], entry["seconds"]) for entry in figures} == {(0.0, 0.0, None)}
    assert "fine-tuning: no memory" in (tmp_path / "out" / "priors.md").read_text()


def test_what_has_no_prior_is_left_out_and_said():
    plan = make_plan(Options(only=("digits",), victims=1))
    assert plan.left_out == ["attacks with a prior on digits 16x16: no prior (--prior FILE)"]
    assert {each.contender.prior for each in plan.measurements} == {"none"}


def test_every_case_gets_a_victim_before_any_gets_the_next():
    indices = [each.index for each in make_plan(Options(only=("convnet",), victims=2)).measurements]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1}


def test_a_prior_without_knowledge_is_the_same_network_with_other_weights():
    prior = load_checkpoint(BUNDLED_PRIORS["photographs-32"])
    drawn = untrained(prior, seed=1)
    assert drawn.model == prior.model
    assert drawn.weights.keys() == prior.weights.keys()
    assert not any(
        torch.equal(drawn.weights[name], prior.weights[name]) for name in ("conv_in.weight", "conv_out.weight")
    )
    assert torch.equal(untrained(prior, seed=1).weights["conv_in.weight"], drawn.weights["conv_in.weight"])


def test_what_cannot_be_measured_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="--only resnets: unknown; allowed: convnet"):
        make_plan(Options(only=("resnets",)))
    with pytest.raises(SettingsError, match=r"missing\.safetensors"):
        make_plan(Options(priors=(tmp_path / "missing.safetensors",)))
    assert len(make_plan(replace(Options(), quick=True)).measurements) == 8 * len(SUITES["convnet"])
