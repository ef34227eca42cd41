"""What an honest-but-curious server saw of one client in one round, and the capture file that stores it.

An Observation is all that an attack ever gets. It has no field for the private image; noise, timesteps and labels are
there in the known threat model alone, where the server dictated the first two and clients revealed the last.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from safetensors import TensorSpec, serialize_file
from torch import Tensor, nn

from fl_sim import network
from fl_sim.diffusion import DiffusionTask, num_train_timesteps
from fl_sim.errors import UserError, dotted, first_error
from fl_sim.network import (
    ConfigError,
    LocalOptimizer,
    TrainingTask,
    misfit,
    outline,
    read_safetensors,
    trainable_parameters,
)
from fl_sim.network.json_text import parse_json
from fl_sim.task import TASKS, Task


class ThreatModel(StrEnum):
    """What the server knows of a client's random draws and of its labels (arXiv 2405.20380)."""

    KNOWN = "known"
    PRIVATE = "private"


class CaptureError(UserError):
    """A capture that cannot be read, or an update that does not fit its model."""


@dataclass(frozen=True)
class UpdateId:
    """Whose update was seen, and by whom: a curious peer, or the server where ``observer`` is None.

    Client -1 stands for the sum over a round's clients.
    """

    round: int
    client: int
    observer: int | None = None

    @property
    def stem(self) -> str:
        """What file names begin with: ``round-0001-client-0003``, followed by ``-peer-0005`` if that peer saw it.

        Of a sum it is ``round-0001-sum``.
        """
        whose = "sum" if self.client < 0 else f"client-{self.client:04d}"
        by = "" if self.observer is None else f"-peer-{self.observer:04d}"
        return f"round-{self.round:04d}-{whose}{by}"

    @classmethod
    def from_stem(cls, stem: str) -> "UpdateId":
        """The update of a file's ``stem``; ValueError if it is none."""
        found = re.fullmatch(r"round-(\d+)-(?:client-(\d+)|sum)(?:-peer-(\d+))?", stem)
        if found is None:
            raise ValueError(f"{stem!r} names no update")
        round_number, client, observer = (None if part is None else int(part) for part in found.groups())
        assert round_number is not None
        return cls(round_number, -1 if client is None else client, observer)

    def __str__(self) -> str:
        by = "" if self.observer is None else f" seen by peer {self.observer}"
        whose = "sum of clients" if self.client < 0 else f"client {self.client}"
        return f"round {self.round} {whose}{by}"


LARGEST_NORM = 1e100
"""Far beyond any use: what defences multiply stays below it, and its square is a number."""


class DefenceDisclosure(BaseModel):
    """What happened to an update before it left the client, as far as the server knows; in this order.

    In local training every sample's gradient clipped to the norm ``sample_clip_norm``, and Gaussian noise of standard
    deviation ``gradient_noise_std`` added to every entry of each batch's mean gradient. Then the update: clipped to the
    norm ``clip_norm``; Gaussian noise of standard deviation ``noise_std`` added to every entry; ``sparsified``: entries
    not sent, which are zero; rounded at random, tensor by tensor, to multiples of the largest magnitude over
    ``quantisation_levels``; reduced to ``signs``, times any magnitude for each tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    sample_clip_norm: float | None = Field(None, gt=0, le=LARGEST_NORM)
    gradient_noise_std: float = Field(0.0, ge=0, le=LARGEST_NORM)
    clip_norm: float | None = Field(None, gt=0, le=LARGEST_NORM)
    noise_std: float = Field(0.0, ge=0, le=LARGEST_NORM)
    sparsified: bool = False
    quantisation_levels: int | None = Field(None, ge=1, lt=2**31)
    signs: bool = False


Whole = Annotated[int, Field(strict=True, lt=2**63)]
"""A whole number; true is none."""
Size = Annotated[int, Field(strict=True, ge=1, le=65_536)]
"""Channels or a side of the images."""


class Circumstances(BaseModel):
    """How the update came about: all that the server knows beside the numbers themselves.

    ``update`` is the mean gradient, or ``delta``: weights after local training minus weights before. With
    ``num_clients`` above 1 the update is the unweighted sum over that many clients and ``client`` is -1.
    ``local_optimizer`` is None where clients send gradients, ``defence`` where nothing was done to the update or the
    server does not know of it. With ``ema_decay`` a delta is that of the weights' moving average over the local steps
    (fl_sim/network/ema.py). What was sent, the gradient or the new weights, was rounded to ``dtype``. ``observer`` is
    the curious peer that saw the update, None for the server.

    ``task`` is what the network was trained for. In JSON its fields stand beside the others. Format 1 knows diffusion
    alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = 2
    task: Task
    round: Whole = Field(ge=1)
    client: Whole = Field(ge=-1)
    update: Literal["gradient", "delta"] = "gradient"
    num_examples: Whole = Field(1, ge=1)
    batch_size: Whole = Field(1, ge=1)
    local_steps: Whole = Field(1, ge=1)
    local_optimizer: LocalOptimizer | None = None
    defence: DefenceDisclosure | None = None
    loss_reduction: Literal["mean"] = "mean"
    ema_decay: float | None = Field(None, ge=0, lt=1, strict=True)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    image_shape: tuple[Size, Size, Size]
    value_range: tuple[Literal[-1], Literal[1]] = (-1, 1)
    model: dict[str, Any]
    num_clients: Whole = Field(1, ge=1)
    observer: Whole | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _gather_task(cls, fields: Any) -> Any:
        """Move the task's own fields, which stand beside the others in JSON, into one object."""
        if not isinstance(fields, dict) or isinstance(fields.get("task"), TrainingTask):
            return fields
        task = fields.get("task", "diffusion")
        own = {"task", *(TASKS[task].model_fields if isinstance(task, str) and task in TASKS else ())}
        given = {name: value for name, value in fields.items() if name in own}
        return {name: value for name, value in fields.items() if name not in own} | {"task": given | {"task": task}}

    @model_serializer(mode="wrap")
    def _spread_task(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        return fields | fields["task"]

    @model_validator(mode="after")
    def _consistent(self) -> "Circumstances":
        if self.format == 1 and not isinstance(self.task, DiffusionTask):
            raise ValueError("format 1 knows diffusion alone; allowed: format 2")
        if self.update == "delta" and self.local_optimizer is None:
            raise ValueError("update 'delta' needs local_optimizer")
        if self.update == "gradient" and self.local_steps > 1:
            raise ValueError("update 'gradient' has local_steps 1; of several steps a delta is sent")
        if self.update == "gradient" and self.ema_decay is not None:
            raise ValueError("update 'gradient' has ema_decay null; weights alone are averaged")
        if (self.num_clients > 1) != (self.client == -1):
            raise ValueError("client is -1 exactly if num_clients is above 1")
        return self

    @property
    def update_id(self) -> UpdateId:
        """Whose update this is about, and who saw it."""
        return UpdateId(self.round, self.client, self.observer)

    @property
    def num_samples(self) -> int:
        """Images behind the update: batch size x local steps x clients."""
        return self.batch_size * self.local_steps * self.num_clients


@dataclass(frozen=True)
class Observation:
    """One update with everything the server knows about it.

    Attributes:
        circumstances: how the update came about.
        weights: the global weights that were sent, float32 by parameter name.
        update: what came back, float32 by name, trainable parameters only.
        noise: [N,C,H,W], dictated by the server (known threat model), else None.
        timesteps: int64 [N], dictated by the server (known threat model), else None.
        labels: int64 [N], revealed by the clients (known threat model, classifier or class-conditional network), else
            None.

    Raises:
        CaptureError: if names, shapes or values do not fit the model that ``circumstances`` names.
    """

    circumstances: Circumstances
    weights: dict[str, Tensor]
    update: dict[str, Tensor]
    noise: Tensor | None = None
    timesteps: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def threat(self) -> ThreatModel:
        """Known exactly if what the server dictated or clients revealed is there: noise and timesteps, labels."""
        return ThreatModel.PRIVATE if self.noise is None and self.labels is None else ThreatModel.KNOWN

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; the capture file takes a little more."""
        return sum(value.nbytes for value in self._tensors().values())

    def save(self, path: Path) -> None:
        """Write the capture file; its layout is described in docs/capture-format.md."""
        tensors = {name: value.cpu().contiguous() for name, value in self._tensors().items()}
        # safetensors.torch.save_file takes seven times as long for the same bytes, for every client in every round.
        specs = {name: _spec(value) for name, value in tensors.items()}
        serialize_file(specs, path, metadata={"observation": self.circumstances.model_dump_json()})

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a capture file."""
        tensors = {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"update/{name}": value for name, value in self.update.items()}
        if self.noise is not None and self.timesteps is not None:
            tensors |= {"noise": self.noise, "timesteps": self.timesteps}
        if self.labels is not None:
            tensors["labels"] = self.labels
        return tensors

    @classmethod
    def load(cls, path: Path, trust: Iterable[str] = ()) -> "Observation":
        """Read a capture file; float16 and bfloat16 become float32, exactly.

        Of a gradient that is stored in such a type ``dtype`` is that type, whatever the metadata says.
        ``trust``: factories that may be imported to build the network, if the capture names one: each the path
        ``package.module:build``. This process trusts them from then on (fl_sim/network/factory.py).

        Raises:
            CaptureError: if the file is missing, truncated, of another format, does not fit its model, or names a
                factory that is not trusted.
            ConfigError: if ``trust`` names something else than factories.
        """
        network.trust(trust)
        stored, circumstances = _read(Path(path))
        if circumstances.update == "gradient" and (half := _half_in(stored)) is not None:
            circumstances = circumstances.model_copy(update={"dtype": half})
        tensors = {name: value.float() if value.dtype in _HALVES else value for name, value in stored.items()}
        weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
        update = {name.removeprefix("update/"): t for name, t in tensors.items() if name.startswith("update/")}
        known = (tensors.get(name) for name in _KNOWN)
        if extra := [name for name in tensors if not name.startswith(("weights/", "update/")) and name not in _KNOWN]:
            raise CaptureError(
                f"{path}: {min(extra)!r} is no tensor of a capture; allowed: weights/…, update/…, {', '.join(_KNOWN)}"
            )
        try:
            return cls(circumstances, weights, update, *known)
        except CaptureError as error:
            raise CaptureError(f"{path}: {error}") from error


_KNOWN = ("noise", "timesteps", "labels")
"""Tensors that are there in the known threat model."""
_HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}  # the coarsest first


def _half_in(stored: dict[str, Tensor]) -> str | None:
    """The coarsest type of 16 bits in which parts of the update are stored; None if there is none."""
    kinds = {value.dtype for name, value in stored.items() if name.startswith("update/")}
    return next((name for kind, name in _HALVES.items() if kind in kinds), None)


def _spec(value: Tensor) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(dtype=dtype, shape=value.shape, data_ptr=value.data_ptr(), data_len=value.nbytes)


def _read(path: Path) -> tuple[dict[str, Tensor], Circumstances]:
    try:
        tensors, metadata = read_safetensors(path)
    except ConfigError as error:
        raise CaptureError(f"{path}: not a readable capture: {error}") from error
    text = metadata.get("observation")
    if text is None:
        raise CaptureError(f"{path}: metadata has no 'observation'; this is not a capture file")
    try:
        return tensors, Circumstances.model_validate(parse_json(text))
    except ValidationError as error:
        first = first_error(error)
        place = first["loc"][2:] if first["loc"][:1] == ("task",) and len(first["loc"]) > 2 else first["loc"]
        raise CaptureError(f"{path}: observation.{dotted(place)}: {first['msg']}") from error
    except ValueError as error:
        raise CaptureError(f"{path}: metadata 'observation' is not JSON: {error}") from error


def _check(observation: Observation) -> None:
    """Refuse whatever cannot be attacked, before an attack spends time on it."""
    circumstances = observation.circumstances
    try:
        circumstances.task.check(circumstances.model, circumstances.image_shape)
        model = outline(circumstances.model)
    except ConfigError as error:
        raise CaptureError(str(error)) from error
    _check_tensors("weights", observation.weights, model, model.state_dict())
    _check_tensors("update", observation.update, model, ())
    if not observation.update:
        raise CaptureError("update is empty")
    if extra := set(observation.update) - set(trainable_parameters(model)):
        raise CaptureError(f"update/{min(extra)} is not a trainable parameter of the model")
    if not any(value.any() for value in observation.update.values()):
        raise CaptureError("update is zero everywhere: it holds no information")
    _check_noise(observation)
    _check_labels(observation, circumstances.task.label_count(circumstances.model))


def _check_tensors(kind: str, tensors: dict[str, Tensor], model: nn.Module, required: Iterable[str]) -> None:
    if reason := misfit(tensors, model, required, f"{kind}/"):
        raise CaptureError(reason)
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise CaptureError(f"{kind}/{name} is {value.dtype}, expected torch.float32")
    if not _are_finite(list(tensors.values())):
        name = next(name for name, value in tensors.items() if not value.isfinite().all())
        raise CaptureError(f"{kind}/{name} holds NaN or infinite values")


_SMALL = 65_536
"""Entries below which tensors are looked at together: that saves time, and the copy of large ones would take memory."""


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every entry is finite, in a fraction of the time and memory of isfinite()."""
    small = [value.ravel() for value in tensors if value.numel() < _SMALL]
    looked_at = [*([torch.cat(small)] if small else []), *(value for value in tensors if value.numel() >= _SMALL)]
    return all(extreme.isfinite() for value in looked_at if value.numel() for extreme in value.aminmax())


def _check_noise(observation: Observation) -> None:
    noise, timesteps, task = observation.noise, observation.timesteps, observation.circumstances.task
    if (noise is None) != (timesteps is None):
        raise CaptureError("noise and timesteps come together or not at all")
    if noise is None or timesteps is None:
        return
    if not isinstance(task, DiffusionTask):
        raise CaptureError(f"noise and timesteps are there, but the task is {task.task!r}, which has none")
    samples, image_shape = observation.circumstances.num_samples, observation.circumstances.image_shape
    if noise.shape != (samples, *image_shape):
        raise CaptureError(f"noise has shape {list(noise.shape)}, expected {[samples, *image_shape]}")
    if noise.dtype != torch.float32 or not noise.isfinite().all():
        raise CaptureError("noise must be torch.float32, without NaN or infinite values")
    if timesteps.shape != (samples,) or timesteps.dtype != torch.int64:
        raise CaptureError(f"timesteps must be int64 of shape [{samples}]")
    last = num_train_timesteps(task.scheduler) - 1
    if timesteps.min() < 0 or timesteps.max() > last:
        raise CaptureError(f"timesteps must lie in 0..{last}")


def _check_labels(observation: Observation, classes: int | None) -> None:
    """In diffusion labels are there exactly if noise is known and the network takes labels."""
    labels, samples = observation.labels, observation.circumstances.num_samples
    diffusion = isinstance(observation.circumstances.task, DiffusionTask)
    if labels is None and observation.noise is not None and classes is not None:
        raise CaptureError("noise and timesteps are known, and labels are missing; the network takes class labels")
    if labels is None:
        return
    if classes is None:
        raise CaptureError("labels are there, but the network takes none")
    if diffusion and observation.noise is None:
        raise CaptureError("labels are there, but noise and timesteps are private")
    if labels.shape != (samples,) or labels.dtype != torch.int64:
        raise CaptureError(f"labels must be int64 of shape [{samples}]")
    if labels.min() < 0 or labels.max() >= classes:
        raise CaptureError(f"labels must lie in 0..{classes - 1}")
