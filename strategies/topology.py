"""Graphs of peers without a server, and the mixing weights with which they average."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import networkx as nx
import torch
from torch import Tensor

from strategies.errors import ArgumentError

Topology = Literal["ring", "regular", "complete"]
TOPOLOGIES: tuple[str, ...] = get_args(Topology)


def adjacency(topology: str, peers: int, degree: int = 4, seed: int = 0) -> Tensor:
    """Adjacency matrix of a connected graph: bool [peers, peers], symmetric, False on the diagonal.

    ``regular`` is a random graph in which every peer has ``degree`` neighbours, drawn from ``seed`` until connected.

    Raises:
        StrategyError: if there is no such graph.
    """
    if topology not in TOPOLOGIES:
        raise ArgumentError("topology", f"= {topology!r}: unknown; allowed: {', '.join(TOPOLOGIES)}")
    if peers < 2:
        raise ArgumentError("peers", f"= {peers}: a peer needs another one; allowed: at least 2")
    if topology == "ring":
        graph = nx.cycle_graph(peers)
    elif topology == "complete":
        graph = nx.complete_graph(peers)
    else:
        graph = _random_regular(peers, degree, seed)
    return torch.from_numpy(nx.to_numpy_array(graph, nodelist=range(peers))).bool()


def _random_regular(peers: int, degree: int, seed: int) -> Any:
    if not 0 < degree < peers or peers * degree % 2 or (degree == 1 and peers > 2):
        allowed = "1" if peers == 2 else f"2 to {peers - 1}{', even ones' if peers % 2 else ''}"
        raise ArgumentError(
            "degree",
            f"= {degree}: no connected graph gives each of {peers} peers {degree} neighbours; allowed: {allowed}",
        )
    while not nx.is_connected(graph := nx.random_regular_graph(degree, peers, seed=seed)):
        seed += 1
    return graph


def metropolis_hastings(neighbours: Tensor) -> Tensor:
    """Mixing weights float64 [n, n] for a graph bool [n, n]: symmetric, doubly stochastic, positive on every edge.

    W_ij = 1 / (1 + max(d_i, d_j)) for neighbours of degrees d_i and d_j, and W_ii = 1 - sum_j W_ij (Xiao, Boyd and
    Lall 2006, "Distributed average consensus with time-varying Metropolis weights").
    """
    degrees = neighbours.sum(1, dtype=torch.float64)
    mixing = neighbours / (1 + torch.maximum(degrees[:, None], degrees[None]))
    return _stochastic(mixing)


def among(mixing: Tensor, spoke: Iterable[int]) -> Tensor:
    """The mixing weights of a round in which only the peers ``spoke`` sent anything; still doubly stochastic.

    A peer adds the weight of silent neighbours to its own; silent peers keep their model.
    """
    heard = torch.zeros(len(mixing), dtype=mixing.dtype)
    heard[list(spoke)] = 1
    return _stochastic(mixing * heard * heard[:, None])


def _stochastic(mixing: Tensor) -> Tensor:
    """The weights off the diagonal, with a diagonal that makes each row sum to 1."""
    off_diagonal = mixing - mixing.diag().diag()
    return off_diagonal + (1 - off_diagonal.sum(1)).diag()
