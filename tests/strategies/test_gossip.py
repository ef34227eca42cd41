"""Gossip and its curious peers on a stub Grid of eight nodes with one small tensor each."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict

from attacks.observation import Observation, UpdateId
from fl_sim.wire import pack_reply
from strategies.curious_peers import CuriousPeers
from strategies.errors import StrategyError
from strategies.gossip import Gossip
from tests.strategies.stub_federation import GRADIENTS, WEIGHTS, StubGrid, initial_arrays, made_up_update

NODES = (77, 305, 42, 101, 9, 512, 13, 600)
PEERS = len(NODES)

State = dict[str, torch.Tensor]
Tell = Callable[[int, int, State], State | None]
"""What a peer tells in a round, from the weights that it has; None if it dies."""


class Peers(StubGrid):
    """Peers that reply with what ``tell`` says."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(self._reply)
        self.tell = tell
        self.sent: dict[tuple[int, int], State] = {}

    def get_node_ids(self) -> list[int]:
        return list(NODES)

    def _reply(self, message: Message, node: int, server_round: int) -> RecordDict | Error:
        peer = NODES.index(node)
        weights = message.content.array_records["arrays"].to_torch_state_dict()
        self.sent[server_round, peer] = weights
        told = self.tell(server_round, peer, weights)
        return Error(1, "gone") if told is None else pack_reply(told, 1, 0.5, peer, "cpu")


class Notes:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.seen: dict[UpdateId, Observation] = {}

    def observe(self, observation: Observation) -> None:
        found = observation.circumstances
        self.seen[UpdateId(found.round, found.client, found.observer)] = observation

    def failed(self, update_id: UpdateId, reason: str) -> None:
        raise AssertionError(reason)

    def drain(self) -> None: ...

    def close(self) -> None: ...


def numbers(peer: int, server_round: int = 0) -> torch.Tensor:
    return torch.randn(3, generator=torch.Generator().manual_seed(1000 * server_round + peer))


def gossip(tell: Tell, rounds: int, **options: Any) -> tuple[Gossip, Peers]:
    strategy, grid = Gossip(peers=PEERS, **options), Peers(tell)
    strategy.start(grid, ArrayRecord({"w": torch.zeros(3)}), num_rounds=rounds)
    return strategy, grid


def stacked(strategy: Gossip) -> torch.Tensor:
    return torch.stack([model["w"] for model in strategy.models])


@pytest.mark.parametrize("topology", ["ring", "regular", "complete"])
def test_weights_converge_to_the_average_of_where_the_peers_were(topology: str) -> None:
    def tell(server_round: int, peer: int, weights: State) -> State:
        return {"w": numbers(peer)} if server_round == 1 else weights

    strategy, _ = gossip(tell, rounds=60, topology=topology, update="weights")
    average = torch.stack([numbers(peer) for peer in range(PEERS)]).mean(0)
    assert torch.allclose(stacked(strategy), average.expand(PEERS, 3), atol=1e-5)


def test_one_step_with_weights_is_the_mixing_matrix() -> None:
    strategy, _ = gossip(lambda _, peer, __: {"w": numbers(peer)}, rounds=1, update="weights")
    told = torch.stack([numbers(peer) for peer in range(PEERS)])
    assert torch.allclose(stacked(strategy), strategy.mixing.float() @ told)
    assert torch.allclose(stacked(strategy)[0], (told[7] + told[0] + told[1]) / 3)


def test_with_gradients_every_peer_steps_along_the_mean_it_heard_and_the_average_as_fed_sgd_would() -> None:
    strategy, _ = gossip(lambda r, peer, _: {"w": numbers(peer, r)}, rounds=2, update="gradient", lr=0.5)
    first, second = (torch.stack([numbers(peer, r) for peer in range(PEERS)]) for r in (1, 2))
    assert torch.allclose(stacked(strategy), -0.5 * strategy.mixing.float() @ (first + second), atol=1e-6)
    assert torch.allclose(stacked(strategy).mean(0), -0.5 * (first + second).mean(0), atol=1e-6)


def test_every_peer_trains_from_its_own_weights_and_the_average_is_returned() -> None:
    strategy, grid = gossip(lambda _, peer, __: {"w": numbers(peer)}, rounds=2, update="weights")
    first = strategy.mixing.float() @ torch.stack([numbers(peer) for peer in range(PEERS)])
    for peer in range(PEERS):
        assert torch.allclose(grid.sent[2, peer]["w"], first[peer])
        assert not grid.sent[1, peer]["w"].any()
    result = Gossip(peers=PEERS, update="weights").start(
        Peers(lambda _, peer, __: {"w": numbers(peer)}), ArrayRecord({"w": torch.zeros(3)}), num_rounds=1
    )
    assert torch.allclose(result.arrays.to_torch_state_dict()["w"], first.mean(0), atol=1e-6)
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx(0.5)


def test_a_peer_that_dies_keeps_its_model_and_its_neighbours_do_without() -> None:
    def tell(server_round: int, peer: int, weights: State) -> State | None:
        return None if peer == 3 else {"w": numbers(peer)}

    strategy, _ = gossip(tell, rounds=1, update="weights")
    assert not strategy.models[3]["w"].any()
    assert torch.allclose(strategy.models[2]["w"], numbers(1) / 3 + numbers(2) * 2 / 3)


def test_what_a_message_leaves_out_stays_a_peers_own() -> None:
    strategy, grid = Gossip(peers=PEERS, update="gradient", lr=1.0), Peers(lambda _, peer, __: {"w": numbers(peer)})
    strategy.start(grid, ArrayRecord({"w": torch.zeros(3), "frozen": torch.ones(2)}), num_rounds=1)
    assert all(torch.equal(model["frozen"], torch.ones(2)) for model in strategy.models)


def test_as_many_nodes_as_peers() -> None:
    with pytest.raises(StrategyError, match="8 nodes for a graph of 5 peers"):
        Gossip(peers=5).start(Peers(lambda *_: {}), ArrayRecord({"w": torch.zeros(3)}), num_rounds=1)


def unet_peer(update: str, changed: Mapping[int, int] = {}) -> Tell:
    """A peer that answers with noise; ``changed`` gives some peers other noise."""

    def tell(server_round: int, peer: int, weights: State) -> State:
        return made_up_update(ArrayRecord(weights), changed.get(peer, peer), server_round, update)

    return tell


def watch(tell: Tell, curious: Iterable[int], topology: str = "ring", update: str = "gradient", rounds: int = 2):
    recipe = GRADIENTS if update == "gradient" else WEIGHTS
    notes, grid = Notes(), Peers(tell)
    strategy = Gossip(topology, PEERS, 3, update=update)  # type: ignore[arg-type]
    CuriousPeers(strategy, curious, sink=notes).start(
        grid, initial_arrays(), num_rounds=rounds, train_config=recipe.to_config()
    )
    return notes.seen, grid, strategy


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("topology", ["ring", "regular"])
def test_a_peer_sees_its_neighbours_and_nobody_else(topology: str) -> None:
    seen, _, strategy = watch(unet_peer("gradient"), (0, 5), topology)
    expected = {UpdateId(r, n, peer) for r in (1, 2) for peer in (0, 5) for n in strategy.neighbours(peer)}
    assert set(seen) == expected


@pytest.mark.parametrize("update", ["gradient", "weights"])
def test_what_a_peer_does_not_hear_changes_nothing_that_it_sees(update: str) -> None:
    out_of_earshot = {peer: peer + 50 for peer in (3, 4, 5)}  # peer 0 hears 7 and 1, which hear 6 and 2
    seen, grid, _ = watch(unet_peer(update), (0,), update=update, rounds=2)
    again, other, _ = watch(unet_peer(update, {**out_of_earshot, 2: 52, 6: 56}), (0,), update=update, rounds=2)
    assert not same(grid.sent[2, 1], other.sent[2, 1]), "peer 1 did hear peer 2"
    first = {key: value for key, value in seen.items() if key.round == 1}
    assert all(
        same(again[key].update, value.update) and same(again[key].weights, value.weights)
        for key, value in first.items()
    )
    if update == "gradient":
        assert all(
            same(again[key].update, value.update) and same(again[key].weights, value.weights)
            for key, value in seen.items()
        )


@pytest.mark.parametrize("update", ["gradient", "weights"])
def test_the_first_round_is_seen_exactly_and_later_ones_as_far_as_heard(update: str) -> None:
    for topology, exact in (("complete", True), ("ring", False)):
        seen, grid, _ = watch(unet_peer(update), (0,), topology, update)
        for update_id, observation in seen.items():
            true = grid.sent[update_id.round, update_id.client]
            assert same(observation.weights, true) == (exact or update_id.round == 1)
            if update == "gradient":
                told = made_up_update(ArrayRecord(true), update_id.client, update_id.round, update)
                assert same(observation.update, told), "the gradient travels as it is"


def test_a_peers_guess_of_a_neighbour_is_closer_than_where_everybody_started() -> None:
    seen, grid, _ = watch(unet_peer("gradient"), (0,), rounds=3)
    start = initial_arrays().to_torch_state_dict()
    for peer in (1, 7):
        true, believed = grid.sent[3, peer], seen[UpdateId(3, peer, 0)].weights
        missed = sum((believed[name] - value).square().sum() for name, value in true.items())
        moved = sum((start[name] - value).square().sum() for name, value in true.items())
        assert missed < 0.6 * moved


def test_being_watched_changes_no_bit() -> None:
    watched = watch(unet_peer("weights"), (0, 1), update="weights")[2]
    plain = Gossip(peers=PEERS, update="weights")
    plain.start(Peers(unet_peer("weights")), initial_arrays(), num_rounds=2, train_config=WEIGHTS.to_config())
    assert all(same(mine, other) for mine, other in zip(watched.models, plain.models, strict=True))


def test_a_peer_that_is_down_hears_nothing_and_a_silent_neighbour_is_not_seen() -> None:
    def tell(server_round: int, peer: int, weights: State) -> State | None:
        down = {1: (1,), 2: (0,), 3: ()}[server_round]
        return None if peer in down else unet_peer("gradient")(server_round, peer, weights)

    seen, _, _ = watch(tell, (0,), rounds=3)
    assert set(seen) == {UpdateId(1, 7, 0), UpdateId(3, 1, 0), UpdateId(3, 7, 0)}


def test_a_curious_peer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"peers = \[8\]: there is no peer 8; allowed: 0 to 7"):
        CuriousPeers(Gossip(peers=8), (8,), sink=Notes())
