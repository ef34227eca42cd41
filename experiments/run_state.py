"""Where a run is: what it takes to go on after a crash, a kill or Ctrl-C, to the same weights and the same tables.

The state of the last round is one file of the run directory, replaced round by round once the round's captures are on
the disk. Clients remember nothing: what they draw follows from their seed, their number and the round. So the state is
the global weights, what the strategy remembers, and what was written down of the rounds so far. Attacks that had not
ended start again.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from attacks.observation import UpdateId
from attacks.reconstruction_file import load_reconstruction
from attacks.workers import POOL_CLOSED
from experiments.leakage import OK, observing_peer, read_leakage
from experiments.rounds import Round
from experiments.run_directory import RunDirectory
from fl_sim.config import SettingsError
from fl_sim.errors import UserError, explain
from fl_sim.files import write_atomically
from fl_sim.network import read_safetensors
from fl_sim.network.json_text import parse_json
from fl_sim.repeatable_grid import RoundLog
from strategies.errors import StrategyError
from strategies.state import Tree, decode, encode, restore_state, state_of

STATE = "state"
"""Metadata key of the file."""

_LOGS, _ROUNDS = TypeAdapter(tuple[RoundLog, ...]), TypeAdapter(tuple[Round, ...])


@dataclass(frozen=True)
class RunState:
    """A run after ``round`` rounds.

    Attributes:
        run: the run's name, a digest of its settings.
        arrays: the global weights, as they travel.
        strategy: what the strategy remembers, a tree for each of its layers; ``tensors`` are the arrays in it.
        average: the moving average of the global weights; empty where there is none.
        logs: who took part in each round.
        rounds: the rows of the rounds table.
    """

    run: str
    round: int
    arrays: ArrayRecord
    strategy: list[Tree]
    tensors: dict[str, Tensor]
    average: dict[str, Tensor]
    logs: tuple[RoundLog, ...]
    rounds: tuple[Round, ...]

    @classmethod
    def of(
        cls,
        run: str,
        arrays: ArrayRecord,
        strategy: Strategy,
        average: Mapping[str, Tensor],
        logs: Sequence[RoundLog],
        rounds: Sequence[Round],
    ) -> "RunState":
        """The state now, in copies: the run may go on while it is written.

        Raises:
            StrategyError: if the strategy remembers something that cannot be written down.
        """
        trees, tensors = state_of(strategy)
        return cls(run, len(logs), arrays, trees, tensors, dict(average), tuple(logs), tuple(rounds))

    def restore(self, strategy: Strategy) -> None:
        """Let a fresh ``strategy`` of the same settings remember the rounds so far.

        Raises:
            StrategyError: if it is another one, or the state is damaged.
        """
        try:
            restore_state(strategy, self.strategy, self.tensors)
        except StrategyError:
            raise
        except Exception as error:  # whatever somebody else wrote
            raise StrategyError(f"the state that was kept is damaged: {explain(error)}") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = dict(self.tensors)
        facts = {
            "run": self.run,
            "arrays": encode(self.arrays, "arrays", tensors),
            "average": encode(self.average, "average", tensors),
            "strategy": self.strategy,
            "logs": [asdict(log) for log in self.logs],
            "rounds": [asdict(entry) for entry in self.rounds],
        }
        write_atomically(path, lambda file: save_file(tensors, file, metadata={STATE: json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> "RunState":
        """Read the file; SettingsError if it is none."""
        try:
            tensors, metadata = read_safetensors(path)
            facts = parse_json(metadata[STATE], finite=False)  # NaN: a figure that a round has not
            arrays, average = (decode(facts[name], tensors) for name in ("arrays", "average"))
            logs, rounds = _LOGS.validate_python(facts["logs"]), _ROUNDS.validate_python(facts["rounds"])
            run, strategy = str(facts["run"]), list(facts["strategy"])
        except Exception as error:  # whatever a library raises about what somebody else wrote
            raise SettingsError(f"{path}: not the state of a run: {' '.join(str(error).split())}") from error
        return cls(run, len(logs), arrays, strategy, tensors, average, logs, rounds)


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left in its directory: its state, None before its first round, and its leakage rows."""

    state: RunState | None
    leakage: list[dict[str, Any]]
    ended: frozenset[tuple[UpdateId, str]]
    """The attacks that had ended, each on an update."""

    @property
    def rounds(self) -> int:
        """How many rounds it finished."""
        return 0 if self.state is None else self.state.round


@dataclass(frozen=True)
class Attacked:
    """The rows that the leakage table has of one attack on one update; it need not have ended."""

    directory: RunDirectory
    update: UpdateId
    attack: str
    rows: list[dict[str, Any]]

    @property
    def key(self) -> tuple[UpdateId, str]:
        """Which update, and which attack."""
        return self.update, self.attack

    @property
    def failed(self) -> bool:
        """Whether there is no reconstruction."""
        return bool(self.rows[0]["status"] != OK)

    @property
    def file(self) -> Path:
        """Where its reconstruction is."""
        update = self.update
        return self.directory.reconstruction(update.round, update.client, self.attack, update.observer)

    def whole(self) -> bool:
        """Whether there is a reconstruction, and all of it was written."""
        try:
            return not self.failed and len(load_reconstruction(self.file).images) == len(self.rows)
        except (UserError, OSError):
            return False

    def ended(self) -> bool:
        """Whether it is whole, or was tried to the end and failed."""
        return self.rows[0]["status"] != POOL_CLOSED if self.failed else self.whole()


def attacks_in(directory: RunDirectory) -> Iterator[Attacked]:
    """Every attack of which the leakage table has rows; SettingsError if it is no such table."""
    if not directory.leakage_csv.is_file():
        return
    frame = read_leakage(directory.leakage_csv)
    for _, group in frame.groupby(["round", "client", "observer", "attack"], sort=False):
        rows = [{str(column): value for column, value in row.items()} for row in group.to_dict("records")]
        yield Attacked(directory, _update_in(rows[0]), str(rows[0]["attack"]), rows)


def take_up(
    directory: RunDirectory,
    expected: Callable[[RoundLog], Iterable[UpdateId]],
    attacked: Callable[[UpdateId], bool] = lambda _: True,
) -> Earlier:
    """Read what an earlier run left, and remove what it wrote of a round that it did not finish.

    ``expected``: the updates that the attacker saw in a round, none where nobody attacks. ``attacked``: which of them
    are attacked; only their captures must be there.

    Raises:
        SettingsError: if the directory is not as a run leaves it; it is left as it was.
    """
    state = _state_of(directory)
    finished = 0 if state is None else state.round
    files = [path for folder in (directory.captures, directory.reconstructions) for path in folder.glob("*")]
    unfinished = [path for path in files if path.name.endswith(".unfinished") or update_of(path).round > finished]
    attacks = [attack for attack in attacks_in(directory) if attack.update.round <= finished and attack.ended()]
    rows, ended = [row for attack in attacks for row in attack.rows], frozenset(attack.key for attack in attacks)
    seen = {update for log in (() if state is None else state.logs) for update in expected(log)}
    told = {update for update, _ in ended}
    needed = {update for update in seen if attacked(update)} - told
    _check_captures(directory, {*directory.captures.glob("*.safetensors")} - {*unfinished}, seen, needed)
    for path in unfinished:
        path.unlink()
    return Earlier(state, rows, ended)


def _state_of(directory: RunDirectory) -> RunState | None:
    """The state that a run left; None if it had not begun. SettingsError if it is of another one, or gone."""
    if not directory.state.is_file():
        if any(directory.captures.glob("*")):
            raise SettingsError(
                f"{directory.path}: there are captures, but no {directory.state.name} to go on from; allowed: all the "
                "files of a run that was broken off"
            )
        return None
    state = RunState.load(directory.state)
    if state.run != directory.run_name():
        raise SettingsError(
            f"{directory.state}: it is of other settings than those in {directory.config.name}; allowed: both as the "
            "run left them"
        )
    return state


def _check_captures(
    directory: RunDirectory,
    there: Collection[Path],
    seen: Collection[UpdateId],
    needed: Collection[UpdateId],
) -> None:
    """Refuse captures of updates that nobody saw, and a lack of captures that are still ``needed``."""
    for path in sorted(there):
        if update_of(path) not in seen:
            raise SettingsError(f"{path}: not a capture of this run; allowed: to move it elsewhere")
    for update in needed:
        path = directory.captures / f"{update.stem}.safetensors"
        if path not in there:
            raise SettingsError(f"{path}: is gone, and was not attacked yet; allowed: to put it back")


def update_of(path: Path) -> UpdateId:
    """The update that a capture or a reconstruction is about; SettingsError if its name says none."""
    found = re.fullmatch(r"(round-\d+-(?:client-\d+|sum)(?:-peer-\d+)?)(-.+)?", path.stem)
    if found and path.suffix == ".safetensors" and bool(found[2]) is not (path.parent.name == "captures"):
        update = UpdateId.from_stem(found[1])
        if update.stem == found[1]:
            return update
    raise SettingsError(f"{path}: not a file of a run; allowed: to move it elsewhere")


def _update_in(row: Mapping[str, Any]) -> UpdateId:
    return UpdateId(int(row["round"]), int(row["client"]), observing_peer(row["observer"]))
