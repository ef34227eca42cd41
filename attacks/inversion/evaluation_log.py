"""The evaluations of a search, kept in a file, so that a search that was broken off goes on to the same result.

A search is a deterministic function of its problem and of what its objectives answer. So the file holds no state of a
search, but these answers, in their order. A search that is resumed starts again from its beginning and takes the
answers from the file as long as there are any, without the network; after that it computes. What a search computes
beside its objectives (the gradient at a point, row spaces, timesteps) is computed again. With every answer goes the
SHA-256 of the point that it belongs to, and no other point gets it. So the result is the same, bit for bit, as without
the break.

The file grows by blocks: the length of the body (8 bytes, little endian), its SHA-256 (32 bytes), and the body, a
safetensors file. Tensor ``0``, ``1`` … is the answer of the block's evaluation of that number: the value, followed by
the derivatives. Metadata key ``log`` holds JSON: ``search`` (which search this is), ``seconds`` (that it had taken),
``points`` (the digests) and ``spent`` (gradients of the training loss behind every answer). What follows the last whole
block is ignored. An evaluation takes 4 bytes for each unknown.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.inversion.budget import Budget
from fl_sim.errors import UserError, one_line
from fl_sim.network.json_text import parse_json

MAGIC = b"fl-sim search 1\n"
_LENGTH, _DIGEST = 8, 32


class CheckpointError(UserError):
    """A checkpoint of a search that cannot be read, or that belongs to another search."""


@dataclass(frozen=True)
class Answer:
    """What one evaluation gave: value and derivatives as one vector, and the gradients of the training loss it took."""

    point: str
    spent: int
    values: Tensor


@dataclass(frozen=True)
class _Block:
    """The answers of one stretch of the search; ``end`` is the place in the file where the block ends."""

    search: Mapping[str, Any]
    seconds: float
    answers: list[Answer]
    end: int


class _Content(BaseModel):
    """What the metadata of a block holds."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    search: dict[str, Any]
    seconds: float = Field(ge=0)
    points: list[str]
    spent: list[Annotated[int, Field(ge=0, lt=2**53)]]


class EvaluationLog:
    """The log of one search, as a context manager around it; leaving it writes what is not written yet.

    Args:
        path: the file. It is not touched before the first answer is written.
        search: which search this is, as JSON: whatever its result depends on.
        resume: go on from the file, which must be there; else it must not be there.
        every_seconds: seconds between two writes; 0 writes every evaluation at once.

    Attributes:
        earlier_seconds: how long the search had taken when the file was last written.

    Raises:
        CheckpointError: if there is nothing to go on from, the file is there already, or it is of another search.
    """

    def __init__(
        self, path: Path, search: Mapping[str, Any], *, resume: bool = False, every_seconds: float = 300.0
    ) -> None:
        self._path, self._search, self._every_seconds = path, search, every_seconds
        self._pending: list[Answer] = []
        self._computing = False
        self._count = 0
        self._end = 0
        self.earlier_seconds = 0.0
        if resume:
            self._check()
        elif not path.absolute().parent.is_dir():
            raise CheckpointError(f"--checkpoint {path}: there is no folder {path.absolute().parent}")
        elif path.exists():
            raise CheckpointError(f"--checkpoint {path}: is there already; allowed: a new file, or --resume")
        self._known = (answer for block in _blocks(path) for answer in block.answers) if resume else iter(())
        self._started = self._saved = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.save()

    def evaluate(
        self,
        objective: Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]],
        unknowns: Sequence[Tensor],
        budget: Budget,
    ) -> tuple[Tensor, list[Tensor]]:
        """``objective(unknowns)``, from the file if it has it; ``budget`` is charged in either case.

        Within an objective that is being evaluated, others are not kept: the answer of the outer one has all of it.

        Raises:
            CheckpointError: if the file has the answer for another point, or cannot be written.
        """
        if self._computing:
            return objective(unknowns)
        point = _digest(unknowns)
        known = next(self._known, None)
        self._count += 1
        if known is not None:
            return self._recall(known, point, unknowns, budget)
        before = budget.spent
        self._computing = True
        try:
            value, derivatives = objective(unknowns)
        finally:
            self._computing = False
        values = torch.cat([value.reshape(1), *(derivative.reshape(-1) for derivative in derivatives)])
        self._pending.append(Answer(point, budget.spent - before, values.detach().cpu()))
        if time.perf_counter() - self._saved >= self._every_seconds:
            self.save()
        return value, derivatives

    def save(self) -> None:
        """Write the answers that are not written yet; a write that is broken off is as if it had not begun.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        pending = list(self._pending)
        if not pending:
            return
        try:
            end = self._append(self._body(pending))
        except OSError as error:
            raise CheckpointError(f"--checkpoint {self._path}: cannot be written: {error.strerror}") from error
        left, now = self._pending[len(pending) :], time.perf_counter()
        # A signal interrupts calls and loops, not a row of assignments: the file's end and what is left stay in step.
        self._end, self._pending, self._saved = end, left, now

    def _append(self, body: bytes) -> int:
        """Put a block after the last whole one; returns where it ends."""
        with self._path.open("r+b" if self._end else "wb") as file:
            if not self._end:
                file.write(MAGIC)
            file.seek(self._end or len(MAGIC))
            file.truncate()
            file.write(len(body).to_bytes(_LENGTH, "little") + sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def seconds(self) -> float:
        """How long the search has taken, earlier sessions included."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def _check(self) -> None:
        """Find the end of the last whole block, and refuse the file of another search."""
        if not self._path.is_file():
            raise CheckpointError(f"--resume: there is no file {self._path}; allowed: a checkpoint of the same search")
        for block in _blocks(self._path):
            for key in sorted({*block.search, *self._search}):
                theirs, ours = block.search.get(key), self._search.get(key)
                if theirs != ours:
                    raise CheckpointError(
                        f"--checkpoint {self._path}: is of another search: {key} = {one_line(json.dumps(theirs), 80)}, "
                        f"here {one_line(json.dumps(ours), 80)}"
                    )
            self._end, self.earlier_seconds = block.end, block.seconds
        if not self._end:
            raise CheckpointError(f"--checkpoint {self._path}: nothing in it is whole; start without --resume")

    def _recall(
        self, known: Answer, point: str, unknowns: Sequence[Tensor], budget: Budget
    ) -> tuple[Tensor, list[Tensor]]:
        sizes = [unknown.numel() for unknown in unknowns]
        if known.point != point or len(known.values) not in (1, 1 + sum(sizes)):
            raise CheckpointError(
                f"--checkpoint {self._path}: the search comes to another point than before at evaluation "
                f"{self._count}; go on where it was started: the same machine, versions and attack"
            )
        budget.spend(known.spent)
        value, flat = known.values[0].clone(), known.values[1:]
        pieces = flat.split(sizes) if len(flat) else ()
        derivatives = [
            piece.clone().view(unknown.shape).to(unknown.device)
            for piece, unknown in zip(pieces, unknowns, strict=bool(pieces))
        ]
        return value.to(unknowns[0].device), derivatives

    def _body(self, answers: Sequence[Answer]) -> bytes:
        content = {
            "search": self._search,
            "seconds": self.seconds(),
            "points": [answer.point for answer in answers],
            "spent": [answer.spent for answer in answers],
        }
        tensors = {str(number): answer.values for number, answer in enumerate(answers)}
        return safetensors.torch.save(tensors, metadata={"log": json.dumps(content)})


def _digest(unknowns: Sequence[Tensor]) -> str:
    """SHA-256 of the bytes of all unknowns, in hexadecimal."""
    digest = sha256()
    for unknown in unknowns:
        digest.update(unknown.detach().contiguous().reshape(-1).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[_Block]:
    """The whole blocks of a log up to the first that is not, one at a time.

    Raises:
        CheckpointError: if the file is no log.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"--checkpoint {path}: is no checkpoint of a search")
        size = path.stat().st_size
        while len(length := file.read(_LENGTH)) == _LENGTH:
            expected, bytes_left = int.from_bytes(length, "little"), size - file.tell() - _DIGEST
            if expected > bytes_left:
                return
            digest, body = file.read(_DIGEST), file.read(expected)
            if sha256(body).digest() != digest:
                return
            try:
                yield _parse(body, file.tell())
            except Exception as error:  # whatever a library raises about what somebody else wrote
                raise CheckpointError(
                    f"--checkpoint {path}: is no checkpoint of a search: {one_line(error)}"
                ) from error


def _parse(body: bytes, end: int) -> _Block:
    header_length = int.from_bytes(body[:8], "little")
    content = _Content.model_validate(
        parse_json(parse_json(body[8 : 8 + header_length].decode())["__metadata__"]["log"])
    )
    tensors = safetensors.torch.load(body)
    described = zip(content.points, content.spent, strict=True)
    answers = [Answer(point, spent, tensors[str(number)]) for number, (point, spent) in enumerate(described)]
    for number, answer in enumerate(answers):
        if (
            answer.values.ndim != 1
            or answer.values.dtype not in (torch.float32, torch.float64)
            or not len(answer.values)
        ):
            raise ValueError(f"answer {number} is {answer.values.dtype} of shape {list(answer.values.shape)}")
    return _Block(content.search, content.seconds, answers, end)
