"""The kinds of input: how a bad one is made, and how it is read."""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
import torch
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from attacks.attack import Reconstruction
from attacks.inversion.budget import Budget
from attacks.inversion.evaluation_log import EvaluationLog
from attacks.model_inversion.reconstructions_file import load_reconstructions
from attacks.observation import Observation
from attacks.reconstruction_file import load_reconstruction, save_reconstruction
from attacks.registry import create
from experiments.checkpoint import load_checkpoint
from experiments.experiment import prepare
from experiments.invert_offline import read_classifier, read_public
from experiments.leakage import read_leakage
from experiments.report import build_report
from experiments.run_directory import reading
from experiments.run_state import RunState
from experiments.settings import load_run
from experiments.summary import summarise
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.file import load_sweep
from experiments.sweep.points import expand
from experiments.sweep.watch import watch_sweep
from fl_sim import network
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import DataSettings
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.images.dataset import list_dataset
from tests.attacks.conftest import make_classification_victim, make_victim
from tests.experiments.made_up_run import make_up_run
from tests.fuzz import replies
from tests.fuzz.attempt import MEMORY_MIB
from tests.fuzz.mutations import ODD, spoilt, spoilt_bytes, spoilt_safetensors, write, write_json

Make = Callable[[st.DrawFn, Path], None]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: draws a bad input and writes it into a folder.
        read: reads the input in a folder as a command would.
        cost: seconds that an input takes, about.
        memory_mib: what it may take beside a multiple of its size, in MiB.
        imports: whether it may name code that is imported: settings are a user's own words, plug-ins among them.
    """

    make: Make
    read: Callable[[Path], object]
    cost: float = 0.02
    imports: bool = False
    memory_mib: int = MEMORY_MIB


@cache
def sound(name: str) -> bytes:
    """A small sound file of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        _SOUND[name](path)
        return path.read_bytes()


def _checkpoint(path: Path) -> None:
    model = network.unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)
    torch.manual_seed(0)
    weights = network.build_model(model).state_dict()
    Checkpoint(weights, model, DiffusionTask.on(scheduler_config()), {"photographs": ["rocket"]}).save(path)


def _classifier(path: Path) -> None:
    seen = make_classification_victim().observation
    Checkpoint(seen.weights, seen.circumstances.model, seen.circumstances.task, {}).save(path)


def _reconstruction(path: Path) -> None:
    images, timesteps = torch.rand(1, 3, 8, 8), torch.tensor([3])
    save_reconstruction(path, Reconstruction(images, timesteps, 0.1, 7, 0.5, "cpu", "residual", {}, 0))


_SEARCH = {"attack": "residual", "seed": 1}


def _search_log(path: Path) -> None:
    with EvaluationLog(path, _SEARCH, every_seconds=0) as log:
        _evaluate(log)


def _evaluate(log: EvaluationLog) -> None:
    for step in range(3):
        log.evaluate(lambda x: (x[0].square().sum(), [2 * x[0]]), [torch.full((2, 2), float(step))], Budget(100))


_SOUND: dict[str, Callable[[Path], None]] = {
    "capture": lambda path: make_victim((3,)).observation.save(path),
    "known": lambda path: make_victim((3, 700), known=True).observation.save(path),
    "classifier capture": lambda path: make_classification_victim(known=True).observation.save(path),
    "checkpoint": _checkpoint,
    "classifier": _classifier,
    "reconstruction": _reconstruction,
    "search": _search_log,
}


def _safetensors(name: str, key: str, *sources: str) -> Make:
    def make(draw: st.DrawFn, folder: Path) -> None:
        source = draw(st.sampled_from(sources))
        write(folder / name, draw(spoilt_safetensors(sound(source), key)))

    return make


def _read_capture(folder: Path) -> None:
    observation = Observation.load(folder / "capture.safetensors")
    create("residual").check(observation)


def _read_checkpoint(folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    load_checkpoint(path)
    read_classifier(path)


def _make_diffusers(draw: st.DrawFn, folder: Path) -> None:
    import diffusers

    model = network.unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = network.build_model(model)
    if draw(st.booleans()):
        unet.save_pretrained(folder, max_shard_size="20KB")
    else:
        diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        action = draw(st.sampled_from(["spoil", "spoil", "spoil", "bytes", "remove", "link"]))
        if action == "remove":
            file.unlink(missing_ok=True)
        elif action == "link":
            file.unlink(missing_ok=True)
            file.symlink_to(draw(st.sampled_from(["/etc/passwd", "../../outside", "no-such-file", file.name])))
        elif action == "bytes" or file.suffix != ".json":
            file.write_bytes(draw(spoilt_bytes(file.read_bytes())))
        else:
            text = write_json(draw(spoilt(json.loads(file.read_text()))))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))


def _read_diffusers(folder: Path) -> None:
    load_checkpoint(folder)


_RUN: dict[str, Any] = {
    "client": {"seed": 11, "batch_size": 1},
    "federation": {"clients": 2, "rounds": 1},
    "data": {"partition": "photo", "image_size": 16},
    "model": {
        "checkpoint": "none",
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "unet": {"attention_head_dim": 8},
    },
    "strategy": {"name": "FedSGD", "args": {"lr": 0.1}},
    "attack": {"name": "residual", "args": {"residual": {}}},
    "defence": {"name": "clip-noise", "args": {"clip_norm": 1.0}},
}
_KEYS = st.sampled_from(
    [
        *(
            "seed",
            "task",
            "threat",
            "data.image_size",
            "data.held_out",
            "data.limit",
            "data.tiles_per_side",
            "data.path",
        ),
        *("data.name", "data.channels", "model.num_train_timesteps", "model.block_out_channels", "model.unet.act_fn"),
        *("model.unet.down_block_types", "model.unet.layers_per_block", "model.unet.sample_size", "model.config"),
        *("model.checkpoint", "model.factory", "model.classes", "model.classifier_args.channels", "model.unet"),
        *("federation.clients", "federation.rounds", "federation.client_cpus", "federation.timeout"),
        *("client.batch_size", "client.gradient_accumulation", "client.betas", "client.lr", "client.trainable"),
        *("client.lora.rank", "client.lora.targets", "client.update", "client.epochs", "client.noise_offset"),
        *("strategy.name", "strategy.args.lr", "strategy.args.fraction_train", "strategy.args.inner", "strategy.ema"),
        *("attack.name", "attack.args.residual.iterations", "attack.workers", "attack.timeout", "defence.name"),
        *("defence.args.clip_norm", "inversion.name", "utility.samples", "utility.every", "ray.address", "a.b.c", ""),
    ]
)


_SWEEP: dict[str, Any] = {
    "base": "demo-16",
    "seed": 0,
    "client_seed": 3,
    "repetitions": 2,
    "set": {"federation": {"rounds": 1}, "attack.args": {"residual": {"max_evaluations": 3}}},
    "grid": {"client": {"batch_size": [1, 2]}, "model.checkpoint": ["none"]},
    "run": [{"defence": {"name": "none"}}, {"defence": {"name": "top-k", "args": {"fraction": 0.1}}}],
}


def _toml_file(name: str, sound_tree: dict[str, Any]) -> Make:
    def make(draw: st.DrawFn, folder: Path) -> None:
        tree = draw(spoilt(sound_tree))
        if not draw(st.integers(0, 3)) or not isinstance(tree, dict):
            content = draw(spoilt_bytes(tomli_w.dumps(sound_tree).encode()))
        else:
            lines = (f"{_toml_key(key)} = {_toml(value)}" for key, value in tree.items())
            content = "\n".join(lines).encode("utf-8", "surrogatepass")
        write(folder / name, content)

    return make


def _toml(value: Any) -> str:
    """A value as TOML has it on one line; what TOML does not have, such as null, as JSON has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return write_json(value).replace("NaN", "nan").replace("Infinity", "inf")


def _toml_key(key: str) -> str:
    return json.dumps(key)


def _read_toml(folder: Path) -> None:
    prepare(load_run(str(folder / "run.toml"), ["data.image_size=16"]))


def _read_sweep(folder: Path) -> None:
    sweep = load_sweep(str(folder / "sweep.toml"))
    point = expand(sweep if sweep.client_seed is not None else sweep.model_copy(update={"client_seed": 1}))[-1]
    load_run(sweep.base, point.overrides)


_SWEEP_TABLE = """\
client.batch_size,run,directory,status,attack,median_psnr,share_recognisable,images,timesteps_recovered,utility,seed
1,batch_size=1,batch_size=1,ended,residual,61.5,1.0,4,4,0.02,17
2,batch_size=2,batch_size=2,not ended,residual,,,,,,17
"""


def _make_sweep_table(draw: st.DrawFn, folder: Path) -> None:
    write(folder / "sweep.csv", draw(spoilt_csv(_SWEEP_TABLE.encode())))


def _read_sweep_table(folder: Path) -> None:
    watch_sweep(SweepDirectory(folder), Console(file=io.StringIO()), once=True)


def _make_overrides(draw: st.DrawFn, folder: Path) -> None:
    value = st.one_of(ODD.map(_toml), st.text(max_size=20))
    overrides = draw(st.lists(st.tuples(_KEYS, value).map("=".join), min_size=1, max_size=3))
    write(folder / "overrides.json", json.dumps(overrides).encode())


def _read_overrides(folder: Path) -> None:
    small = ["model.checkpoint=none", "model.block_out_channels=[8,8]", "federation.rounds=1", "federation.clients=2"]
    prepare(load_run("demo", [*small, *json.loads((folder / "overrides.json").read_text())]))


def _make_image(draw: st.DrawFn, folder: Path) -> None:
    name = draw(st.sampled_from(["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm"]))
    path = folder / "public" / name
    path.parent.mkdir()
    pixels = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    Image.fromarray(pixels).save(path)
    write(path, draw(spoilt_bytes(path.read_bytes(), header=60)))
    if draw(st.booleans()):
        path.rename(path.with_name(draw(st.sampled_from(["a\x1b[31m.png", "line\nbreak.png", "\u202e.png", "a.jpg"]))))


def _read_image(folder: Path) -> None:
    read_public(folder / "public", (3, 16, 16))


_INSIDE, _OUTSIDE = (200, 30, 30), (30, 200, 30)
"""The colours of the pictures of a dataset, and of one that is not a part of it."""


def _picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    return file.getvalue()


@cache
def _picture_outside() -> Path:
    path = Path(tempfile.mkdtemp()) / "outside.png"
    path.write_bytes(_picture(_OUTSIDE))
    return path


@st.composite
def _rows(draw: st.DrawFn) -> Any:
    """A table of a dataset with images; some of its cells hold nothing, no image, or the path of one elsewhere."""
    import datasets

    cells: list[Any] = [{"bytes": _picture(_INSIDE), "path": None} for _ in range(3)]
    paths = [
        str(_picture_outside()),
        f"file://{_picture_outside()}",
        "../../outside.png",
        "",
        "\x00",
        "a\x1b[31m",
        "." * 5000,
    ]
    odd = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"no image", "path": "x"}]
    odd += [{"bytes": None, "path": path} for path in paths]
    for place in draw(st.lists(st.integers(0, 2), max_size=2, unique=True)):
        cells[place] = draw(st.sampled_from(odd))
    labels = draw(
        st.sampled_from([[0, 1, 1], [0, None, 1], ["a", "\x1b[31m", ""], [0.5, 1.5, float("nan")], [2**62] * 3])
    )
    names = draw(st.sampled_from([("image", "label"), ("image", "image "), ("\x1b[2J", "label"), ("label", "image")]))
    image = draw(st.sampled_from([datasets.Image(), datasets.Image(decode=False)]))
    columns = {names[0]: cells, names[1]: labels}
    return datasets.Dataset.from_dict(columns).cast_column(names[0], image)


def _make_saved_dataset(draw: st.DrawFn, folder: Path) -> None:
    """What ``save_to_disk`` writes, with files spoilt."""
    data = draw(_rows())
    home = folder / "set"
    home.mkdir()
    schema = pa.ipc.new_stream(home / "data-00000-of-00001.arrow", data.data.table.schema)
    with schema as file:
        file.write_table(data.data.table)
    facts = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_format_type": None}
    facts |= {"_format_columns": None, "_format_kwargs": {}, "_output_all_columns": False, "_split": "train"}
    about = {"features": data.features.to_dict(), "splits": {"train": {"name": "train", "num_examples": 3}}}
    for name, tree in (("state.json", facts), ("dataset_info.json", about)):
        spoil = draw(st.integers(0, 2)) == 0
        text = write_json(draw(spoilt(tree)) if spoil else tree)
        (home / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    _spoil_a_file(draw, home)


def _make_dataset_folder(draw: st.DrawFn, folder: Path) -> None:
    """A folder as the hub has them: tables with the images in them, or images with a table of labels, and a card."""
    home = folder / "set"
    home.mkdir()
    if draw(st.booleans()):
        pq.write_table(draw(_rows()).data.table, home / "train.parquet")
    else:
        names = [
            draw(st.sampled_from(["a.png", "../../outside.png", str(_picture_outside()), "b.png"])) for _ in range(2)
        ]
        (home / "a.png").write_bytes(_picture(_INSIDE))
        table = "file_name,label\n" + "".join(f"{name},x\n" for name in names)
        write(home / "metadata.csv", draw(st.one_of(st.just(table.encode()), spoilt_csv(table.encode()))))
    if draw(st.booleans()):
        outside = ["../../*.png", str(_picture_outside()), "http://127.0.0.1:9/x.parquet"]
        path = draw(st.sampled_from(["*.parquet", *outside]))
        card = {"configs": [{"config_name": "a", "data_files": [{"split": "train", "path": path}]}]}
        tree = draw(st.one_of(st.just(card), spoilt(card)))
        (home / "README.md").write_bytes(f"---\n{write_json(tree)}\n---\n".encode("utf-8", "surrogatepass"))
    _spoil_a_file(draw, home)


def _spoil_a_file(draw: st.DrawFn, folder: Path) -> None:
    """In one of three cases."""
    if draw(st.integers(0, 2)) == 0:
        file = draw(st.sampled_from(sorted(folder.iterdir())))
        file.write_bytes(draw(spoilt_bytes(file.read_bytes())))


def _read_dataset(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as cache, patch("datasets.config.HF_DATASETS_CACHE", Path(cache)):
        images = list_dataset(DataSettings(name=str(folder / "set"), image_size=16))
        for row in range(len(images.photographs)):
            pixel = ((images.decode([row])[0, :, 0, 0] + 1) * 127.5).round().int().tolist()
            if pixel == list(_OUTSIDE):
                raise AssertionError("read an image outside of the folder")


@cache
def _a_run() -> Path:
    folder = Path(tempfile.mkdtemp()) / "run"
    make_up_run(folder)
    return folder


_FIELDS = st.sampled_from(["", "x", "-1", "nan", "1e400", "9" * 5000, "\x1b[31m", "../../x", "<b>x", "ok", "=1+1"])


def _make_run(draw: st.DrawFn, folder: Path) -> None:
    copytree(_a_run(), folder, dirs_exist_ok=True)
    file = draw(st.sampled_from(sorted(file for file in folder.rglob("*") if file.is_file())))
    if file.suffix == ".csv":
        rows = [line.split(",") for line in file.read_text().splitlines()]
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(_FIELDS)
        file.write_text("\n".join(map(",".join, rows)) + "\n")
    elif file.suffix == ".json":
        file.write_bytes(write_json(draw(spoilt(json.loads(file.read_text())))).encode("utf-8", "surrogatepass"))
    elif file.suffix == ".safetensors" and draw(st.booleans()):
        file.write_bytes(draw(spoilt_safetensors(file.read_bytes(), "attack")))
    else:
        file.write_bytes(draw(spoilt_bytes(file.read_bytes())))


@st.composite
def spoilt_csv(draw: st.DrawFn, content: bytes) -> bytes:
    """A table of which bytes, cells, columns or rows were changed."""
    if draw(st.booleans()):
        return draw(spoilt_bytes(content, header=300))
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(_FIELDS)
    action = draw(st.sampled_from(["cells", "no header", "no column", "twice"]))
    if action == "no column":
        gone = draw(st.integers(0, len(rows[0]) - 1))
        rows = [row[:gone] + row[gone + 1 :] for row in rows]
    rows = {"no header": rows[1:], "twice": rows * 2}.get(action, rows)
    return ("\n".join(map(",".join, rows)) + "\n").encode()


def _make_table(draw: st.DrawFn, folder: Path) -> None:
    write(folder / "leakage.csv", draw(spoilt_csv((_a_run() / "leakage.csv").read_bytes())))


def _read_table(folder: Path) -> None:
    summarise(read_leakage(folder / "leakage.csv"))


def _read_run(folder: Path) -> None:
    with reading(folder):
        page = build_report(folder).read_text(encoding="utf-8")
    if "\x1b[" in page or "<b>x" in page:
        raise AssertionError("text from a file is not escaped in the report")


def _make_state(draw: st.DrawFn, folder: Path) -> None:
    write(folder / "state.safetensors", draw(spoilt_safetensors(replies.state(), "state")))


def _read_state(folder: Path) -> None:
    RunState.load(folder / "state.safetensors").restore(replies.strategy())


def _make_reconstruction(draw: st.DrawFn, folder: Path) -> None:
    write(folder / "found.safetensors", draw(spoilt_safetensors(sound("reconstruction"), "attack")))


def _read_reconstruction(folder: Path) -> None:
    path = folder / "found.safetensors"
    load_reconstruction(path)
    load_reconstructions(path)


def _make_search(draw: st.DrawFn, folder: Path) -> None:
    """A block with a valid hash around what somebody else wrote."""
    from hashlib import sha256

    content = sound("search")
    start = len(b"fl-sim search 1\n")
    if draw(st.booleans()):
        write(folder / "search.log", draw(spoilt_bytes(content)))
        return
    length = int.from_bytes(content[start : start + 8], "little")
    body = draw(spoilt_safetensors(content[start + 40 : start + 40 + length], "log"))
    block = len(body).to_bytes(8, "little") + sha256(body).digest() + body
    write(folder / "search.log", content[:start] + block + content[start + 40 + length :])


def _read_search(folder: Path) -> None:
    path = folder / "search.log"
    with EvaluationLog(path, _SEARCH, resume=True) as log:
        _evaluate(log)


def _make_reply(draw: st.DrawFn, folder: Path) -> None:
    write(folder / "reply.json", json.dumps(draw(replies.lies())).encode())


def _read_reply(folder: Path) -> None:
    replies.aggregate(json.loads((folder / "reply.json").read_text()))


CAPTURES = ("capture", "known", "classifier capture")

KINDS: dict[str, Kind] = {
    "capture": Kind(_safetensors("capture.safetensors", "observation", *CAPTURES), _read_capture),
    "checkpoint": Kind(
        _safetensors("checkpoint.safetensors", "checkpoint", "checkpoint", "classifier"), _read_checkpoint
    ),
    "diffusers folder": Kind(_make_diffusers, _read_diffusers, cost=0.1),
    "TOML file": Kind(_toml_file("run.toml", _RUN), _read_toml, cost=0.05, imports=True),
    "sweep file": Kind(_toml_file("sweep.toml", _SWEEP), _read_sweep, cost=0.05, imports=True),
    "sweep table": Kind(_make_sweep_table, _read_sweep_table),
    "--set": Kind(_make_overrides, _read_overrides, cost=0.05, imports=True),
    "saved dataset": Kind(_make_saved_dataset, _read_dataset, cost=0.05),
    "dataset folder": Kind(_make_dataset_folder, _read_dataset, cost=0.1),
    "image": Kind(_make_image, _read_image, memory_mib=4608),  # a small file may hold many pixels
    "reconstruction": Kind(_make_reconstruction, _read_reconstruction),
    "leakage table": Kind(_make_table, _read_table),
    "run directory": Kind(_make_run, _read_run, cost=1.0),
    "state of a run": Kind(_make_state, _read_state),
    "search log": Kind(_make_search, _read_search),
    "client reply": Kind(_make_reply, _read_reply, cost=0.05),
}
"""By name."""
