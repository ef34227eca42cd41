"""Benchmarks in this process, on tiny networks, with attacks that guess: everything around them is real."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from attacks.attack import Reconstruction
from attacks.observation import Observation
from attacks.registry import create
from attacks.trace import Trace
from experiments.bench import classification, labels, priors, timesteps, users
from experiments.bench.federations import UNDEFENDED
from experiments.bench.inversion import Scale
from experiments.bench.suites import MAIN, SUITES
from tests.attacks.model_inversion.conftest import TINY as INVERSION
from tests.attacks.toy_attacks import Guess
from tests.experiments.in_process import PoolInThisProcess, federation_in_process

CASES, LABEL_CASES = list(timesteps.cases())[:2], list(labels.cases())[:2]
MAIN_CASES = SUITES[MAIN][::8]
PRIOR_CASES = priors.SUITES["convnet"][:1]
USER_CASES = list(users.cases(quick=True))[:1]
CHEAP_USERS = replace(users.SHORT, prior_steps=1, evaluator_steps=2)
CELLS = list(classification.cells(quick=True))[:1]
CHEAP_INVERSIONS = Scale(1, 2, 2, 1, 2, {"diff-mi": INVERSION, "max-margin": {"iterations": 1}})
TINY = {"checkpoint": "none", "block_out_channels": [8, 16], "norm_num_groups": 4}


def _in_turn(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    return map(function, tasks)


def _guess(
    attack: str, arguments: dict[str, Any], seen: Observation, seed: int, device: str, trace: Trace | None = None
) -> Reconstruction:
    create(attack, arguments)
    return Guess().reconstruct(seen, seed, device)


@contextmanager
def quick_benchmarks() -> Iterator[None]:
    """The benchmarks that are started meanwhile take seconds."""
    bench = "experiments.bench"
    with ExitStack() as stack:
        stack.enter_context(patch(f"{bench}.benchmark.side_by_side", _in_turn))
        for place in ("attack_measurement", "classification", "federations", "priors", "users"):
            stack.enter_context(patch(f"{bench}.{place}.attempt", _guess))
        stack.enter_context(patch.dict(UNDEFENDED, model=TINY, utility={"samples": 2}))
        stack.enter_context(patch.dict(SUITES, {MAIN: MAIN_CASES}))
        stack.enter_context(patch(f"{bench}.timesteps.cases", lambda: iter(CASES)))
        stack.enter_context(patch(f"{bench}.labels.cases", lambda: iter(LABEL_CASES)))
        stack.enter_context(patch(f"{bench}.classification.cells", lambda _: iter(CELLS)))
        stack.enter_context(patch(f"{bench}.many_clients.run_federation", federation_in_process))
        stack.enter_context(patch(f"{bench}.many_clients.AttackPool", PoolInThisProcess))
        stack.enter_context(patch(f"{bench}.many_clients._ATTACK", "tests.attacks.toy_attacks:Guess"))
        stack.enter_context(patch(f"{bench}.many_clients._alive_actors", lambda: ["AttackWorker"]))
        stack.enter_context(patch(f"{bench}.many_clients._object_store_mb", lambda: 0.0))
        stack.enter_context(patch(f"{bench}.inversion.QUICK", CHEAP_INVERSIONS))
        stack.enter_context(patch.dict(f"{bench}.priors.SUITES", dict.fromkeys(priors.SUITES, PRIOR_CASES)))
        stack.enter_context(patch(f"{bench}.users.cases", lambda _: iter(USER_CASES)))
        stack.enter_context(patch(f"{bench}.users.SHORT", CHEAP_USERS))
        yield
