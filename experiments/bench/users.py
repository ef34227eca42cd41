"""The benchmark of user-level inversion: which user is it, by the one image found behind a large batch?

Every user is a client whose images have something in common: one digit, or tiles of one photograph. The labels that are
trained on say little of that: whether the digit is odd, whether a tile is brighter than most of its photograph. A row
is one way to look for every user's image in one case. Beside the attack stand the same search without a prior, the
prior without an update, Inverting Gradients with all images, and the mean of the public images.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from torch import Tensor

from attacks.observation import Circumstances, Observation
from experiments.bench.attack_measurement import attempt
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.tables import Table
from experiments.checkpoint import BUNDLED_FILES, load_checkpoint
from experiments.classifier_training import train_classifier
from experiments.evaluator import evaluator_network, train_evaluator
from experiments.leakage import OK
from experiments.users import Users, rate_interval
from fl_sim import classification, diffusion
from fl_sim.checkpoint import Checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.client_app import local_training
from fl_sim.config import DataSettings
from fl_sim.diffusion import DiffusionTask
from fl_sim.draws import Draw, derive_seed, draw_image_indices, draw_noise_and_timesteps, seeded_generator
from fl_sim.images.bundled import PHOTOGRAPHS, TRAINING_PHOTOGRAPHS
from fl_sim.images.image_set import ImageSet
from fl_sim.images.sources import list_images
from fl_sim.network import LocalOptimizer, build_model, trainable_names, unet_config
from fl_sim.wire import Recipe

DIGIT_SIZE = 12
TILES_PER_SIDE = 8
ADAM = LocalOptimizer(name="adam", lr=1e-3)
CLASSIFIER = "ConvNet"
LABELS = 2
"""Classes that clients train on; they say little of the user."""


class UserCase(BaseModel):
    """One update of every user.

    Attributes:
        data: a user is a digit, or a photograph.
        optimizer: of the local steps whose weight delta is sent; None if the gradient is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["classification", "diffusion"] = "classification"
    data: Literal["digits", "photographs"] = "digits"
    image_size: int = DIGIT_SIZE
    model: Literal["untrained", "trained"] = "untrained"
    batch_size: int = 16
    local_steps: int = 1
    optimizer: LocalOptimizer | None = None

    def __str__(self) -> str:
        network = "classifier" if self.task == "classification" else "DDPM"
        steps = f", {self.local_steps} steps of {self.optimizer.name.title()}" if self.optimizer else ""
        side = self.image_size
        return f"{self.model} {network}, {self.data} {side}x{side}, B = {self.batch_size}{steps}"

    @property
    def channels(self) -> int:
        """Of its images."""
        return 1 if self.data == "digits" else 3


@dataclass(frozen=True)
class Scale:
    """How much is spent: each search has ``steps`` evaluations of ``draws`` draws, that for all images its own."""

    repetitions: int
    steps: int
    draws: int
    all_images_steps: int
    prior_steps: int
    prior_channels: tuple[int, ...]
    classifier_steps: int
    evaluator_steps: int


SHORT = Scale(1, 60, 4, 100, 400, (16, 32), 60, 400)
WHOLE = Scale(3, 200, 16, 600, 3000, (32, 64), 60, 1500)

MOST_ALL_IMAGES = 64
"""Images of a batch up to which short searches look for all of them."""

CHANCE = "mean of the public images"
ALL_IMAGES = "Inverting Gradients, all images"
MEAN_OF_ALL = "Inverting Gradients, mean of its images"
METHODS = {"plug-and-play": "plug-and-play", "dps": "dps", "no prior": "none", "prior alone": "prior-only"}
"""Those of the attack, by their name in the tables."""


@dataclass(frozen=True)
class Scene:
    """Who holds what: images [N,C,H,W] in [-1, 1] and labels int64 [N] of every user, of nobody, and held out."""

    names: tuple[str, ...]
    images: list[Tensor]
    labels: list[Tensor]
    public: Tensor
    public_labels: Tensor
    held_out: Tensor
    held_out_users: Tensor


@dataclass(frozen=True)
class Found:
    """Images [K,C,H,W] in [0, 1] that stand for a user, and the evaluations that they took."""

    images: Tensor
    evaluations: int


@dataclass(frozen=True)
class UserMeasurement(Measurement):
    """One method on the updates of a case's users; all that is drawn follows from ``seed`` and the repetition."""

    case: UserCase
    method: str
    repetition: int
    short: bool
    seed: int

    def subject(self) -> Row:
        """Case, method, repetition, scale, seed."""
        case = {"case": self.case.model_dump(mode="json"), "method": self.method}
        return case | {"repetition": self.repetition, "short": self.short, "seed": self.seed}

    def measure(self) -> Row:
        """For every user what ``Users.judge`` says of what was found, or why nothing was; beside it the evaluator's."""
        scale, scene = (SHORT if self.short else WHOLE), load_scene(self.case.data, self.case.image_size, self.seed)
        evaluator = _evaluator(self.case.data, self.case.image_size, scale.evaluator_steps, self.seed)
        drawn = [_draw(self.case, scene, user, self._seed("images", user)) for user in range(len(scene.names))]
        users = Users([(draw.images + 1) / 2 for draw in drawn], list(range(len(scene.names))), evaluator)
        judged: dict[str, list[Row]] = {}
        for user in range(len(scene.names)):
            for name, found in self._find(scene, drawn[user], user, scale).items():
                judged.setdefault(name, []).append(_judgement(users, user, found))
        logits = classification.predict(evaluator, scene.held_out)
        accuracy = classification.accuracy(logits, scene.held_out_users)
        return {"users": len(scene.names), "judged": judged, "evaluator_accuracy": accuracy}

    def _seed(self, *purpose: str | int) -> int:
        return derive_seed(self.seed, "users", self.repetition, *purpose)

    def _find(self, scene: Scene, draw: Draw, user: int, scale: Scale) -> dict[str, Found | str]:
        """What the method finds, by its name in the tables; or why it finds nothing."""
        if self.method == CHANCE:
            return {CHANCE: Found((scene.public.mean(dim=0, keepdim=True) + 1) / 2, 0)}
        attack, arguments = self._attack(scale)
        seen = _observe(self.case, draw, scale, self.seed, self._seed("weights"), self.method == ALL_IMAGES)
        with TemporaryDirectory() as folder:
            if arguments.get("method", "none") != "none":
                arguments["prior"] = str(Path(folder) / "prior.safetensors")
                _prior(self.case.data, self.case.image_size, scale, self.seed).save(Path(arguments["prior"]))
            result = attempt(attack, arguments, seen, self._seed("attack", user), self.device)
        if isinstance(result, str):
            return {self.method: result}
        found: dict[str, Found | str] = {self.method: Found(result.images, result.evaluations)}
        if self.method == ALL_IMAGES:
            found[MEAN_OF_ALL] = Found(result.images.mean(dim=0, keepdim=True), result.evaluations)
        return found

    def _attack(self, scale: Scale) -> tuple[str, dict[str, Any]]:
        if self.method == ALL_IMAGES:
            return "inverting-gradients", {"iterations": scale.all_images_steps}
        return "user-level", {"method": METHODS[self.method], "steps": scale.steps, "draws": scale.draws}


def _judgement(users: Users, user: int, found: Found | str) -> Row:
    if isinstance(found, str):
        return {"user": user, "status": found}
    return {"user": user, "status": OK, "evaluations": found.evaluations, **users.judge(user, found.images)}


def bench_users(
    quick: bool, short: bool, repetitions: int | None, seed: int, jobs: int, out: Path, console: Console
) -> None:
    """Measure every case by every method; ``out`` gets users.json and users.md.

    ``quick``: a case of each kind; with it, or with ``short``, the searches are short.

    Raises:
        SettingsError: if ``out`` holds something else.
    """
    short = short or quick
    count = repetitions or (SHORT if short else WHOLE).repetitions
    plan, left_out = [], []
    for case in cases(quick):
        for method in methods(case):
            if method == ALL_IMAGES and short and case.batch_size > MOST_ALL_IMAGES:
                left_out.append(f"{case}, {method}: hours; without --short it is measured")
            else:
                plan += [UserMeasurement(case, method, number, short, seed) for number in range(count)]
    plan.sort(key=lambda each: each.repetition)
    said = {"quick": quick, "short": short, "repetitions": repetitions, "seed": seed}
    BENCHMARK.run(Plan(plan, left_out), said, out, jobs, console)


def cases(quick: bool) -> Iterator[UserCase]:
    """Classifiers' gradients of growing batches, FedAvg with Adam, and DDPM clients; ``quick``: one of each kind."""
    if quick:
        yield UserCase()
        yield UserCase(model="trained", batch_size=64)
        yield UserCase(local_steps=10, optimizer=ADAM)
        yield UserCase(data="photographs", image_size=16)
        yield UserCase(task="diffusion")
        return
    for data, size in (("digits", DIGIT_SIZE), ("photographs", 32)):
        for model in ("untrained", "trained"):
            usual = UserCase.model_validate({"data": data, "image_size": size, "model": model})
            for batch_size in (16, 64, 256):
                yield usual.model_copy(update={"batch_size": batch_size})
            for steps in (10, 50):
                yield usual.model_copy(update={"local_steps": steps, "optimizer": ADAM})
            for batch_size in (16, 64):
                yield usual.model_copy(update={"task": "diffusion", "batch_size": batch_size})


def methods(case: UserCase) -> list[str]:
    """Those that apply: Inverting Gradients needs SGD, and of diffusion noise and timesteps, which are private."""
    everything = [ALL_IMAGES] if case.task == "classification" and case.optimizer is None else []
    return [*METHODS, *everything, CHANCE]


@cache
def load_scene(data: str, image_size: int, seed: int) -> Scene:
    """Half of the digits are public, and the photographs that the bundled checkpoints were trained on.

    Of every user's images one fifth is held out, by which the evaluator is judged.
    """
    if data == "digits":
        listed = list_images(DataSettings(name="digits", image_size=image_size, channels=1))
        order = torch.randperm(len(listed), generator=seeded_generator(derive_seed(seed, "digits"))).tolist()
        public, private = order[: len(order) // 2], order[len(order) // 2 :]
        held = {name: [index for index in private if listed.labels[index] == name] for name in listed.classes}
        return _scene(listed, 1, held, public, torch.tensor([int(label) % LABELS for label in listed.labels]))
    users = tuple(name for name in PHOTOGRAPHS if name not in TRAINING_PHOTOGRAPHS)
    everything = (*users, *TRAINING_PHOTOGRAPHS)
    tiled = DataSettings(photographs=everything, tiles_per_side=TILES_PER_SIDE, image_size=image_size)
    listed = list_images(tiled)
    tiles = {name: [index for index, label in enumerate(listed.labels) if label == name] for name in everything}
    labels = torch.cat([_brighter(listed.decode(of_photograph)) for of_photograph in tiles.values()])
    public = [index for name in TRAINING_PHOTOGRAPHS for index in tiles[name]]
    return _scene(listed, 3, {name: tiles[name] for name in users}, public, labels)


def _scene(
    listed: ImageSet, channels: int, held: Mapping[str, Sequence[int]], public: Sequence[int], labels: Tensor
) -> Scene:
    """The scene in which every user holds its indices of ``listed``; ``labels`` int64 are those of all images."""
    theirs = [indices[len(indices) // 5 :] for indices in held.values()]
    apart = [indices[: len(indices) // 5] for indices in held.values()]
    return Scene(
        tuple(held),
        [listed.decode(indices, channels) for indices in theirs],
        [labels[indices] for indices in theirs],
        listed.decode(public, channels),
        labels[public],
        torch.cat([listed.decode(indices, channels) for indices in apart]),
        torch.arange(len(held)).repeat_interleave(torch.tensor([len(indices) for indices in apart])),
    )


def _brighter(images: Tensor) -> Tensor:
    """Whether each image is brighter than the median of all; int64 [N]."""
    brightness = images.flatten(1).mean(dim=1)
    return (brightness > brightness.median()).long()


def _draw(case: UserCase, scene: Scene, user: int, seed: int) -> Draw:
    """What the user trains on: images from a shuffled deck of its own; in diffusion noise and timesteps."""
    images, samples = scene.images[user], case.batch_size * case.local_steps
    chosen = draw_image_indices(derive_seed(seed, "deck"), samples, len(images))
    if case.task == "classification":
        return Draw(images[chosen], labels=scene.labels[user][chosen])
    shape = (case.channels, case.image_size, case.image_size)
    return Draw(images[chosen], *draw_noise_and_timesteps(derive_seed(seed, "noise"), samples, shape, 1000))


def _observe(case: UserCase, draw: Draw, scale: Scale, seed: int, weights_seed: int, labels_known: bool) -> Observation:
    """The update of a user; everybody is sent the same weights. Inverting Gradients is told the labels."""
    start = _sent(case, scale, seed, weights_seed)
    recipe = Recipe(
        model=start.model,
        task=start.task,
        image_shape=(case.channels, case.image_size, case.image_size),
        update="weights" if case.optimizer else "gradient",
        batch_size=case.batch_size,
        local_steps=case.local_steps,
        optimizer=case.optimizer,
    )
    update, _ = local_training(recipe, start.weights, draw, "cpu")
    if case.optimizer:
        update = {name: update[name] - start.weights[name] for name in trainable_names(recipe.model)}
    circumstances = Circumstances(
        task=start.task,
        round=1,
        client=0,
        update="delta" if case.optimizer else "gradient",
        num_examples=len(draw.images),
        batch_size=case.batch_size,
        local_steps=case.local_steps,
        local_optimizer=case.optimizer,
        image_shape=recipe.image_shape,
        model=start.model,
    )
    return Observation(circumstances, start.weights, update, labels=draw.labels if labels_known else None)


def _sent(case: UserCase, scale: Scale, seed: int, weights_seed: int) -> Checkpoint:
    """The global model: untrained, or trained on public images."""
    if case.task == "diffusion":
        trained = _prior(case.data, case.image_size, scale, seed)
        if case.model == "trained":
            return trained
        return Checkpoint(_untrained(trained.model, weights_seed), trained.model, trained.task, {})
    scene = load_scene(case.data, case.image_size, seed)
    steps = scale.classifier_steps if case.model == "trained" else 0
    sides = [case.image_size] * 2
    config = {"_class_name": CLASSIFIER, "num_classes": LABELS, "image_size": sides, "in_channels": case.channels}
    model = train_classifier(config, scene.public, scene.public_labels, steps, weights_seed)
    return Checkpoint(model.state_dict(), config, ClassificationTask(num_classes=LABELS), {})


def _untrained(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config).state_dict()


@cache
def _evaluator(data: str, image_size: int, steps: int, seed: int) -> torch.nn.Module:
    """Tells users apart; it learns from the images that they hold, with another architecture than what they train."""
    scene = load_scene(data, image_size, seed)
    users = torch.arange(len(scene.images)).repeat_interleave(torch.tensor([len(part) for part in scene.images]))
    shape = (scene.public.shape[1], image_size, image_size)
    network = evaluator_network({"_class_name": CLASSIFIER}, len(scene.names), shape)
    return train_evaluator(network, torch.cat(scene.images), users, steps, derive_seed(seed, "evaluator"))


@cache
def _prior(data: str, image_size: int, scale: Scale, seed: int) -> Checkpoint:
    """Of photographs the bundled checkpoint, which was trained on the public ones; of digits one trained here."""
    if data == "photographs":
        fitting = (load_checkpoint(path) for path in BUNDLED_FILES.values())
        return next(prior for prior in fitting if prior.image_shape == (3, image_size, image_size))
    images = load_scene(data, image_size, seed).public
    config = unet_config(image_size, 1, scale.prior_channels, norm_num_groups=8)
    schedule = diffusion.scheduler_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "prior"))
        model, scheduler = build_model(config), diffusion.build_scheduler(schedule)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-3), seeded_generator(derive_seed(seed, "batches"))
    for _ in range(scale.prior_steps):
        batch = images[torch.randint(len(images), (32,), generator=generator)]
        noise, timesteps = (
            torch.randn(batch.shape, generator=generator),
            torch.randint(1000, (32,), generator=generator),
        )
        optimizer.zero_grad()
        diffusion.loss(model, scheduler, batch, noise, timesteps).backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 0.02)
    return Checkpoint(average, config, DiffusionTask.on(schedule), {"digits": "the public half"})


HEADINGS = (
    "method",
    "n",
    "identified by features",
    "95 %",
    "by pixels",
    "95 %",
    "user named",
    "own / others' mean",
    "own / others' nearest",
    "PSNR to mean",
    "evals",
)
BRIEF = ("method", "n", "identified by features", "by pixels", "user named", "PSNR to mean")


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For every case and method: rates with their intervals, and medians over the users of all repetitions."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for method, judged in row["judged"].items():
            cells.setdefault((str(UserCase(**row["case"])), method), []).extend(judged)
    found = []
    for (case, method), judged in cells.items():
        finished = [user for user in judged if user["status"] == OK]
        entry: dict[str, Any] = {"case": case, "method": method, "attacked": len(judged), "finished": len(finished)}
        for name in ("by_features", "by_pixels", "class_named"):
            hits = sum(bool(user[name]) for user in finished)
            entry[name] = {"hits": hits, "interval": rate_interval(hits, len(judged))}
        for name in MEDIANS:
            entry[name] = statistics.median(user[name] for user in finished) if finished else None
        found.append(entry)
    return found


MEDIANS = ("to_own_mean", "to_others_mean", "to_own_nearest", "to_others_nearest", "psnr", "evaluations")


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for every case."""
    shown = []
    entries = figures(rows)
    for case in dict.fromkeys(entry["case"] for entry in entries):
        of_case = [entry for entry in entries if entry["case"] == case]
        of_rows = [row for row in rows if str(UserCase(**row["case"])) == case]
        accuracy = statistics.median(row["evaluator_accuracy"] for row in of_rows)
        users = of_rows[0]["users"]
        notes = [
            f"chance of identifying one of {users} users: {1 / users:.3f}"
            + ("; with the label alone, odd or even: 0.2" if _tells_parity(of_rows[0]["case"]) else ""),
            f"the evaluator names the user of a held-out image to {100 * accuracy:.0f} %; revision "
            + ", ".join(dict.fromkeys(row["revision"] for row in of_rows)),
        ]
        judged = [(method, user) for row in of_rows for method, of in row["judged"].items() for user in of]
        reasons = [f"{method}: {user['status']}" for method, user in judged]
        notes += [reason for reason in dict.fromkeys(reasons) if not reason.endswith(f": {OK}")]
        shown.append(Table(case, HEADINGS, [_line(entry) for entry in of_case], notes, BRIEF))
    return shown


def _tells_parity(case: Mapping[str, Any]) -> bool:
    return bool(case["data"] == "digits" and case["task"] == "classification")


def _line(entry: Mapping[str, Any]) -> tuple[str, ...]:
    attacked = entry["attacked"]

    def rate(name: str) -> str:
        return f"{entry[name]['hits']}/{attacked}"

    def interval(name: str) -> str:
        low, high = entry[name]["interval"]
        return f"{low:.2f}-{high:.2f}"

    def pair(kind: str) -> str:
        own, others = entry[f"to_own_{kind}"], entry[f"to_others_{kind}"]
        return "-" if own is None else f"{own:.1f} / {others:.1f}"

    return (
        entry["method"],
        str(attacked),
        rate("by_features"),
        interval("by_features"),
        rate("by_pixels"),
        interval("by_pixels"),
        rate("class_named"),
        pair("mean"),
        pair("nearest"),
        "-" if entry["psnr"] is None else f"{entry['psnr']:.1f} dB",
        "-" if entry["evaluations"] is None else f"{entry['evaluations']:.0f}",
    )


def announce(row: Row) -> str:
    """Case, method and repetition: how many users were identified by features."""
    judged = row["judged"][row["method"]]
    hits = sum(bool(user.get("by_features")) for user in judged)
    where = f"{UserCase(**row['case'])}, {row['method']}, repetition {row['repetition']}"
    return f"{where}: {hits} of {len(judged)} users identified"


BENCHMARK = Benchmark("users", "methods", announce, figures, tables)
