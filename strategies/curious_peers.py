"""Honest-but-curious peers: they gossip exactly as told, and keep what their neighbours told them."""

from collections.abc import Iterable, Sequence
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

    A curious peer sees its neighbours' messages and its own, nothing else. It knows the protocol: the graph, the mixing
    weights, and the weights that everybody started from. With these it follows its neighbours' models: it repeats the
    step that each of them takes. A neighbour also hears peers whom the curious one does not hear; what they told is
    taken to be the mean of what it did hear. So the weights of an observation are exact in the first round, and for
    a neighbour who hears nobody else (in a complete graph, everybody); otherwise they are the peer's best guess. Where
    gradients travel the update itself is always exact; where weights travel the guess enters the update as well.

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
        self._beliefs: dict[int, dict[int, State]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate; before the first round, note the weights that everybody starts from."""
        if not self._beliefs:
            start = arrays.to_torch_state_dict()
            self._beliefs = {
                peer: dict.fromkeys([*self._gossip.neighbours(peer), peer], start) for peer in self._curious
            }
        return super().configure_train(server_round, arrays, config, grid)

    def _views(self, server_round: int, replies: Sequence[Message]) -> Iterable[View]:
        """A round's replies as each curious peer sees them: its neighbours' alone, at the weights it believes in."""
        messages = self._gossip.messages(replies)
        for observer in self._curious:
            beliefs = self._beliefs[observer]
            heard = {peer: messages[peer] for peer in beliefs if peer in messages}
            if observer not in heard:
                continue  # it was down in this round, and heard nobody
            for peer, message in heard.items():
                if peer != observer:
                    update_id = UpdateId(server_round, peer, observer)
                    yield View.of(update_id, partial(dict, beliefs[peer]), message.content)
            self._beliefs[observer] = self._follow(beliefs, {peer: state_in(m) for peer, m in heard.items()})

    def _follow(self, beliefs: dict[int, State], heard: dict[int, State]) -> dict[int, State]:
        """The neighbours' models after a round of which an observer heard only ``heard``."""
        everybody = range(len(self._gossip.mixing))
        unheard = average(list(heard.values()))
        # Whoever is out of earshot is taken to have spoken.
        spoke = [peer for peer in everybody if peer in heard or peer not in beliefs]
        mixing = among(self._gossip.mixing, spoke)
        told = {peer: heard.get(peer, unheard) for peer in everybody}
        return {
            peer: self._gossip.step(model, mixing[peer], told) if peer in heard else model
            for peer, model in beliefs.items()
        }
