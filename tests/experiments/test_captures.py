"""Which updates are attacked and captured, by the settings."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.captures import describe_captures
from experiments.cli import app
from experiments.experiment import prepare
from experiments.leakage import read_leakage
from experiments.progress import most_attacked
from experiments.run_directory import RunDirectory
from experiments.settings import AttackSettings, load_run
from fl_sim.config import SettingsError
from tests.experiments.test_resume import TINY, start


def attacked(directory: RunDirectory) -> list[tuple[int, int]]:
    frame = read_leakage(directory.leakage_csv)
    return list(zip(frame["round"], frame["client"], strict=True))


def captured(directory: RunDirectory) -> list[str]:
    return sorted(path.stem for path in directory.captures.glob("*"))


def test_only_some_rounds_and_clients_are_attacked_and_captured(tmp_path: Path) -> None:
    everything = start(tmp_path / "all")
    chosen = [(number, client) for number, client in attacked(everything) if number in (2, 3) and client in (0, 2)]
    some = ("attack.every=2", "attack.clients=[0, 2]")
    directory = start(tmp_path / "some", *some, "attack.capture=attacked")
    assert attacked(directory) == chosen != attacked(everything)
    assert captured(directory) == [f"round-{number:04d}-client-{client:04d}" for number, client in chosen]
    every_capture = start(tmp_path / "more", *some)
    assert attacked(every_capture) == chosen
    assert captured(every_capture) == captured(everything)
    assert "stopped before they ended" not in every_capture.report.read_text(encoding="utf-8")


def test_a_run_without_captures_has_the_same_figures_and_cannot_be_attacked_later(tmp_path: Path) -> None:
    directory = start(tmp_path / "run", "attack.capture=none")
    assert len(attacked(directory)) == 6
    assert not captured(directory)
    result = CliRunner().invoke(app, ["attack", str(directory.path)])
    assert result.exit_code == 2
    assert "the run has kept no captures" in result.stderr


def test_captures_for_which_there_is_no_room_are_named_in_the_table(tmp_path: Path) -> None:
    directory = start(tmp_path / "run", "attack.max_disk=130kB")
    status = list(read_leakage(directory.leakage_csv)["status"])
    assert status == ["ok", *["not captured: captures fill max_disk = 130.0KB"] * 5]
    assert sum(path.stat().st_size for path in directory.captures.iterdir()) <= 130_000
    assert "not captured: captures fill max_disk" in directory.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["attack.capture=none", "attack.when=never"], "a run would leave nothing to attack"),
        (["attack.capture=some"], "attack.capture = 'some'"),
        (["attack.max_disk=much"], "attack.max_disk = 'much'"),
        (["attack.max_disk=0"], "attack.max_disk = 0"),
        (["attack.max_disk=80kB"], "attack.max_disk = 80000: a capture takes at least 84632 bytes"),
        (["attack.clients=[3]"], "attack.clients: 3 is no client; allowed: 0 to 2"),
        (["attack.clients=[0]", "defence.name=secure-aggregation"], "the server sees the sum of all clients alone"),
        (["attack.name=none", "attack.capture=none"], "nobody attacks"),
        (
            [
                "attack.clients=[0]",
                "federation.clients=6",
                "federation.clients_per_round=6",
                "federation.topology=ring",
                "federation.curious_peers=[3]",
                "strategy.name=Gossip",
            ],
            "no curious peer hears them; allowed: unset, or some of 2, 4",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: list[str], complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        prepare(load_run("demo-16", [*TINY, *settings]))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ([], 6),
        (["attack.every=2"], 4),
        (["attack.clients=[1]"], 3),
        (["attack.every=9", "defence.name=secure-aggregation"], 1),
    ],
)
def test_the_number_of_attacks_is_known_before(settings: list[str], most: int) -> None:
    assert most_attacked(prepare(load_run("demo-16", [*TINY, *settings]))) == most


def test_a_run_says_what_it_keeps_where_that_is_not_all() -> None:
    assert describe_captures(AttackSettings()) == ""
    thinned = AttackSettings(every=10, clients=(3, 4), capture="attacked", max_disk="2GB")
    assert describe_captures(thinned) == (
        "attacked: updates of clients 3, 4 of every round that is a multiple of 10, and of the last; "
        "no other is captured, 2.0GB at most"
    )
