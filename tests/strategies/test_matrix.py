"""Every strategy that goes by a name, with a curious server around it and without: the same weights, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from attacks.registry import create
from attacks.workers import AttackPool
from fl_sim.client_app import build_client_app
from fl_sim.federation import AttackResources, run_federation
from fl_sim.repeatable_grid import RepeatableGrid
from fl_sim.wire import CLIPPING_NORM, METRICS, Recipe
from strategies.honest_but_curious import HonestButCurious
from strategies.registry import available, build_strategy
from strategies.sink import DirectorySink
from tests.fl_sim.federations import equal, repeatable_grid, tiny_settings, weights_recipe
from tests.fl_sim.federations import initial_arrays as tiny_arrays
from tests.strategies import stub_federation
from tests.strategies.stub_federation import GRADIENTS, NODES, WEIGHTS, client_of, made_up_update
from tests.strategies.test_honest_but_curious import Notes
from tests.strategies.test_sink import GUESS

PRIVACY = {"noise_multiplier": 0.3, "num_sampled_clients": len(NODES)}
OF_WEIGHTS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9},
    "FedAdagrad": {},
    "FedAdam": {},
    "FedYogi": {},
    "FedProx": {"proximal_mu": 0.1},
    "FedMedian": {},
    "FedTrimmedAvg": {},
    "QFedAvg": {"client_learning_rate": 0.01},
    "Krum": {},
    "MultiKrum": {"num_nodes_to_select": 2},
    "Bulyan": {},
    "DifferentialPrivacyServerSideFixedClipping": {**PRIVACY, "clipping_norm": 0.1},
    "DifferentialPrivacyClientSideFixedClipping": {**PRIVACY, "clipping_norm": 0.1, "inner": "FedAdam"},
    "DifferentialPrivacyServerSideAdaptiveClipping": {**PRIVACY, "inner": "FedMedian"},
    "DifferentialPrivacyClientSideAdaptiveClipping": PRIVACY,
}
OF_GRADIENTS: dict[str, dict[str, Any]] = {
    inner: {"inner": inner, **OF_WEIGHTS[inner]}
    for inner in ("FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")
}
MATRIX = [pytest.param(name, args, WEIGHTS, id=name) for name, args in OF_WEIGHTS.items()]
MATRIX += [pytest.param("FedSGD", args, GRADIENTS, id=f"FedSGD-{inner}") for inner, args in OF_GRADIENTS.items()]


def run(strategy: Strategy, recipe: Recipe) -> list[str]:
    """SHA-256 of the weights after every round; numpy's numbers are the noise of differential privacy."""
    np.random.seed(0)
    honest = client_of(recipe.update)

    def client(message: Message, node: int, server_round: int) -> RecordDict:
        reply = honest(message, node, server_round)
        if any(CLIPPING_NORM in config for config in message.content.config_records.values()):
            reply.metric_records[METRICS]["norm_bit"] = 1
        return reply

    return stub_federation.run(strategy, recipe, client, rounds=2)[0]


@pytest.mark.parametrize(("name", "args", "recipe"), MATRIX)
def test_an_attack_changes_no_bit_and_sees_the_raw_updates(name: str, args: dict[str, Any], recipe: Recipe) -> None:
    plain = run(build_strategy(name, args), recipe)
    drawn = np.random.get_state()[1].tobytes()
    sink = Notes()
    attacked = run(HonestButCurious(build_strategy(name, args), sink=sink), recipe)
    assert attacked == plain
    assert len(set(plain)) == 3, "every round moves the weights"
    assert np.random.get_state()[1].tobytes() == drawn
    assert len(sink.seen) == 2 * len(NODES)
    sent = stub_federation.initial_arrays()
    for client, node in enumerate(NODES):
        replied = made_up_update(sent, node, 1, recipe.update)
        for parameter, weight in sent.to_torch_state_dict().items():
            before = weight if recipe.update == "weights" else torch.zeros_like(weight)
            assert torch.equal(sink.seen[1, client].update[parameter], replied[parameter] - before)


def test_no_strategy_is_forgotten() -> None:
    # Gossip has no server that could be wrapped: tests/strategies/test_gossip.py watches its peers.
    assert {*OF_WEIGHTS, "FedSGD", "Gossip"} == set(available())


@pytest.mark.ray
def test_on_ray_an_attack_changes_no_bit_either_and_the_weights_are_those_of_this_process(tmp_path: Path) -> None:
    recipe = weights_recipe()
    settings = tiny_settings("federation.client_cpus=2")
    weights: dict[tuple[str, bool], dict[str, torch.Tensor]] = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        for name in ("FedAdam", "FedMedian"):
            for attacked in (False, True):
                strategy = build_strategy(name, {"fraction_evaluate": 0.0})
                if attacked:
                    sink = DirectorySink(tmp_path / name, {GUESS: {}}, AttackPool())
                    strategy = HonestButCurious(strategy, sink=sink)
                repeatable = RepeatableGrid(grid, 0, 3, timeout=120.0)
                result = strategy.start(repeatable, tiny_arrays(recipe), 2, train_config=recipe.to_config())
                weights[name, attacked] = result.arrays.to_torch_state_dict()

    run_federation(app, build_client_app(settings), settings, AttackResources(1))
    for name in ("FedAdam", "FedMedian"):
        plain, attacked = weights[name, False], weights[name, True]
        assert all(torch.equal(value, attacked[parameter]) for parameter, value in plain.items())
        here = build_strategy(name, {"fraction_evaluate": 0.0}).start(
            repeatable_grid(), tiny_arrays(recipe), 2, train_config=recipe.to_config()
        )
        assert equal(plain, here.arrays.to_torch_state_dict())
        guesses = list((tmp_path / name / "reconstructions").glob(f"*-{create(GUESS).name}.safetensors"))
        assert len(guesses) == 2 * 3
    assert not all(map(torch.equal, weights["FedAdam", True].values(), weights["FedMedian", True].values()))
