"""What crosses the wire between server and clients: names of the records, the recipe, the update in a reply.

The server's train message holds the global weights (``ARRAYS``), or what clients train of them, and a config
(``CONFIG``) with the round and the training recipe as JSON. A client's reply holds one ArrayRecord (its gradient or its
new weights), one MetricRecord, and a ConfigRecord (``CLIENT``) with side information that is public anyway: its
partition index and the device it ran on.
In the known threat model it also holds the labels (``LABELS``) with which a classifier, or a class-conditional network,
was trained.
Neither images, noise, timesteps nor the private seed have a name here.
"""

import math
from collections.abc import Mapping
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load_file
from torch import Tensor

from fl_sim.diffusion import DiffusionTask, num_train_timesteps
from fl_sim.draws import derive_seed, draw_noise_and_timesteps
from fl_sim.network import LORA, LocalOptimizer, matching_names, misfit, outline, trainable_names
from fl_sim.task import Task

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
CLIENT = "client"
ROUND = "server-round"
NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train_loss"
RECIPE = "recipe"
PARTITION = "partition"
DEVICE = "device"
LABELS = "labels"
PROXIMAL_MU = "proximal-mu"
"""Flower's key for the weight of FedProx's proximal term."""
CLIPPING_NORM = KEY_CLIPPING_NORM
"""Flower's key for the norm to which its differential privacy asks clients to clip their updates."""


_NPY_1_0 = b"\x93NUMPY\x01\x00"


class Recipe(BaseModel):
    """How clients train, dictated by the server and therefore known to it.

    ``task`` is what they train for. ``noise_seed`` is set in the known threat model only: clients then draw noise and
    timesteps from it instead of from their private seed, and tell their labels. ``epochs``, if set, replaces
    ``local_steps``: a client takes as many steps as there are batches in that many passes over its images.
    ``optimizer`` has the learning rate of round 1; with a ``lr_schedule`` it falls towards 0 over ``rounds`` rounds.
    ``label_dropout`` is the probability with which a class-conditional network is told its last class, which stands for
    none, in place of an image's own (classifier-free guidance).

    ``trainable`` holds glob patterns of the parameters that clients train. If these are not all, or the model has
    adapters, only the trained parameters travel, in both directions. ``base`` is then a safetensors file with the whole
    model, which server and clients have from the start, like a pretrained model.

    A step's gradient is the mean over ``gradient_accumulation`` batches, which share its ``batch_size`` samples.
    With ``ema_decay`` clients send the average of their weights over the local steps (fl_sim/network/ema.py). What
    clients send is rounded to ``dtype`` (``round_reply``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, Any]
    task: Task
    image_shape: tuple[int, int, int]
    update: Literal["gradient", "weights"] = "gradient"
    batch_size: int = Field(1, ge=1)
    local_steps: int = Field(1, ge=1)
    epochs: int | None = Field(None, ge=1)
    optimizer: LocalOptimizer | None = None
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    rounds: int = Field(1, ge=1)
    noise_seed: int | None = None
    label_dropout: float = Field(0.0, ge=0, lt=1)
    trainable: tuple[str, ...] = ("*",)
    base: str | None = None
    horizontal_flip: bool = False
    gradient_accumulation: int = Field(1, ge=1)
    ema_decay: float | None = Field(None, ge=0, lt=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _batches_are_equal(self) -> "Recipe":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size = {self.batch_size}: not a multiple of gradient_accumulation = "
                f"{self.gradient_accumulation}"
            )
        return self

    def to_config(self) -> ConfigRecord:
        """The ``train_config`` to start a strategy with."""
        return ConfigRecord({RECIPE: self.model_dump_json()})

    @classmethod
    def from_config(cls, config: ConfigRecord) -> "Recipe":
        """Read what ``to_config`` wrote and FedProx added; KeyError if there is no recipe."""
        recipe = cls.model_validate_json(str(config[RECIPE]))
        if PROXIMAL_MU not in config or recipe.optimizer is None:
            return recipe
        optimizer = recipe.optimizer.model_copy(update={"proximal_mu": float(str(config[PROXIMAL_MU]))})
        return recipe.model_copy(update={"optimizer": optimizer})

    def in_round(self, server_round: int) -> "Recipe":
        """The recipe with the learning rate of that round, counted from 1, and a constant schedule."""
        if self.optimizer is None or self.lr_schedule == "constant":
            return self
        done = min(server_round - 1, self.rounds - 1) / self.rounds
        factor = 1 - done if self.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        optimizer = self.optimizer.model_copy(update={"lr": factor * self.optimizer.lr})
        return self.model_copy(update={"optimizer": optimizer, "lr_schedule": "constant"})

    def samples(self, images: int) -> int:
        """N = batch size x local steps: how many samples a client draws that holds ``images`` images."""
        if self.epochs is None:
            return self.batch_size * self.local_steps
        return self.batch_size * max(1, self.epochs * images // self.batch_size)

    def trained_names(self) -> list[str]:
        """Names of the parameters that clients train, in the model's own order; the model is not built in memory."""
        return matching_names(trainable_names(self.model), self.trainable)

    def draw_noise(self, seed: int, samples: int) -> tuple[Tensor | None, Tensor | None]:
        """Noise [samples,C,H,W] and timesteps int64 [samples] of a client's draw; None where the task has none."""
        if not isinstance(self.task, DiffusionTask):
            return None, None
        timesteps = num_train_timesteps(self.task.scheduler)
        return draw_noise_and_timesteps(seed, samples, self.image_shape, timesteps, self.task.noise_offset)

    @property
    def reveals_labels(self) -> bool:
        """Whether clients tell the server their labels: in the known threat model, where training uses labels."""
        return self.noise_seed is not None and self.task.label_count(self.model) is not None

    @property
    def partial(self) -> bool:
        """Whether a part of the model travels rather than its whole state."""
        return self.trainable != ("*",) or LORA in self.model

    def of_samples(self, samples: int) -> "Recipe":
        """The recipe of a client that drew ``samples`` samples, with local steps in place of epochs."""
        if self.epochs is None:
            return self
        return self.model_copy(update={"local_steps": samples // self.batch_size, "epochs": None})


def pack_reply(
    arrays: dict[str, Tensor],
    num_examples: int,
    train_loss: float,
    partition: int,
    device: str,
    labels: Tensor | None = None,
) -> RecordDict:
    """A client's reply to a train message; it has ``labels`` int64 [N] only where ``Recipe.reveals_labels``."""
    revealed = {} if labels is None else {LABELS: labels.tolist()}
    return RecordDict(
        {
            ARRAYS: ArrayRecord(arrays),
            METRICS: MetricRecord({NUM_EXAMPLES: num_examples, TRAIN_LOSS: train_loss}),
            CLIENT: ConfigRecord({PARTITION: partition, DEVICE: device, **revealed}),
        }
    )


def whole_model(recipe: Recipe, sent: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's whole state: ``sent``, and for parameters that do not travel, those of ``recipe.base``."""
    return sent if recipe.base is None else {**_read_base(recipe.base), **sent}


@cache
def _read_base(path: str) -> dict[str, Tensor]:
    return load_file(path)


def arrays_in(content: RecordDict) -> dict[str, Array]:
    """A copy of the one ArrayRecord of a message, because some strategies empty it while they aggregate."""
    return dict(next(iter(content.array_records.values()), {}))


def read_update(sent: dict[str, Tensor], arrays: Mapping[str, Array], recipe: Recipe) -> dict[str, Tensor]:
    """The update in a reply's ``arrays``, float32 by trainable parameter: the gradient, or weights after minus before.

    A gradient may leave parameters out. Weights must be complete; arrays beyond them are ignored.

    Raises:
        ValueError: if arrays are missing, not the model's, of another shape than the model's, or not of numbers.
    """
    names, model = recipe.trained_names(), outline(recipe.model)
    if recipe.update == "gradient":
        values, required = read_tensors(arrays), []
    else:
        complete = all(name in arrays for name in names)
        values, required = read_tensors({name: arrays[name] for name in names} if complete else arrays), names
    if reason := misfit(values, model, required):
        raise ValueError(f"a reply's {reason}")
    if recipe.update == "gradient":
        return {name: value.float() for name, value in values.items()}
    return {name: value.float() - sent[name].float() for name, value in values.items()}


def read_tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """The same tensors as ``ArrayRecord.to_torch_state_dict``, twenty times as fast: it parses equal headers once.

    Raises:
        ValueError, TypeError: if an array does not hold numbers.
    """
    return {name: _tensor(name, array) for name, array in arrays.items()}


def _tensor(name: str, array: Array) -> Tensor:
    data = array.data
    if array.stype != "numpy.ndarray" or data[:8] != _NPY_1_0:
        return torch.from_numpy(array.numpy())
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran_order, dtype, count = _npy_header(data[8:start])
    if dtype.kind not in "fiub":  # bfloat16, which NumPy does not know, comes as raw bytes
        raise ValueError(
            f"{name} is of type {array.dtype} ({dtype}); allowed: numbers as NumPy has them, such as float32"
        )
    # As Flower does, this ignores what comes after the array: a client must not be able to hide behind it.
    # Not np.ndarray over the buffer, which takes hostile bytes for the addresses of objects.
    values = np.frombuffer(data, dtype, count=count, offset=start) if count else np.empty(0, dtype)
    return torch.from_numpy(values.reshape(shape, order="F" if fortran_order else "C").copy())


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and size from a header of NumPy's format 1.0 without its first 8 bytes."""
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(BytesIO(header))
    return shape, fortran_order, dtype, math.prod(shape)


def replace_update(sent: dict[str, Tensor], reply: Message, update: dict[str, Tensor], recipe: Recipe) -> None:
    """Replace the update in a reply, in place. ``read_update`` then returns ``update``, up to rounding for weights."""
    arrays = next(iter(reply.content.array_records.values()))
    for name, value in update.items():
        arrays[name] = Array(value if recipe.update == "gradient" else sent[name] + value)


def round_reply(reply: RecordDict, dtype: str) -> None:
    """Round the floating-point tensors of a reply's update to the nearest numbers of ``dtype``, in place.

    That is what is lost when they cross the wire in that type. They stay float32 arrays, because strategies compute in
    the type that they get, and NumPy has no bfloat16. There is no loss scaling: float16 makes 0 of magnitudes below
    2^-25 and infinity of those from 65,520.
    """
    kind = getattr(torch, dtype)
    for arrays in reply.array_records.values():
        for name, value in arrays.to_torch_state_dict().items():
            if value.is_floating_point():
                arrays[name] = Array(value.to(kind).to(value.dtype))


def dictated_draw(recipe: Recipe, client: int, server_round: int) -> tuple[Tensor | None, Tensor | None]:
    """What the server dictates to ``client`` in the known threat model: noise [N,C,H,W] and timesteps int64 [N].

    N = batch size x local steps, in the order in which the local steps use them up. Both are None in classification.

    Raises:
        ValueError: if the recipe has no noise seed, that is, in the private threat model.
    """
    if recipe.noise_seed is None:
        raise ValueError("the recipe has no noise_seed: noise and timesteps are the clients' own")
    seed = derive_seed(recipe.noise_seed, "noise", client, server_round)
    return recipe.draw_noise(seed, recipe.batch_size * recipe.local_steps)
