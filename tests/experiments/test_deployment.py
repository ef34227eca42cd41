"""The deployment of docs/flower.md with TLS and authentication: a SuperLink and SuperNodes, by its own commands."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from experiments.run_directory import RunDirectory
from tests.pages.clusters import CHEAPER, Cluster, free_ports
from tests.pages.pages import REPOSITORY, pages

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SECRET = 7716052893
"""The clients' seed; the server believes in another one."""

CLIENT = f"client.seed = {SECRET}\ndata.image_size = 32\nfederation.clients = 2\n"

SETTINGS = f"federation.clients=2 {CHEAPER} attack.when=never client.seed=1"

ENDS_WITHIN = 400.0
"""Seconds that a run may take on a machine that has much else to do."""


@dataclass
class Deployment:
    """What somebody has who follows the page, for as many clients as come."""

    cluster: Cluster
    out: Path
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Each client's SuperNode."""

    def command(self, *begin: str) -> list[str]:
        """The last command of the page that begins so."""
        texts = [item.text for item in pages()["docs/flower.md"].of_kind("command")]
        return shlex.split([text for text in texts if text.startswith(" ".join(begin))][-1])

    def do(self, words: list[str], cwd: Path | None = None) -> str:
        """What the program prints; it has to end well."""
        environment = os.environ | self.cluster.environment
        done = subprocess.run(
            words, cwd=cwd or self.cluster.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self) -> None:
        for item in pages()["docs/flower.md"].of_kind("command"):
            if item.text.startswith("openssl"):
                self.do(shlex.split(item.text))
        port = {"--host": "127.0.0.1", "--port": str(self.cluster.server)}
        words = [port.get(before, word) for before, word in pairwise(["", *self.command("flower-superlink")])]
        self.cluster.start(words, {})
        self.cluster.wait_for(self.cluster.server)
        toml = next(item.text for item in pages()["docs/flower.md"].of_kind("toml") if "root-certificates" in item.text)
        config = self.cluster.folder / ".flwr" / "config.toml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(self.here(toml))

    def here(self, text: str, client: int = 0) -> str:
        """The page's words about client 0 for this folder, and this client."""
        text = self.cluster.here(text).replace("/home/alice", str(self.cluster.folder))
        return text.replace("client-0", f"client-{client}").replace("partition-id=0", f"partition-id={client}")

    def let_in(self, client: int) -> None:
        self.do([self.here(word, client) for word in self.command("flwr supernode register")])

    def make_key(self, client: int) -> None:
        self.do([self.here(word, client) for word in self.command("ssh-keygen")])

    def join(self, client: int) -> None:
        port = free_ports(1)[0]
        words = [self.here(word, client) for word in self.command("flower-supernode")]
        self.cluster.start([*words, "--port", str(port)], {})
        self.cluster.wait_for(port)
        self.nodes[client] = self.cluster.started[-1]

    def leave(self, client: int) -> None:
        node = self.nodes.pop(client)
        node.terminate()
        node.wait(60)

    def begin(self) -> str:
        """Begin a run; returns its number."""
        run = ["flwr", "run", ".", "-c", f'overrides="{SETTINGS}" out="{self.out}"', "--format", "json"]
        return str(json.loads(self.do(run, REPOSITORY))["run-id"])

    def finished(self, run: str) -> RunDirectory:
        """The directory of the run once it is whole."""
        directory, end = RunDirectory(self.out / f"run-{run}"), time.monotonic() + ENDS_WITHIN
        while not (directory.ended and directory.report.is_file()):
            assert time.monotonic() < end, self.cluster.logs()
            time.sleep(0.5)
        return directory


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    cluster = Cluster(folder)
    deployment = Deployment(cluster, folder / "out")
    (folder / "client.toml").write_text(CLIENT)
    try:
        deployment.serve()
        for client in range(2):
            deployment.make_key(client)
            deployment.let_in(client)
            deployment.join(client)
        yield deployment
    finally:
        cluster.end()


def test_a_run_is_whole_that_a_client_came_back_to_and_the_clients_seed_stays_with_them(deployment: Deployment) -> None:
    deployment.leave(1)
    began = deployment.begin()
    deployment.join(1)
    run = deployment.finished(began)
    assert pd.read_parquet(run.rounds)["clients_seen"].map(list).tolist() == [[0, 1]]
    assert len(list(run.captures.iterdir())) == 2
    told = [path for path in deployment.cluster.folder.rglob("*") if path.is_file() and path.name != "client.toml"]
    assert run.config in told
    assert [path for path in told if str(SECRET).encode() in path.read_bytes()] == []


def test_a_client_that_nobody_let_in_stays_outside(deployment: Deployment) -> None:
    deployment.make_key(2)
    deployment.join(2)
    assert deployment.nodes.pop(2).wait(60) != 0
    nodes = json.loads(deployment.do(["flwr", "supernode", "list", "--format", "json"]))["nodes"]
    assert len(nodes) == 2
