"""A run on an existing Ray cluster of two nodes, of which one dies with its attacks and another joins."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments import nodes
from experiments.experiment import prepare
from experiments.leakage import TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from experiments.settings import load_run
from fl_sim.config import DataSettings, SettingsError
from tests.experiments.test_resume import start
from tests.ray_cluster import cluster, kill, works_on

TINY = (
    "client.seed=11",
    "federation.clients=2",
    "federation.rounds=1",
    "federation.client_cpus=1",
    "model.checkpoint=none",
    "model.block_out_channels=[8]",
    "model.norm_num_groups=4",
    "utility.every=2",
    "utility.samples=0",
    "attack.workers=1",
    "attack.args.residual.max_evaluations=40",
)

LORA = ("client.update=weights", "client.lora.rank=2")


def command(out: Path, *settings: str) -> list[str]:
    program = str(Path(sys.executable).with_name("fl-sim"))
    return [program, "run", "demo-16", *(word for each in settings for word in ("--set", each)), "--out", str(out)]


def rows(directory: RunDirectory) -> list[dict[str, object]]:
    frame = read_leakage(directory.leakage_csv).drop(columns=["run", "peak_memory", *TIME_COLUMNS], errors="ignore")
    return frame.sort_values(["round", "client", "image"]).astype(str).to_dict("records")


def until(condition: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    while not condition():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_dies_costs_a_retry_and_one_that_joins_is_used(tmp_path: Path) -> None:
    with cluster(num_cpus=1) as running:
        second = running.add_node(num_cpus=0, resources={"attack": 1})
        words = command(tmp_path / "run", *TINY, f"ray.address={running.address}")
        run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until(lambda: works_on(second, "ray::AttackWorker.attack"), run)
        kill(running, second)
        third = running.add_node(num_cpus=0, resources={"attack": 1})
        until(lambda: works_on(third, "ray::AttackWorker.attack"), run)
        output, _ = run.communicate()
        assert run.returncode == 0, output
    assert "attack worker died" in output
    found = rows(RunDirectory(tmp_path / "run"))
    assert len(found) == 2
    assert {row["status"] for row in found} == {"ok"}
    assert found == rows(start(tmp_path / "alone", *TINY, "federation.clients_per_round=2", "attack.name=residual"))


def test_a_node_that_has_something_else_is_named(tmp_path: Path) -> None:
    experiment = prepare(load_run("demo-16", [*TINY, "ray.address=auto", "strategy.name=FedAvg", *LORA]))
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"the whole model")
    here = nodes.facts(experiment.settings.data, [str(base)])
    for change, complaint in (
        ({}, None),
        ({"fl-sim": "0.0.1"}, f"node b: fl-sim: 0.0.1 there, {here['fl-sim']} here; allowed: the same on every node"),
        ({"source of fl-sim": "0"}, "node b: source of fl-sim: 0 there"),
        ({"images": "no images"}, "node b: images: no images there, 88 images ("),
        ({str(base): "No such file or directory"}, f"node b: {base}: No such file or directory there"),
    ):
        with patch.object(nodes, "_of_nodes", lambda *_, change=change: {"a": here, "b": here | change}):
            if complaint is None:
                nodes.check_nodes(experiment, base)
                continue
            with pytest.raises(SettingsError) as caught:
                nodes.check_nodes(experiment, base)
            assert complaint in str(caught.value)
    with (
        patch.object(nodes, "_of_nodes", lambda *_: {"b": "No module named 'experiments'"}),
        pytest.raises(SettingsError, match="node b cannot be used: No module named 'experiments'"),
    ):
        nodes.check_nodes(experiment, base)


def test_what_a_machine_has_follows_from_names_and_pixels(tmp_path: Path) -> None:
    assert nodes.facts(DataSettings(), []) == nodes.facts(DataSettings(), [])
    assert nodes.facts(DataSettings(), [])["images"] != nodes.facts(DataSettings(tiles_per_side=2), [])["images"]
    assert "data.path" in nodes.facts(DataSettings(name="folder", path=tmp_path / "nowhere"), [])["images"]
    file = tmp_path / "prior.safetensors"
    assert nodes.facts(DataSettings(), [str(file)])[str(file)] == "No such file or directory"
    file.write_bytes(b"one")
    one = nodes.facts(DataSettings(), [str(file)])[str(file)]
    file.write_bytes(b"two")
    assert nodes.facts(DataSettings(), [str(file)])[str(file)] != one
