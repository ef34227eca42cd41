"""The documentation site."""

import resource
import subprocess
import sys
from pathlib import Path

from tests.pages.pages import REPOSITORY

BUILT_WITHIN = 30.0
"""Seconds of a core."""


def build_site(folder: Path) -> Path:
    """The site in ``folder``; AssertionError if mkdocs warns of anything, or takes too long."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    before = _seconds_of_children()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _seconds_of_children() - before < BUILT_WITHIN
    return folder


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
