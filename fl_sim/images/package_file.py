"""Files of installed packages."""

from importlib.util import find_spec
from pathlib import Path


def package_file(package: str, file: str) -> Path:
    """The path of ``file`` in a package, which is not imported: scikit-learn alone takes over a second."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / file
