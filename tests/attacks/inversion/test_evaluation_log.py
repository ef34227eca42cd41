"""A search that is broken off goes on to the same result, bit for bit, and from no file but its own."""

import errno
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from attacks.attack import Attack, Reconstruction
from attacks.inversion import evaluation_log
from attacks.inversion.evaluation_log import MAGIC, CheckpointError, EvaluationLog
from attacks.inversion.gradient_matching import GradientMatching
from attacks.observation import DefenceDisclosure, Observation
from attacks.registry import create
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim

SEARCH = {"capture": "ab", "seed": 7}
FEW = {"iterations": 6, "sampler_steps": 2, "candidates": 2}
SHORT_TOURNAMENT = {"timestep_tournament": {"first_timesteps": 6, "distances": (20, 1)}}
EARLY_METRIC = {"kfac_metric": {"below": 1.0}, "rules": {"fits_below": 2.0}}


def private() -> Observation:
    return make_victim().observation


def known() -> Observation:
    return make_victim(known=True).observation


def batch() -> Observation:
    return make_victim((400, 100)).observation


def timestep_twice() -> Observation:
    return make_victim((400, 400, 9)).observation


def two_steps() -> Observation:
    return make_victim((400, 100), local_steps=2, optimizer=LocalOptimizer(lr=0.1)).observation


def noisy() -> Observation:
    def add_noise(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return {name: value + 1e-4 * torch.randn(value.shape, generator=generator) for name, value in update.items()}

    return make_victim(defend=add_noise, defence=DefenceDisclosure(noise_std=1e-4)).observation


def without_timestep() -> Observation:
    def keep_back(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in update.items() if "time_emb" not in name}

    return make_victim(defend=keep_back).observation


CASES: dict[str, tuple[str, Callable[[], Observation], dict[str, Any]]] = {
    "dlg": ("dlg", known, {"max_evaluations": 15}),
    "gidm": ("gidm", known, {}),
    "gidm-plus": ("gidm-plus", private, {}),
    "gradient-guided-finetuning": ("gradient-guided-finetuning", known, FEW),
    "fine-tuning, private": ("gradient-guided-finetuning", private, FEW | {"timestep": "search"}),
    "gradient-guided-sampling": ("gradient-guided-sampling", known, {"steps": 8}),
    "inverting-gradients": ("inverting-gradients", known, {"iterations": 12}),
    "residual": ("residual", private, {"max_evaluations": 20}),
    "K-FAC metric": ("residual", private, {"max_evaluations": 50} | EARLY_METRIC),
    "batch": ("residual", batch, {"max_evaluations": 20}),
    "timestep twice": ("residual", timestep_twice, {"max_evaluations": 12}),
    "local steps": ("residual", two_steps, {"max_evaluations": 20}),
    "noise": ("residual", noisy, {"max_evaluations": 24}),
    "tournament": ("residual", without_timestep, {"max_evaluations": 10} | SHORT_TOURNAMENT),
}


class BrokenOffError(Exception):
    pass


def attack_with_log(
    attack: Attack, seen: Observation, path: Path, stop_at: int | None = None, **options: Any
) -> Reconstruction:
    def watch(spent: int, planned: int, value: float) -> None:
        if stop_at is not None and spent >= stop_at:
            raise BrokenOffError

    with EvaluationLog(path, SEARCH, **options) as log:
        return attack.reconstruct(seen, seed=7, log=log, watch=watch)


def break_off(attack: Attack, seen: Observation, path: Path, stop_at: int, **options: Any) -> None:
    with pytest.raises(BrokenOffError):
        attack_with_log(attack, seen, path, stop_at, **options)


def assert_same(one: Reconstruction, other: Reconstruction) -> None:
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.timesteps, other.timesteps)
    assert (one.matching_loss, one.evaluations) == (other.matching_loss, other.evaluations)


@pytest.mark.parametrize("case", CASES)
def test_a_search_that_is_broken_off_twice_ends_as_without_a_break(
    case: str, tmp_path: Path, short_recipe: None
) -> None:
    name, make, arguments = CASES[case]
    attack, seen, path = create(name, arguments), make(), tmp_path / "search.log"
    plain = attack.reconstruct(seen, seed=7)
    break_off(attack, seen, path, plain.evaluations // 3)
    break_off(attack, seen, path, 2 * plain.evaluations // 3, resume=True, every_seconds=0.0)
    assert_same(attack_with_log(attack, seen, path, resume=True), plain)


@pytest.fixture
def attack() -> Attack:
    return create("dlg", {"max_evaluations": 25})


@pytest.fixture
def log_file(attack: Attack, known_victim: Victim, tmp_path: Path) -> Path:
    """A log of eleven blocks."""
    path = tmp_path / "search.log"
    break_off(attack, known_victim.observation, path, stop_at=11, every_seconds=0.0)
    return path


def test_what_is_in_the_file_is_not_computed_again(
    attack: Attack, known_victim: Victim, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    original = GradientMatching._gradients
    monkeypatch.setattr(GradientMatching, "_gradients", lambda self, x: computed.append(1) or original(self, x))
    found = attack_with_log(attack, known_victim.observation, log_file, resume=True)
    assert len(computed) == found.evaluations - 1 - 11  # the last evaluation is of the value alone
    computed.clear()
    attack_with_log(attack, known_victim.observation, log_file, resume=True)
    assert computed == []


def lose_the_end(content: bytes) -> bytes:
    return content[:-1]


def lose_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoil_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def append_nonsense(content: bytes) -> bytes:
    return content + b"nonsense" * 40


@pytest.mark.parametrize("spoil", [lose_the_end, lose_half, spoil_the_middle, append_nonsense])
def test_of_a_damaged_file_what_is_whole_is_used(
    attack: Attack, known_victim: Victim, log_file: Path, spoil: Callable[[bytes], bytes]
) -> None:
    log_file.write_bytes(spoil(log_file.read_bytes()))
    found = attack_with_log(attack, known_victim.observation, log_file, resume=True)
    assert_same(found, attack.reconstruct(known_victim.observation, seed=7))
    assert_same(attack_with_log(attack, known_victim.observation, log_file, resume=True), found)


@pytest.mark.parametrize("content", [b"", b"hello", MAGIC, MAGIC + b"\xff" * 100])
def test_a_file_without_anything_whole_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.log"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"search\.log: (is no checkpoint of a search|nothing in it is whole)"):
        EvaluationLog(path, SEARCH, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "changes",
    [
        {"search": [1]},
        {"seconds": "x"},
        {"seconds": -1.0},
        {"spent": [-1]},
        {"spent": ["x"]},
        {"points": [3]},
        {"points": 3},
        {"answer": torch.ones(())},
        {"answer": torch.ones(2, 2)},
        {"answer": torch.ones(2, dtype=torch.int64)},
        {"answer": torch.ones(0)},
    ],
)
def test_a_block_with_a_valid_hash_around_anything_else_is_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    sound: dict[str, object] = {
        "search": SEARCH,
        "seconds": 1.0,
        "points": ["a"],
        "spent": [1],
        "answer": torch.ones(2),
    }
    content = sound | changes
    body = safetensors.torch.save({"0": content.pop("answer")}, {"log": json.dumps(content)})
    (tmp_path / "search.log").write_bytes(MAGIC + len(body).to_bytes(8, "little") + sha256(body).digest() + body)
    with pytest.raises(CheckpointError, match=r"search\.log: is no checkpoint of a search: "):
        EvaluationLog(tmp_path / "search.log", SEARCH, resume=True)


def test_the_file_of_another_search_is_refused(log_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is of another search: seed = 7, here 8$"):
        EvaluationLog(log_file, SEARCH | {"seed": 8}, resume=True)


def test_answers_for_other_points_are_refused(attack: Attack, known_victim: Victim, log_file: Path) -> None:
    before = log_file.read_bytes()
    with EvaluationLog(log_file, SEARCH, resume=True) as log, pytest.raises(CheckpointError, match="evaluation 1;"):
        attack.reconstruct(known_victim.observation, seed=8, log=log)
    assert log_file.read_bytes() == before


def test_nothing_is_overwritten_and_nothing_is_resumed_from_nowhere(log_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is there already; allowed: a new file, or --resume"):
        EvaluationLog(log_file, SEARCH)
    with pytest.raises(CheckpointError, match="there is no file"):
        EvaluationLog(tmp_path / "gone.log", SEARCH, resume=True)
    with pytest.raises(CheckpointError, match="there is no folder"):
        EvaluationLog(tmp_path / "gone" / "search.log", SEARCH)


def test_a_write_that_is_broken_off_is_made_up_for(
    attack: Attack, known_victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes() -> Iterator[None]:
        yield from [None] * 5
        raise KeyboardInterrupt

    fsync = writes()
    monkeypatch.setattr(evaluation_log.os, "fsync", lambda _: next(fsync, None))
    path = tmp_path / "search.log"
    with pytest.raises(KeyboardInterrupt):
        attack_with_log(attack, known_victim.observation, path, every_seconds=0.0)
    resumed = attack_with_log(attack, known_victim.observation, path, resume=True)
    assert_same(resumed, attack.reconstruct(known_victim.observation, seed=7))


def test_the_seconds_of_all_sessions_count(attack: Attack, known_victim: Victim, log_file: Path) -> None:
    log = EvaluationLog(log_file, SEARCH, resume=True)
    assert 0 < log.earlier_seconds < 100
    log.earlier_seconds = 1000.0
    assert attack.reconstruct(known_victim.observation, seed=7, log=log).seconds > 1000


def test_the_file_is_not_written_before_it_is_due(attack: Attack, known_victim: Victim, tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    with EvaluationLog(path, SEARCH) as log:
        attack.reconstruct(known_victim.observation, seed=7, log=log)
        assert not path.exists()
    assert path.exists()


def test_a_full_disk_is_one_line(
    attack: Attack, known_victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation_log.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"search\.log: cannot be written: No space left on device$"):
        attack_with_log(attack, known_victim.observation, tmp_path / "search.log", every_seconds=0.0)
