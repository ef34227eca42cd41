"""Flower's programs and Ray's, on ports and in folders of their own; what a page starts is ended with it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import psutil

from tests.processes import kill_all, with_descendants

STARTS_WITHIN = 120.0
"""Seconds that a server may take to listen, on a machine that has much else to do."""

CHEAPER = (
    "federation.rounds=1 utility.every=0 model.checkpoint=none model.block_out_channels=[8,8] model.norm_num_groups=4"
)
"""Added to the settings of every run."""

ATTACKED = f"{CHEAPER} attack.workers=1 attack.args.residual.max_evaluations=5"
"""Where one is attacked: workers take as long to start as everything else."""

SERVER = "SERVER:8000"
"""Where the pages' deployment listens."""


@dataclass
class Cluster:
    """What the programs of one page share: the home directory ``folder``, free ports, and the processes they start."""

    folder: Path
    sockets: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray-")))  # Ray's paths must be short
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Choose the ports."""
        self.server, control, http, self.ray = free_ports(4)
        self.environment = {
            "HOME": str(self.folder),
            "MPLCONFIGDIR": matplotlib.get_configdir(),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(self.sockets),
            "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
        }

    def here(self, text: str) -> str:
        """A word of the page with this machine's server for the page's."""
        return text.replace(SERVER, f"127.0.0.1:{self.server}")

    def start(self, words: list[str], environment: dict[str, str]) -> None:
        """Start a program that goes on; it writes into a file of its name."""
        with (self.folder / f"{words[0]}-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                words, cwd=self.folder, env=os.environ | self.environment | environment, stdout=log, stderr=log
            )
        self.started.append(process)

    def wait_for(self, port: int) -> None:
        """Return when somebody listens at the port; TimeoutError after STARTS_WITHIN."""
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"nobody listens at {port}: {self.logs()}")

    def logs(self) -> str:
        """What the programs that go on have written."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def superlinks(self) -> list[psutil.Process]:
        """The SuperLinks whose command line names the home directory: ``flwr run`` leaves its own running."""
        return [process for process in self._of(str(self.folder)) if "flower-superlink" in " ".join(process.cmdline())]

    def end(self) -> None:
        """Kill whatever was started, and what that started."""
        roots = [*(process.pid for process in self.started), *(p.pid for p in self._of(str(self.folder)))]
        roots += [process.pid for process in self._of(str(self.sockets))]
        kill_all([process for pid in roots for process in with_descendants(pid) if process.pid != os.getpid()])
        for process in self.started:
            process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _of(self, word: str) -> list[psutil.Process]:
        found = psutil.process_iter(["cmdline"])
        return [process for process in found if any(word in part for part in process.info["cmdline"] or ())]


def cheaper_run(words: list[str]) -> list[str]:
    """``flwr run …`` with cheaper settings inside its overrides."""
    cheaper = CHEAPER if any("attack.name=none" in word for word in words) else ATTACKED
    if any("overrides=" in word for word in words):
        return [re.sub(r'overrides="(.*?)"', rf'overrides="\1 {cheaper}"', word) for word in words]
    return [*words, "-c", f'overrides="{cheaper}"']


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
