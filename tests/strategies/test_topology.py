import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import StrategyError
from strategies.topology import adjacency, among, metropolis_hastings


@st.composite
def graphs(draw: st.DrawFn) -> torch.Tensor:
    topology, peers = draw(st.sampled_from(["ring", "regular", "complete"])), draw(st.integers(2, 12))
    degrees = [degree for degree in range(2, peers) if peers * degree % 2 == 0] or [1]
    return adjacency(topology, peers, draw(st.sampled_from(degrees)), draw(st.integers(0, 99)))


def is_doubly_stochastic(mixing: torch.Tensor) -> bool:
    ones = torch.ones(len(mixing), dtype=torch.float64)
    return bool((mixing >= 0).all()) and all(torch.allclose(mixing.sum(side), ones) for side in (0, 1))


@given(graphs())
def test_every_graph_is_symmetric_connected_and_nobody_is_its_own_neighbour(graph: torch.Tensor) -> None:
    assert torch.equal(graph, graph.T)
    assert not graph.diag().any()
    reached = torch.linalg.matrix_power(graph.double() + torch.eye(len(graph)), len(graph))
    assert (reached > 0).all()


@given(graphs())
def test_mixing_weights_are_symmetric_doubly_stochastic_and_follow_the_graph(graph: torch.Tensor) -> None:
    mixing = metropolis_hastings(graph)
    assert is_doubly_stochastic(mixing)
    assert torch.equal(mixing, mixing.T)
    assert torch.equal(mixing > 0, graph | torch.eye(len(graph), dtype=torch.bool))


def test_mixing_weights_of_a_star_are_those_of_the_paper() -> None:
    star = torch.zeros(4, 4, dtype=torch.bool)
    star[0, 1:] = star[1:, 0] = True
    mixing = metropolis_hastings(star)
    assert torch.allclose(mixing[0], torch.full((4,), 0.25, dtype=torch.float64))
    assert torch.allclose(mixing[1], torch.tensor([0.25, 0.75, 0, 0], dtype=torch.float64))
    assert is_doubly_stochastic(mixing)


@given(graphs(), st.data())
def test_whoever_is_silent_the_rest_mix_doubly_stochastically(graph: torch.Tensor, data: st.DataObject) -> None:
    spoke = data.draw(st.sets(st.integers(0, len(graph) - 1)))
    mixing = among(metropolis_hastings(graph), spoke)
    assert is_doubly_stochastic(mixing)
    for silent in set(range(len(graph))) - spoke:
        assert mixing[silent, silent] == 1


@pytest.mark.parametrize(("topology", "degree"), [("ring", 2), ("regular", 3), ("complete", 7)])
def test_degrees(topology: str, degree: int) -> None:
    assert set(adjacency(topology, 8, 3).sum(1).tolist()) == {degree}


def test_a_random_graph_follows_its_seed() -> None:
    assert torch.equal(adjacency("regular", 20, 4, 1), adjacency("regular", 20, 4, 1))
    assert not torch.equal(adjacency("regular", 20, 4, 1), adjacency("regular", 20, 4, 2))


@pytest.mark.parametrize(
    ("topology", "peers", "degree", "complaint"),
    [
        ("star", 8, 4, "^topology = 'star': unknown; allowed: ring, regular, complete"),
        ("ring", 1, 4, "^peers = 1: a peer needs another one"),
        ("regular", 8, 8, "allowed: 2 to 7"),
        ("regular", 7, 3, "allowed: 2 to 6, even ones$"),
        ("regular", 8, 1, "^degree = 1: no connected graph"),
        ("regular", 8, 0, "allowed: 2 to 7"),
        ("regular", 2, 4, "allowed: 1$"),
    ],
)
def test_graphs_that_do_not_exist_are_refused(topology: str, peers: int, degree: int, complaint: str) -> None:
    with pytest.raises(StrategyError, match=complaint):
        adjacency(topology, peers, degree)
