"""Where the honest-but-curious server puts its observations: into capture files, and into the attack pool's queue."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from attacks.attack import Reconstruction
from attacks.observation import Observation, UpdateId
from attacks.reconstruction_file import save_reconstruction
from attacks.registry import create
from attacks.workers import POOL_CLOSED, QUEUE_FULL, AttackPool, Job, Result
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from strategies.capture_folder import CaptureFolder, NoRoomError
from strategies.errors import ArgumentError

logger = logging.getLogger(__name__)

OnReconstruction = Callable[[UpdateId, str, Result], None]
"""Called with the update's id, the attack, and the reconstruction or the reason why there is none."""


class Sink(Protocol):
    """What HonestButCurious hands its observations to.

    One thread of HonestButCurious calls ``observe`` and ``failed``, one at a time; ``drain`` and ``close`` are called
    after it has ended. What they raise ends the run, after its last round.
    """

    def observe(self, observation: Observation) -> None:
        """Take one observation, without waiting for any attack."""

    def failed(self, update_id: UpdateId, reason: str) -> None:
        """Take the reason why a reply could not be observed."""

    def drain(self) -> None:
        """Wait until the attacks on all observations have ended."""

    def close(self) -> None:
        """Release what the sink holds, and give up attacks that have not ended."""


def log_result(update_id: UpdateId, attack: str, result: Result) -> None:
    """Log in one line how an attack ended."""
    if isinstance(result, Reconstruction):
        outcome = f"matching loss {result.matching_loss:.3g} in {result.seconds:.1f} s"
        logger.info("%s %s: %s", update_id, attack, outcome)
    else:
        logger.warning("%s %s: no reconstruction: %s", update_id, attack, result)


class DirectorySink:
    """Keeps captures and reconstructions in a directory: ``captures/round-0001-client-0003.safetensors`` and
    ``reconstructions/round-0001-client-0003-residual.safetensors``. Files appear whole or not at all.

    Args:
        directory: made when the first file is written.
        attacks: arguments of each attack by name; without any, only captures are written.
        pool: runs the attacks; closed with the sink.
        seed: public root of the attacks' seeds.
        when: attack ``during`` the federation, ``after`` it, when the sink is drained, or ``never``: captures only.
        on_reconstruction: called with every result, one call at a time, after its file was written.
        ended: of a run that was broken off, the attacks on the captures in ``directory`` that had ended, as pairs of
            update and attack; ``attack_the_rest`` queues the others.
        chosen: which updates are attacked; of the others there are only captures.
        capture: which captures stay: ``all``; ``attacked``: those of the updates on which an attack was tried, or is
            left for later; ``none``: each is removed once its last attack has ended.
        max_disk: the most bytes that captures may take. An update for which there is no room is not captured, and
            that is the result of its attacks. No limit if None.
        say: is told once, in one line, that there is no room.

    Raises:
        AttackError: if an attack does not exist or its arguments are wrong.
        StrategyError: if ``directory`` already holds captures, and no run goes on there.
    """

    def __init__(
        self,
        directory: Path,
        attacks: Mapping[str, Mapping[str, Any]],
        pool: AttackPool,
        seed: int = 0,
        *,
        when: Literal["during", "after", "never"] = "during",
        on_reconstruction: OnReconstruction = log_result,
        ended: Collection[tuple[UpdateId, str]] | None = None,
        chosen: Callable[[UpdateId], bool] = lambda _: True,
        capture: Literal["all", "attacked", "none"] = "all",
        max_disk: int | None = None,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        captures = directory / "captures"
        self._reconstructions = directory / "reconstructions"
        if ended is None and captures.exists() and any(captures.iterdir()):
            raise ArgumentError("directory", f"= {str(directory)!r}: already holds captures; name another one")
        # By the attack's own name, which makes a file name even where the attack was given by its dotted path.
        self._attacks = {
            create(name, dict(arguments)).name: (name, dict(arguments)) for name, arguments in attacks.items()
        }
        self._pool = pool
        self._seed = seed
        self._when = when
        self._postponed: list[tuple[UpdateId, Path]] = []
        self._on_reconstruction = on_reconstruction
        self._ended = frozenset(ended or ())
        self._telling = threading.Lock()
        self._captures = CaptureFolder(captures, max_disk)
        self._chosen, self._capture, self._say = chosen, capture, say
        self._said = False
        self._under_attack: dict[UpdateId, _UnderAttack] = {}

    def observe(self, observation: Observation) -> None:
        """Write the capture and queue its attacks."""
        update_id = observation.circumstances.update_id
        try:
            capture = self._captures.keep(observation)
        except NoRoomError as error:
            self._say_once(f"{update_id}: {error}; nor is what follows, while there is no room")
            self.failed(update_id, str(error))
        else:
            self._take(update_id, capture)

    def attack_the_rest(self) -> None:
        """Queue the attacks on the captures of a run that was broken off, but for those that had ended."""
        for capture in self._captures:
            self._take(UpdateId.from_stem(capture.stem), capture)

    def failed(self, update_id: UpdateId, reason: str) -> None:
        """Pass the reason on as the result of every attack."""
        for attack in self._attacks if self._chosen(update_id) else ():
            self._tell(update_id, attack, reason)

    def drain(self) -> None:
        """Wait until every attack has ended; raises what ``on_reconstruction`` raised, if it did."""
        while self._postponed:
            self._attack(*self._postponed.pop(0))
        self._pool.drain()

    def close(self) -> None:
        """Release the workers; attacks that have not ended get their reason."""
        self._pool.close()

    def _take(self, update_id: UpdateId, capture: Path) -> None:
        if not self._attacks or not self._chosen(update_id):
            return
        if self._when == "after":
            self._postponed.append((update_id, capture))
        elif self._when == "during":
            self._attack(update_id, capture)

    def _attack(self, update_id: UpdateId, capture: Path) -> None:
        ended = {attack for attack in self._attacks if (update_id, attack) in self._ended}
        self._under_attack[update_id] = _UnderAttack({*self._attacks} - ended, tried=bool(ended))
        self._release(update_id)
        for attack, (name, arguments) in self._attacks.items():
            if attack not in ended:
                seed = derive_seed(self._seed, "attack", attack, update_id.round, update_id.client)
                self._pool.submit(Job(capture, name, arguments, seed), partial(self._keep, update_id, attack))

    def _keep(self, update_id: UpdateId, attack: str, result: Result) -> None:
        if isinstance(result, Reconstruction):
            path = self._reconstructions / f"{update_id.stem}-{attack}.safetensors"
            write_atomically(path, partial(save_reconstruction, reconstruction=result))
        self._tell(update_id, attack, result)
        if result != POOL_CLOSED:  # else the attack has not ended, and a run that goes on needs the capture
            with self._telling:
                self._under_attack[update_id].end(attack, tried=result != QUEUE_FULL)
                self._release(update_id)

    def _release(self, update_id: UpdateId) -> None:
        """Remove the capture of an update if its last attack has ended and it need not stay."""
        under_attack = self._under_attack[update_id]
        if under_attack.left:
            return
        del self._under_attack[update_id]
        if self._capture == "none" or (self._capture == "attacked" and not under_attack.tried):
            self._captures.remove(update_id)

    def _tell(self, update_id: UpdateId, attack: str, result: Result) -> None:
        with self._telling:
            self._on_reconstruction(update_id, attack, result)

    def _say_once(self, line: str) -> None:
        if not self._said:
            self._said = True
            self._say(line)


@dataclass
class _UnderAttack:
    """The attacks on one update that are ``left``, and whether one that has ended was ``tried``."""

    left: set[str]
    tried: bool = False

    def end(self, attack: str, tried: bool) -> None:
        self.left.discard(attack)
        self.tried |= tried
