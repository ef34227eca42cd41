import pytest

from experiments.sweep.jobs import jobs_that_fit
from tests.experiments.made_up_run import tiny_settings


def test_so_many_run_at_a_time_that_the_processors_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    small, large = tiny_settings("federation.client_cpus=8", "attack.workers=1"), tiny_settings("attack.workers=4")
    assert jobs_that_fit([small]) == 8
    assert jobs_that_fit([small, large]) == 2
    assert jobs_that_fit([tiny_settings("attack.workers=40")]) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert jobs_that_fit([small]) == 1
