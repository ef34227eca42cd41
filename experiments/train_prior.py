"""``fl-sim train-prior``: train a diffusion model on public images, as an attack's prior or a checkpoint to start from.

A DDPM with linear noise schedule (Ho et al. 2020, arXiv 2006.11239), Adam with warm-up and cosine decay, an exponential
moving average of the weights. A class-conditional one is told a null class now and then (Ho and Salimans 2022, arXiv
2207.12598, algorithm 1). On a CPU the same options give the same file, also where the training was broken off and
resumed.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from experiments.checkpoint import load_checkpoint, save_checkpoint
from experiments.commands import bold_path, choose_device, unfinished
from experiments.display import Bar
from experiments.pictures import save_grid
from experiments.prior_images import HASHES, PriorImages, PriorSource, read_images
from experiments.run_directory import locked
from experiments.utility import every_class_in_turn, sample
from fl_sim import diffusion
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import Section, SettingsError
from fl_sim.draws import derive_seed, drop_labels, seeded_generator
from fl_sim.errors import first_error, nearest, one_line
from fl_sim.files import write_atomically
from fl_sim.network import ConfigError, build_model, count_parameters, unet_config
from fl_sim.network.json_text import parse_json
from fl_sim.network.safetensors_file import read_safetensors

MOST_STEPS = 10**12
TRAINING = "training"
"""Metadata key of a state file."""


class PriorTraining(Section):
    """The network, and how it is trained.

    ``network_name``: a known network, in the place of ``block_out_channels``, ``layers_per_block`` and ``attention``.
    ``lr`` is the highest learning rate, reached after ``warm_up_steps``. ``ema_decay``: of the moving average of the
    weights. ``label_dropout``: share of labels that become the null class, where the network is told classes.
    ``dtype``: of the weights in the file. ``samples``: images in the picture beside it.
    """

    source: PriorSource
    network_name: str | None = None
    block_out_channels: tuple[int, ...] = (32, 64)
    layers_per_block: int = Field(1, ge=1)
    attention: bool = False
    steps: int = Field(5000, ge=1, le=MOST_STEPS)
    batch_size: int = Field(32, ge=1, le=65_536)
    lr: float = Field(1e-3, gt=0, le=1e30)
    warm_up_steps: int = Field(100, ge=1, le=MOST_STEPS)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    label_dropout: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    dtype: Literal["float32", "float16"] = "float32"
    samples: int = Field(16, ge=0)

    @model_validator(mode="after")
    def _all_count(self) -> Self:
        """Nothing is given that has no effect; a default may be repeated."""
        fields = type(self).model_fields
        shape = [] if self.network_name is None else ["block_out_channels", "layers_per_block", "attention"]
        for key in shape + ([] if self.source.classes else ["label_dropout"]):
            if getattr(self, key) != fields[key].default:
                instead = "with --classes" if key == "label_dropout" else "without --network"
                raise ValueError(f"--{key.replace('_', '-')}: has no effect here; allowed: {instead}")
        return self

    def learning_rate(self, step: int) -> float:
        """Of a step, from 0."""
        warm_up = min(1.0, (step + 1) / self.warm_up_steps)
        return self.lr * (warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def network(self, classes: int) -> dict[str, Any]:
        """The configuration of a U-Net that can be trained; the last of ``classes`` + 1 labels is the null class.

        Raises:
            SettingsError: if there is none.
        """
        size, channels = self.source.image_size, self.source.channels
        config = self._outline(size, channels) | ({"num_class_embeds": classes + 1} if classes else {})
        try:
            diffusion.check_network(config, diffusion.scheduler_config(), (channels, size, size))
        except ConfigError as error:
            named = f"--block-out-channels {','.join(map(str, self.block_out_channels))}"
            named = f"--network {self.network_name}" if self.network_name else named
            raise SettingsError(f"--image-size {size} {named}: {error}") from error
        return config

    def _outline(self, size: int, channels: int) -> dict[str, Any]:
        """The network's configuration without classes."""
        known, name = diffusion.KNOWN_NETWORKS, self.network_name
        if name is None:
            return unet_config(size, channels, self.block_out_channels, self.layers_per_block, attention=self.attention)
        if name not in known:
            raise SettingsError(f"--network {name}: unknown; allowed: {', '.join(known)}{nearest(name, known)}")
        return known[name] | {"sample_size": size, "in_channels": channels, "out_channels": channels}


def parse_training(**options: Any) -> PriorTraining:
    """The training that the options of the command line describe; SettingsError if one is wrong."""
    try:
        return PriorTraining.model_validate(options)
    except ValidationError as error:
        first = first_error(error)
        if first["type"] == "value_error":
            raise SettingsError(str(first["ctx"]["error"])) from error
        option = [part for part in first["loc"] if isinstance(part, str)][-1].replace("_", "-")
        raise SettingsError(f"--{option} {first['input']}: {first['msg']}") from error


class State:
    """All that changes in training: the network, the moving average of its weights, Adam's moments, the draws."""

    def __init__(self, training: PriorTraining, config: Mapping[str, Any], device: str) -> None:
        torch.manual_seed(derive_seed(training.seed, "weights"))
        self.model = build_model(config).to(device)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=training.lr)
        self.generator = seeded_generator(derive_seed(training.seed, "batches"))
        self.steps_done = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything, flat, on the CPU."""
        moments = self.optimizer.state_dict()["state"]
        flat = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        flat |= {f"average/{name}": value for name, value in self.average.items()}
        flat |= {f"adam/{index}/{key}": value for index, own in moments.items() for key, value in own.items()}
        flat |= {"generator": self.generator.get_state(), "steps_done": torch.tensor(self.steps_done)}
        return {name: value.detach().cpu().contiguous() for name, value in flat.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what ``tensors`` says; KeyError or RuntimeError if it is not of this network."""
        self.model.load_state_dict({name: tensors[f"model/{name}"] for name in self.average})
        for name, value in self.average.items():
            value.copy_(tensors[f"average/{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam/"):
                _, index, key = name.split("/")
                moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.generator.set_state(tensors["generator"])
        self.steps_done = int(tensors["steps_done"])


@dataclass(frozen=True)
class StateFile:
    """Where an unfinished training is kept, for which training, and the seconds between two writes."""

    path: Path
    identity: dict[str, Any]
    every_seconds: float = 60.0

    def save(self, state: State) -> None:
        """Replace the file."""
        metadata = {TRAINING: json.dumps(self.identity)}
        write_atomically(self.path, lambda file: save_file(state.tensors(), file, metadata=metadata))

    def load_into(self, state: State) -> None:
        """Go on from the file.

        Raises:
            SettingsError: if it is not there, is no such file, or is of another training.
        """
        try:
            tensors, metadata = read_safetensors(self.path)
            kept = dict(parse_json(metadata[TRAINING]))
            different = [key for key in self.identity | kept if self.identity.get(key) != kept.get(key)]
        except (ConfigError, KeyError, ValueError, TypeError) as error:
            reason = str(error) if isinstance(error, ConfigError) else "it is no unfinished training"
            raise SettingsError(f"--resume: {self.path}: {reason}; allowed: what a training left there") from error
        if different:
            key = different[0]
            raise SettingsError(
                f"--resume: {self.path} was trained with {key} = {kept.get(key)!r}, not {self.identity.get(key)!r}; "
                "allowed: the same options, images and software"
            )
        try:
            state.restore(tensors)
        except Exception as error:  # whatever torch raises about a state that somebody else wrote
            raise SettingsError(f"--resume: {self.path}: it lacks, or has another, {one_line(str(error))}") from error


def identify(training: PriorTraining, images: PriorImages, device: str, threads: int) -> dict[str, Any]:
    """All that the trained weights depend on, flat, as JSON."""
    options = json.loads(training.model_dump_json(exclude={"source", "dtype", "samples"}))
    source = json.loads(training.source.model_dump_json(exclude={"data"}))
    seen = sha256("".join(images.notes[HASHES]).encode()).hexdigest()
    here = {"torch": torch.__version__, "device": device, "threads": threads}
    return options | source | {"data": images.notes["data"], "images": seen} | here


def train(
    training: PriorTraining, images: PriorImages, state: State, kept: StateFile, show: Callable[[int, int, float], None]
) -> None:
    """Take the steps that are left; ``state`` changes. ``show`` is called after each: steps done, all steps, loss.

    Raises:
        SettingsError: if the loss is no finite number any more.
    """
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config())
    size, device = training.source.image_size, next(state.model.parameters()).device
    null = len(images.classes)
    saved = monotonic()
    for step in range(state.steps_done, training.steps):
        x0, labels = images.draw(training.batch_size, size, training.source.horizontal_flip, state.generator)
        noise = torch.randn(x0.shape, generator=state.generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), generator=state.generator)
        told = None
        if images.classes:
            dropout = int(torch.randint(2**62, (), generator=state.generator))
            told = drop_labels(labels, dropout, training.label_dropout, null).to(device)
        state.optimizer.param_groups[0]["lr"] = training.learning_rate(step)
        state.optimizer.zero_grad()
        loss = diffusion.loss(state.model, scheduler, x0.to(device), noise.to(device), timesteps.to(device), told)
        loss.backward()
        state.optimizer.step()
        for name, value in state.model.state_dict().items():
            state.average[name].lerp_(value, 1 - training.ema_decay)
        state.steps_done = step + 1
        if not loss.isfinite():
            raise SettingsError(f"--lr {training.lr:g}: the loss of step {step + 1} is {loss.item()}; lower it")
        show(state.steps_done, training.steps, loss.item())
        if monotonic() - saved >= kept.every_seconds and state.steps_done < training.steps:
            kept.save(state)
            saved = monotonic()


def train_prior(
    training: PriorTraining,
    out: Path,
    device: str,
    threads: int,
    console: Console,
    resume: bool = False,
    save_every: float = 60.0,
) -> None:
    """Train a prior and write it to ``out``, with a picture of samples beside it.

    Until it is done it is kept in ``unfinished(out)``, from which ``resume`` goes on.

    Raises:
        SettingsError: if there is no such network, images or device, or ``out`` or the state file are in the way.
        OSError: if ``out`` cannot be written.
    """
    if math.isnan(save_every):
        raise SettingsError("--save-every nan: allowed: seconds from 0")
    where = choose_device(device)
    torch.set_num_threads(threads)
    images = read_images(training.source)
    config = training.network(len(images.classes))
    kept = StateFile(unfinished(out), identify(training, images, where, threads), save_every)
    state = State(training, config, where)
    if resume:
        kept.load_into(state)
    _check_output(out, kept.path, resume)
    with _alone(out):
        with Bar(console, "training", "steps", "loss") as bar:
            train(training, images, state, kept, bar)
        checkpoint = _checkpoint(training, images, config, state)
        if training.samples:
            samples = _samples(training, checkpoint, len(images.classes), where)
            write_atomically(samples_file(out), lambda file: save_grid(file, samples))
        save_checkpoint(out, checkpoint)
        kept.path.unlink(missing_ok=True)
    parameters = count_parameters(checkpoint.weights.values())
    console.print(
        f"wrote {bold_path(out)}: {parameters:,} parameters, trained on {images.notes['images']} images",
        highlight=False,
        soft_wrap=True,
    )
    if training.samples:
        console.print(f"samples: {bold_path(samples_file(out))}", soft_wrap=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep every other training of the prior ``out`` away meanwhile; SettingsError if there is one."""
    lock = out.with_name(f".{out.name}.lock")
    lock.touch()
    with locked(lock, f"--out {out}: another training is to write it; allowed: another file"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def samples_file(out: Path) -> Path:
    """The picture of samples of the prior ``out``."""
    return Path(f"{out}.png")


def _checkpoint(training: PriorTraining, images: PriorImages, config: dict[str, Any], state: State) -> Checkpoint:
    """The averaged weights as they are stored; the metadata says what they were trained on, and how."""
    options = training.model_dump(mode="json", exclude={"source"})
    options |= training.source.model_dump(mode="json", exclude={"data"})
    notes = images.notes | {TRAINING: options}
    if images.classes:
        notes |= {"classes": list(images.classes), "label_dropout": training.label_dropout}
    weights = {name: value.cpu().to(getattr(torch, training.dtype)) for name, value in state.average.items()}
    return Checkpoint(weights, config, diffusion.DiffusionTask.on(diffusion.scheduler_config()), notes)


def _samples(training: PriorTraining, checkpoint: Checkpoint, classes: int, device: str) -> Tensor:
    """Images [N,C,H,W] in [0, 1] of the weights as stored, of every class in turn."""
    model = checkpoint.build().to(device).eval()
    labels = every_class_in_turn(classes or None, training.samples)
    size = training.source.image_size
    shape = (training.source.channels, size, size)
    told = None if labels is None else labels.to(device)
    return sample(model, checkpoint.diffusion.noise_schedule(), shape, training.samples, told)


def _check_output(out: Path, state: Path, resume: bool) -> None:
    """Before hours of training: the files can be written, and replace nothing but a checkpoint and its samples.

    Raises:
        SettingsError: if something else is there.
        OSError: if they cannot be written.
    """
    if out.is_dir():
        raise SettingsError(f"--out {out}: a folder; allowed: a file")
    if out.exists():
        try:
            load_checkpoint(out)
        except SettingsError as error:
            raise SettingsError(f"--out {out}: not a checkpoint; allowed: a new file, or one to replace") from error
    elif samples_file(out).exists():
        raise SettingsError(f"--out {out}: the picture of its samples, {samples_file(out)}, is there; allowed: another")
    if state.exists() and not resume:
        raise SettingsError(f"--out {out}: its training is not finished; allowed: --resume, or without {state}")
    write_atomically(out.with_name(f".{out.name}.trial"), Path.touch)
    out.with_name(f".{out.name}.trial").unlink()
