"""Where the package's data files are: templates and the bundled checkpoint."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


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
