"""A run directory in Python: its tables, its settings, and the images of every attack."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import UpdateId
from experiments.experiment import build_recipe
from experiments.leakage import COLUMNS, match, observing_peer, read_leakage, summed_truth, typed
from experiments.rounds import clients_behind, read_rounds
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError
from fl_sim.wire import Recipe


@dataclass(frozen=True)
class Images:
    """What a client trained on in a round, and what the attacks made of its update; float32 in [0, 1].

    Attributes:
        originals: [N,C,H,W] in the order of the leakage table; None if they cannot be read here, or are not wanted.
        reconstructions: [N,C,H,W] by attack, each in the place of its original; without originals in the attack's own
            order. [1,C,H,W] where one image stands for all. Attacks that failed are not there.
    """

    originals: Tensor | None
    reconstructions: dict[str, Tensor]

    @classmethod
    def of(cls, originals: Tensor | None, found: Iterable[Reconstruction]) -> "Images":
        """Originals with what was found of them, each in its place."""
        return cls(originals, {each.attack: _in_place(originals, each) for each in found})


def _in_place(originals: Tensor | None, found: Reconstruction) -> Tensor:
    return found.images if originals is None or found.representative else match(originals, found.images)


@dataclass(frozen=True)
class LoadedRun:
    """A run directory, of a run that has ended or not; read when it was loaded.

    Attributes:
        path: the directory.
        settings: those that the run was started with, seeds included.
        leakage: a row per (round, client, image, attack); docs/settings.md explains the columns. Empty if nobody
            attacked.
        rounds: a row per round; without columns before the first has ended.
    """

    path: Path
    settings: ExperimentSettings
    leakage: pd.DataFrame
    rounds: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "LoadedRun":
        """Read the directory.

        Raises:
            SettingsError: if it is no run directory, or a file in it is damaged.
        """
        directory = RunDirectory.open(path)
        empty = typed(pd.DataFrame(columns=list(COLUMNS)))
        leakage = read_leakage(directory.leakage_csv) if directory.leakage_csv.is_file() else empty
        return cls(path, directory.settings(), leakage, read_rounds(directory.rounds))

    def images(self, round: int, client: int, observer: int | None = None) -> Images:
        """What ``client`` trained on in that round, and what the attacks on its update found.

        Where the server saw only the sum of a round's updates, ``client`` is -1, and the images are those of all.
        ``observer`` is the curious peer that attacked, None for the server. The originals are drawn once more from the
        run's private seed; they are None if the image set or the checkpoint of the run is not here.

        Raises:
            SettingsError: if the run has no such round or client.
        """
        rounds, clients = self.settings.federation.rounds, self.settings.federation.clients
        if not (1 <= round <= rounds and -1 <= client < clients):
            raise SettingsError(
                f"round {round} client {client}: not in this run; allowed: rounds 1 to {rounds}, clients 0 to "
                f"{clients - 1}, and -1 for the sum of a round's clients"
            )
        update = UpdateId(int(round), int(client), observer)  # from a table they are numpy's
        return Images.of(self._originals(update), self._found(update))

    @cached_property
    def _recipe(self) -> Recipe:
        return build_recipe(self.settings)

    def _originals(self, update: UpdateId) -> Tensor | None:
        try:
            clients = clients_behind(self.rounds, update)
            return summed_truth(self.settings, self._recipe, clients, update.round).images
        except SettingsError:
            return None

    def _found(self, update: UpdateId) -> Iterable[Reconstruction]:
        """The reconstructions that are there and whole, by the attacks that the table tells of."""
        rows = self.leakage[(self.leakage["round"] == update.round) & (self.leakage["client"] == update.client)]
        rows = rows[rows["observer"].map(observing_peer) == update.observer] if update.observer is not None else rows
        for attack in rows["attack"].unique():
            if (found := RunDirectory(self.path).load_reconstruction(update, attack)) is not None:
                yield found
