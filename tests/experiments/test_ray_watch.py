import shutil
import subprocess
from pathlib import Path
from threading import Event

import pytest

from experiments import ray_watch
from experiments.ray_watch import watched_ray


@pytest.fixture
def raylet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    monkeypatch.setattr(ray_watch, "WATCH_SECONDS", 0.01)
    return subprocess.Popen([shutil.copy("/bin/sleep", tmp_path / "raylet"), "60"])


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_a_process_of_rays_own_that_dies_is_noticed(raylet: subprocess.Popen[bytes]) -> None:
    lost, noticed = list[str](), Event()
    with watched_ray(lambda name: (lost.append(name), noticed.set())):
        assert not noticed.wait(0.5)
        end(raylet)
        assert noticed.wait(10)
    assert lost == ["raylet"]


def test_one_that_ray_ends_itself_is_not_lost(raylet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    noticed, connected = Event(), True
    monkeypatch.setattr(ray_watch, "_connected", lambda: connected)
    with watched_ray(lambda _: noticed.set()):
        assert not noticed.wait(0.5)
        connected = False
        assert not noticed.wait(0.5)
        end(raylet)
        assert not noticed.wait(0.5)


def test_nobody_looks_afterwards(raylet: subprocess.Popen[bytes]) -> None:
    noticed = Event()
    with watched_ray(lambda _: noticed.set()):
        pass
    end(raylet)
    assert not noticed.wait(0.5)
