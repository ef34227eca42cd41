"""A small file system in memory, which can fill up and turn read-only; only root may mount one."""

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path


class Disk:
    """A file system that ``mount`` puts on the folder ``place``, which is made."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.filler = place / "filler"
        place.mkdir()

    def mount(self, options: str) -> bool:
        """Whether it could be mounted."""
        command = ["mount", "-t", "tmpfs", "-o", options, "none", self.place]
        return os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0

    def remount(self, options: str) -> None:
        """Change its options; CalledProcessError if that cannot be."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True, capture_output=True)

    def unmount(self) -> None:
        """Once nobody uses it any more."""
        subprocess.run(["umount", "--lazy", self.place], check=True)

    def fill(self) -> None:
        """Take all room that is left."""
        try:
            with self.filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS):
                raise

    def turn_read_only(self) -> bool:
        """Whether it did; it does not while a file is open for writing."""
        with suppress(subprocess.CalledProcessError):
            self.remount("ro")
            return True
        return False

    def recover(self) -> None:
        """Give back the room, and let everybody write."""
        self.remount("rw")
        self.filler.unlink(missing_ok=True)
