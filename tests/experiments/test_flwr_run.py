"""``flwr run .`` on a local SuperLink of its own, as docs/flower.md describes it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from experiments.leakage import TIME_COLUMNS
from experiments.run_directory import RunDirectory
from tests.experiments.in_process import run_in_process
from tests.processes import kill_all, with_descendants

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = (
    "federation.clients=2 federation.rounds=1 attack.workers=1 attack.args.residual.max_evaluations=5 "
    "model.checkpoint=none model.block_out_channels=[8,8] model.norm_num_groups=4"
)


@pytest.fixture
def environment(tmp_path: Path, ray_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Folders and ports of its own for Flower; whatever was started with them is killed at the end."""
    programs = Path(sys.executable).parent
    control, http = _free_ports(2)
    yield ray_environment | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FL_SIM_HOME": str(tmp_path / "runs"),
    }
    kill_all([process for link in _superlinks(tmp_path) for process in with_descendants(link.pid)])


@pytest.mark.ray
def test_flwr_run_leaves_the_run_directory_that_fl_sim_run_leaves(tmp_path: Path, environment: dict[str, str]) -> None:
    command = ["flwr", "run", str(REPOSITORY), "--stream", "--run-config", f'overrides="{OVERRIDES}"']
    resources = "num-supernodes=2 client-resources-num-cpus=2 init-args-num-cpus=2"
    done = subprocess.run(
        [*command, "--federation-config", resources],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    folders = list((tmp_path / "runs").glob("run-*"))
    assert len(folders) == 1, done.stdout + done.stderr
    directory = RunDirectory.open(folders[0])
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["status"].tolist() == ["ok", "ok"], done.stdout
    assert pd.read_parquet(directory.rounds)["clients_seen"].map(list).tolist() == [[0, 1]]

    same = run_in_process(tmp_path / "same", directory.settings())
    assert _files(directory) == _files(same), done.stdout
    times = list(TIME_COLUMNS)
    pd.testing.assert_frame_equal(
        leakage.drop(columns=times), pd.read_parquet(same.leakage_parquet).drop(columns=times), check_exact=True
    )


def _files(directory: RunDirectory) -> set[str]:
    return {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}


def _superlinks(home: Path) -> list[psutil.Process]:
    """The SuperLinks whose command line names a file under ``home``: ``flwr run`` leaves its own running."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(home) in word for word in process.info["cmdline"] or ())]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
