"""Honest-but-curious peers: they gossip exactly as the protocol says, and attack what their neighbours send."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from attacks.observation import UpdateId
from strategies.errors import ArgumentError
from strategies.gossip import Gossip, State, average, state_in
from strategies.honest_but_curious import HonestButCurious, View
from strategies.topology import among


class CuriousPeers(HonestButCurious):
    """Wrapper around Gossip that attacks what reaches the curious peers, and changes nothing.

    A curious peer sees the messages of its neighbours and its own, and nothing else. It knows the protocol: the graph,
    the mixing weights, and the initial weights. From these it estimates the model of each neighbour, by repeating the
    neighbour's steps. A neighbour also receives messages that the curious peer does not see; the curious peer
    replaces them by the mean of the messages that it sees. So the weights in an observation are exact in the first
    round, and for a neighbour without other neighbours, as in a complete graph; otherwise they are an estimate. With
    gradients the update is always exact; with weights it is relative to that estimate.

    Args:
        strategy: the federation without a server.
        peers: who is curious; each attacks by itself.
        arguments: HonestButCurious's others.

    Raises:
        StrategyError: if there is no such peer.
    """

    def __init__(self, strategy: Gossip, peers: Iterable[int], *args: Any, **arguments: Any) -> None:
        super().__init__(strategy, *args, **arguments)
        self._gossip = strategy
        self._curious = sorted(set(peers))
        if strangers := [peer for peer in self._curious if not 0 <= peer < len(strategy.mixing)]:
            allowed = f"0 to {len(strategy.mixing) - 1}"
            raise ArgumentError("peers", f"= {self._curious}: there is no peer {strangers[0]}; allowed: {allowed}")
        self._estimates: dict[int, dict[int, State]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate; before the first round, keep the weights from which all peers start."""
        if not self._estimates:
            start = arrays.to_torch_state_dict()
            self._estimates = {
                peer: dict.fromkeys([*self._gossip.neighbours(peer), peer], start) for peer in self._curious
            }
        return super().configure_train(server_round, arrays, config, grid)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from round to round: what each curious peer takes its neighbours' models for."""
        return {"estimates": self._estimates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self._estimates = state["estimates"]

    def _views(self, server_round: int, replies: Sequence[Message]) -> Iterable[View]:
        """A round's replies as each curious peer sees them: its neighbours', with its estimates of their weights."""
        messages = self._gossip.messages(replies)
        for observer in self._curious:
            estimates = self._estimates[observer]
            heard = {peer: messages[peer] for peer in estimates if peer in messages}
            if observer not in heard:
                continue  # it was down in this round, and heard nobody
            for peer, message in heard.items():
                if peer != observer:
                    update_id = UpdateId(server_round, peer, observer)
                    yield View.of(update_id, partial(dict, estimates[peer]), message.content)
            self._estimates[observer] = self._follow(estimates, {peer: state_in(m) for peer, m in heard.items()})

    def _follow(self, estimates: dict[int, State], heard: dict[int, State]) -> dict[int, State]:
        """Estimates of the neighbours' models after a round in which the observer received only ``heard``."""
        everybody = range(len(self._gossip.mixing))
        unheard = average(list(heard.values()))
        # Peers that the observer does not hear are assumed to have sent something.
        spoke = [peer for peer in everybody if peer in heard or peer not in estimates]
        mixing = among(self._gossip.mixing, spoke)
        sent = {peer: heard.get(peer, unheard) for peer in everybody}
        return {
            peer: self._gossip.step(model, mixing[peer], sent) if peer in heard else model
            for peer, model in estimates.items()
        }
