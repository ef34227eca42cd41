"""The folder of the captures of a run, which holds no more bytes than it may."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ByteSize

from attacks.observation import Observation, UpdateId
from fl_sim.files import write_atomically
from strategies.errors import StrategyError


class NoRoomError(StrategyError):
    """A capture that would take more room than the captures may."""


class CaptureFolder:
    """One file for each update that was seen, called ``round-0001-client-0003.safetensors``.

    Its methods may be called from several threads.

    Args:
        path: the folder, made with its first file; files that are there count.
        max_disk: the most bytes that all files together may take; no limit if None.
    """

    def __init__(self, path: Path, max_disk: int | None = None) -> None:
        self._path, self._max_disk = path, max_disk
        self._used = sum(capture.stat().st_size for capture in self)
        self._counting = threading.Lock()

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self._path.glob("*.safetensors")))

    def keep(self, observation: Observation) -> Path:
        """Write the capture, whole or not at all, and return its file.

        Raises:
            NoRoomError: if there is no room for it; nothing is written then.
        """
        path = self._path / f"{observation.circumstances.update_id.stem}.safetensors"
        self._check_room(observation.nbytes)

        def save(file: Path) -> None:
            observation.save(file)
            self._check_room(file.stat().st_size)

        write_atomically(path, save)
        with self._counting:
            self._used += path.stat().st_size
        return path

    def remove(self, update_id: UpdateId) -> None:
        """Remove the capture of an update, if it is there; the room that it took is free again."""
        path = self._path / f"{update_id.stem}.safetensors"
        with suppress(FileNotFoundError), self._counting:
            self._used -= path.stat().st_size
            path.unlink()

    def _check_room(self, size: int) -> None:
        if self._max_disk is not None and self._used + size > self._max_disk:
            raise NoRoomError(f"not captured: captures fill max_disk = {readable(self._max_disk)}")


def readable(size: int) -> str:
    """A number of bytes with its unit.

    >>> readable(2_000_000_000)
    '2.0GB'
    """
    return ByteSize(size).human_readable(decimal=True)
