"""Where the package's data files are: templates, the bundled checkpoints and priors."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fl_sim.config import BUNDLED_CHECKPOINTS


def data_file(name: str) -> Path:
    """The file or folder ``name`` of this package, which need not exist.

    ``flwr run`` executes a bundle of the sources that holds no data files; the installed package has them.
    """
    folders = [Path(__file__).parent, *_installed_folders()]
    return next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)


def _installed_folders() -> list[Path]:
    """The package as installed, and the source tree of an editable installation."""
    try:
        installed = distribution("fl-sim")
    except PackageNotFoundError:
        return []
    origin = json.loads(installed.read_text("direct_url.json") or "{}").get("url", "")
    return [
        Path(str(installed.locate_file("experiments"))),
        Path(url2pathname(urlsplit(origin).path)) / "experiments",
    ]


_CHECKPOINT_FILES = (data_file("checkpoints/demo.safetensors"), data_file("checkpoints/demo-32.safetensors"))

BUNDLED_FILES = dict(zip(BUNDLED_CHECKPOINTS, _CHECKPOINT_FILES, strict=True))
"""By their name in ``model.checkpoint``."""

BUNDLED_PRIORS = {
    "photographs-32": data_file("checkpoints/prior-photographs-32.safetensors"),
    "digits-16": data_file("checkpoints/prior-digits-16.safetensors"),
}
"""By their name in the argument ``prior`` of an attack, which may name a bundled checkpoint as well."""
