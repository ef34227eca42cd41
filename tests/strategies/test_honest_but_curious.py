import random
import threading
from collections import defaultdict

import numpy as np
import pytest
import ray
import torch
from flwr.app import Array, Error, Message, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, FedMedian, FedProx, Strategy

from attacks.attack import AttackError
from attacks.observation import DefenceDisclosure, Observation, ThreatModel, UpdateId
from attacks.reconstruction_file import load_reconstruction
from fl_sim.draws import derive_seed
from fl_sim.network import LocalOptimizer
from fl_sim.wire import Recipe, dictated_draw
from strategies import honest_but_curious
from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from strategies.honest_but_curious import HonestButCurious
from strategies.registry import available, build_strategy
from tests.strategies.stub_federation import (
    GRADIENTS,
    NODES,
    WEIGHTS,
    StubGrid,
    client_of,
    initial_arrays,
    made_up_update,
    run,
)

FEDERATIONS = {
    "FedAvg": (FedAvg, WEIGHTS),
    "FedMedian": (FedMedian, WEIGHTS),
    "FedSGD": (lambda: FedSGD(FedAvg(), "adam", lr=0.01), GRADIENTS),
}


class Notes:
    """A sink that remembers, or breaks at every observation."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.seen: dict[tuple[int, int], Observation] = {}
        self.reasons: dict[tuple[int, int], str] = {}
        self.calls: list[str] = []

    def observe(self, observation: Observation) -> None:
        if self.broken:
            raise OSError("disk full")
        self.seen[observation.circumstances.round, observation.circumstances.client] = observation

    def failed(self, update_id: UpdateId, reason: str) -> None:
        self.reasons[update_id.round, update_id.client] = reason

    def drain(self) -> None:
        self.calls.append("drain")

    def close(self) -> None:
        self.calls.append("close")


def random_states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("broken", [False, True], ids=["", "broken-sink"])
@pytest.mark.parametrize(("make", "recipe"), FEDERATIONS.values(), ids=FEDERATIONS.keys())
def test_the_federation_is_the_same_with_and_without(make, recipe, broken):
    plain, plain_result = run(make(), recipe)
    plain_states = random_states()
    notes = Notes(broken)
    watched, watched_result = run(HonestButCurious(make(), sink=notes), recipe)
    assert watched == plain
    assert len(set(plain)) == 4, "every round moves the weights"
    assert watched_result.train_metrics_clientapp == plain_result.train_metrics_clientapp
    assert watched_result.evaluate_metrics_clientapp == plain_result.evaluate_metrics_clientapp
    assert random_states() == plain_states
    assert len(notes.reasons if broken else notes.seen) == 3 * len(NODES)


@pytest.mark.parametrize(("make", "recipe"), FEDERATIONS.values(), ids=FEDERATIONS.keys())
def test_every_client_is_observed_as_it_replied(make: type[Strategy], recipe: Recipe):
    notes = Notes()
    run(HonestButCurious(make(), sink=notes), recipe, rounds=1)
    sent = initial_arrays()
    for client, node in enumerate(NODES):
        observation = notes.seen[1, client]
        replied = made_up_update(sent, node, 1, recipe.update)
        for name, weight in sent.to_torch_state_dict().items():
            expected = replied[name] if recipe.update == "gradient" else replied[name] - weight
            assert torch.equal(observation.weights[name], weight)
            assert torch.equal(observation.update[name], expected)
        assert observation.circumstances.num_examples == 1 + node % 3
        assert observation.threat is ThreatModel.PRIVATE
        assert observation.circumstances.local_optimizer == recipe.optimizer


def test_in_the_known_threat_model_the_dictated_draws_are_observed():
    recipe = GRADIENTS.model_copy(update={"noise_seed": 11, "batch_size": 2})
    notes = Notes()
    run(HonestButCurious(FedAvg(), sink=notes), recipe, rounds=2)
    noise, timesteps = dictated_draw(recipe, client=3, server_round=2)
    assert torch.equal(notes.seen[2, 3].noise, noise)
    assert torch.equal(notes.seen[2, 3].timesteps, timesteps)
    assert noise.shape == (2, 3, 8, 8)
    assert not torch.equal(noise, dictated_draw(recipe, client=3, server_round=1)[0])
    assert not torch.equal(noise, dictated_draw(recipe, client=2, server_round=2)[0])


def test_what_a_strategy_tells_the_clients_to_do_is_known_to_the_attacker():
    notes = Notes()
    run(HonestButCurious(FedProx(proximal_mu=0.25), sink=notes), WEIGHTS, rounds=1)
    assert notes.seen[1, 0].circumstances.local_optimizer == LocalOptimizer(lr=0.01, proximal_mu=0.25)
    private = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.5, clipping_norm=2.0, num_sampled_clients=4)
    run(HonestButCurious(private, sink=notes), WEIGHTS, rounds=1)
    assert notes.seen[1, 0].circumstances.defence == DefenceDisclosure(clip_norm=2.0)


@pytest.mark.parametrize("recipe", [GRADIENTS, WEIGHTS], ids=["gradient", "weights"])
def test_how_clients_train_is_known_to_the_attacker(recipe: Recipe):
    loss = {"min_snr_gamma": 5.0, "noise_offset": 0.1}
    training = {"ema_decay": 0.9, "dtype": "bfloat16"}
    notes = Notes()
    accumulated = {"batch_size": 4, "gradient_accumulation": 2, "horizontal_flip": True}
    run(
        HonestButCurious(FedAvg(), sink=notes),
        recipe.model_copy(update=training | accumulated | {"task": recipe.task.model_copy(update=loss)}),
        rounds=1,
    )
    seen = notes.seen[1, 0].circumstances.model_dump()
    expected = loss | training | {"batch_size": 4} | ({"ema_decay": None} if recipe is GRADIENTS else {})
    assert {key: seen[key] for key in expected} == expected


def test_steps_and_learning_rate_are_those_of_the_client_and_the_round():
    notes = Notes()
    recipe = WEIGHTS.model_copy(update={"epochs": 2, "lr_schedule": "linear", "rounds": 2, "noise_seed": 3})
    run(HonestButCurious(FedAvg(), sink=notes), recipe, rounds=2)
    for client, node in enumerate(NODES):
        observation = notes.seen[2, client]
        steps = 1 + node % 3  # what it says that it drew, one image a step
        assert observation.circumstances.local_steps == len(observation.timesteps) == steps
        assert observation.circumstances.local_optimizer == LocalOptimizer(lr=0.005)
        assert notes.seen[1, client].circumstances.local_optimizer == LocalOptimizer(lr=0.01)


def test_a_sum_over_clients_that_took_different_numbers_of_steps_is_not_observed():
    notes = Notes()
    recipe = WEIGHTS.model_copy(update={"epochs": 2})
    run(HonestButCurious(FedAvg(), sink=notes, sum_only=True), recipe, rounds=1)
    assert not notes.seen
    assert "its own number of steps" in notes.reasons[1, -1]


@pytest.mark.parametrize(("make", "recipe"), FEDERATIONS.values(), ids=FEDERATIONS.keys())
def test_where_clients_aggregate_securely_their_sum_is_observed_and_nothing_else(make, recipe):
    plain, _ = run(make(), recipe, rounds=2)
    notes = Notes()
    watched, _ = run(HonestButCurious(make(), sum_only=True, sink=notes), recipe, rounds=2)
    assert watched == plain
    assert list(notes.seen) == [(1, -1), (2, -1)]
    observation, sent = notes.seen[1, -1], initial_arrays()
    circumstances = observation.circumstances
    assert circumstances.num_clients == len(NODES)
    assert circumstances.num_examples == sum(1 + node % 3 for node in NODES)
    for name, weight in sent.to_torch_state_dict().items():
        before = 0.0 if recipe.update == "gradient" else weight
        replies = [made_up_update(sent, node, 1, recipe.update)[name] - before for node in NODES]
        torch.testing.assert_close(observation.update[name], sum(replies))


def test_a_sum_is_of_those_that_answered_and_its_dictated_draws_come_client_after_client():
    recipe = GRADIENTS.model_copy(update={"noise_seed": 11})
    honest, notes = client_of("gradient"), Notes()

    def answer(message: Message, node: int, server_round: int) -> RecordDict | Error:
        return Error(0, "ill") if node == NODES[1] else honest(message, node, server_round)

    run(HonestButCurious(FedAvg(), sum_only=True, sink=notes), recipe, answer, rounds=1)
    observation = notes.seen[1, -1]
    draws = [dictated_draw(recipe, client, 1) for client in (0, 2, 3)]
    assert torch.equal(observation.noise, torch.cat([noise for noise, _ in draws]))
    assert torch.equal(observation.timesteps, torch.cat([timesteps for _, timesteps in draws]))


def test_a_sum_that_cannot_be_observed_is_reported_once():
    honest, notes = client_of("gradient"), Notes()

    def answer(message: Message, node: int, server_round: int) -> RecordDict:
        reply = honest(message, node, server_round)
        if node == NODES[1]:
            arrays = next(iter(reply.array_records.values()))
            name = next(iter(arrays))
            arrays[name] = Array(np.full(arrays[name].shape, np.nan, dtype=np.float32))
        return reply

    run(HonestButCurious(FedAvg(), sum_only=True, sink=notes), GRADIENTS, answer, rounds=1)
    assert not notes.seen
    assert list(notes.reasons) == [(1, -1)]
    assert "NaN" in notes.reasons[1, -1]


def test_weights_that_came_back_as_they_were_sent_are_not_observed():
    honest, notes = client_of("weights"), Notes()

    def answer(message: Message, node: int, server_round: int) -> RecordDict:
        reply = honest(message, node, server_round)
        sent, arrays = (next(iter(content.array_records.values())) for content in (message.content, reply))
        arrays["conv_in.weight"] = sent["conv_in.weight"]
        return reply

    run(HonestButCurious(FedAvg(), sink=notes), WEIGHTS, answer, rounds=1)
    assert set(initial_arrays()) - set(notes.seen[1, 0].update) == {"conv_in.weight"}


def test_what_the_attacker_knows_of_a_defence_is_in_every_observation():
    notes, defence = Notes(), DefenceDisclosure(noise_std=0.5)
    run(HonestButCurious(FedAvg(), defence=defence, sink=notes), WEIGHTS, rounds=1)
    assert {seen.circumstances.defence for seen in notes.seen.values()} == {defence}


def test_the_private_threat_model_dictates_nothing():
    with pytest.raises(ValueError, match="no noise_seed"):
        dictated_draw(GRADIENTS, client=0, server_round=1)


def test_replies_without_a_partition_are_numbered_by_node_id():
    stated = client_of("gradient")

    def silent(message: Message, node: int, server_round: int) -> RecordDict:
        reply = stated(message, node, server_round)
        del reply["client"]
        return reply

    notes = Notes()
    run(HonestButCurious(FedAvg(), sink=notes), GRADIENTS, silent, rounds=1)
    sent = initial_arrays()
    for client, node in enumerate(sorted(NODES)):
        expected = made_up_update(sent, node, 1, "gradient")
        assert all(torch.equal(notes.seen[1, client].update[name], value) for name, value in expected.items())


def test_replies_that_cannot_be_observed_are_reported_and_the_round_goes_on():
    honest = client_of("gradient")

    def client(message: Message, node: int, server_round: int) -> RecordDict | Error:
        if node == NODES[0]:
            return Error(1, "out of memory")
        reply = honest(message, node, server_round)
        if node == NODES[1]:
            arrays = reply.array_records["arrays"].to_torch_state_dict()
            reply["arrays"] = type(reply.array_records["arrays"])({n: v * torch.nan for n, v in arrays.items()})
        return reply

    notes = Notes()
    _, result = run(HonestButCurious(FedAvg(), sink=notes), GRADIENTS, client, rounds=1)
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx(0.5)
    assert sorted(notes.seen) == [(1, 2), (1, 3)]
    assert list(notes.reasons) == [(1, 1)]
    assert "NaN" in notes.reasons[1, 1]


def test_a_recipe_may_be_given_instead_of_sent():
    notes = Notes()
    strategy = HonestButCurious(FedAvg(), sink=notes, recipe=GRADIENTS)
    strategy.start(StubGrid(client_of("gradient")), initial_arrays(), num_rounds=1)
    assert sorted(notes.seen) == [(1, client) for client in range(len(NODES))]


def test_without_a_recipe_nothing_is_trained_and_the_sink_is_closed():
    notes = Notes()
    strategy = HonestButCurious(FedAvg(), sink=notes)
    with pytest.raises(StrategyError, match="pass recipe="):
        strategy.start(StubGrid(client_of("gradient")), initial_arrays())
    assert notes.calls == ["close"]


def test_the_attacks_are_awaited_before_start_returns():
    notes = Notes()
    run(HonestButCurious(FedAvg(), sink=notes), GRADIENTS, rounds=1)
    assert notes.calls == ["drain", "close"]


def test_rounds_do_not_wait_for_observing():
    honest, second_round = client_of("gradient"), threading.Event()

    def client(message: Message, node: int, server_round: int) -> RecordDict:
        if server_round == 2:
            second_round.set()
        return honest(message, node, server_round)

    class Slow(Notes):
        def observe(self, observation: Observation) -> None:
            assert second_round.wait(timeout=10)
            super().observe(observation)

    notes = Slow()
    run(HonestButCurious(FedAvg(), sink=notes), GRADIENTS, client, rounds=2)
    assert notes.reasons == {}
    assert len(notes.seen) == 2 * len(NODES)


def test_a_federation_that_breaks_has_been_observed_up_to_then():
    class Breaking(FedAvg):
        def aggregate_train(self, server_round: int, replies):
            if server_round == 2:
                raise RuntimeError("out of memory")
            return super().aggregate_train(server_round, replies)

    notes = Notes()
    with pytest.raises(RuntimeError, match="out of memory"):
        run(HonestButCurious(Breaking(), sink=notes), GRADIENTS, rounds=3)
    assert {server_round for server_round, _ in notes.seen} == {1, 2}
    assert len(notes.seen) == 2 * len(NODES)
    assert notes.calls == ["close"]


def test_a_sink_that_cannot_even_take_note_ends_the_run_after_its_last_round():
    rounds = []

    class Full(Notes):
        def failed(self, update_id: UpdateId, reason: str) -> None:
            raise OSError("disk full")

    class Counting(FedAvg):
        def aggregate_train(self, server_round: int, replies):
            rounds.append(server_round)
            return super().aggregate_train(server_round, replies)

    notes = Full(broken=True)
    with pytest.raises(OSError, match="disk full"):
        run(HonestButCurious(Counting(), sink=notes), GRADIENTS, rounds=3)
    assert rounds == [1, 2, 3]
    assert notes.calls == ["close"]


def test_dictated_clipping_holds_beside_what_is_known_of_a_defence():
    notes = Notes()
    told = DefenceDisclosure(noise_std=0.1)
    strategy = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), noise_multiplier=0.1, clipping_norm=0.5, num_sampled_clients=len(NODES)
    )
    run(HonestButCurious(strategy, defence=told, sink=notes), WEIGHTS, rounds=1)
    assert {seen.circumstances.defence for seen in notes.seen.values()} == {
        DefenceDisclosure(noise_std=0.1, clip_norm=0.5)
    }


class OwnRounds(FedAvg):
    def start(self, *_, **__):
        raise NotImplementedError


@pytest.mark.parametrize("strategy", [OwnRounds(), FedSGD(OwnRounds())], ids=["alone", "wrapped"])
def test_rounds_of_its_own_are_not_replaced_behind_a_strategys_back(strategy):
    with pytest.raises(StrategyError, match=r"^strategy = 'OwnRounds': has a start of its own"):
        HonestButCurious(strategy, sink=Notes())


@pytest.mark.parametrize("name", available())
def test_of_flowers_strategies_none_is_refused(name):
    needed = {"client_learning_rate": 0.1, "noise_multiplier": 0.0, "clipping_norm": 1.0, "num_sampled_clients": 2}
    HonestButCurious(build_strategy(name, offers=needed), sink=Notes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "^workers = 0: must be at least 1"),
        ({"attacks": {"gidm": {"recipe": "x"}}}, "^attack 'gidm': recipe = 'x': "),
        ({"attacks": ["residual"]}, "^directory = .*: already holds captures"),
    ],
)
def test_mistakes_are_named_as_they_were_made(tmp_path, arguments, message):
    (tmp_path / "captures").mkdir()
    (tmp_path / "captures" / "an-old-one").touch()
    directory = tmp_path if arguments == {"attacks": ["residual"]} else tmp_path / "new"
    with pytest.raises(ValueError, match=message):
        HonestButCurious(FedAvg(), **arguments, directory=directory)


def test_an_unknown_attack_is_refused_at_once(tmp_path):
    with pytest.raises(AttackError, match="attack 'residul': unknown"):
        HonestButCurious(FedAvg(), attacks=["residul"], directory=tmp_path)


@pytest.mark.ray
def test_with_its_own_workers_every_client_of_every_round_is_attacked(tmp_path):
    attacks = ["tests.attacks.toy_attacks:Guess", "tests.attacks.toy_attacks:Fail"]
    strategy = HonestButCurious(FedMedian(), attacks, workers=1, seed=9, directory=tmp_path)
    try:
        run(strategy, WEIGHTS, rounds=2)
    finally:
        ray.shutdown()
    found = defaultdict(set)
    for file in tmp_path.rglob("*.*"):
        found[file.parent.name].add(file.name)
    stems = {f"round-{r:04d}-client-{c:04d}" for r in (1, 2) for c in range(len(NODES))}
    assert found["captures"] == {f"{stem}.safetensors" for stem in stems}
    assert found["reconstructions"] == {f"{stem}-guess.safetensors" for stem in stems}
    one = load_reconstruction(tmp_path / "reconstructions" / "round-0002-client-0003-guess.safetensors")
    assert one.seed == derive_seed(9, "attack", "guess", 2, 3)


def test_replies_that_leave_out_different_parameters_have_no_sum():
    whole = {"a": torch.ones(2), "b": torch.ones(2)}
    for updates in ([whole, {"a": torch.ones(2)}], [{"a": torch.ones(2)}, whole]):
        with pytest.raises(StrategyError, match="do not hold the same parameters: b is in some"):
            honest_but_curious._sum(updates, GRADIENTS)
