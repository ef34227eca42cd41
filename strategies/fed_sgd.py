"""Federated SGD (McMahan et al. 2017, arXiv 1602.05629, section 2): clients send gradients, the server steps."""

import inspect
from collections.abc import Iterable, Mapping
from logging import INFO
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedProx,
    FedYogi,
    QFedAvg,
    Strategy,
)
from flwr.supercore import log
from torch import Tensor, nn

from fl_sim.errors import nearest, one_line
from strategies.errors import ArgumentError


class FedSGD(Strategy):
    """Wrapper that steps a torch optimiser with the gradient that an inner strategy combines.

    The inner strategy samples the clients and treats their gradients as it treats weights: FedAvg averages them,
    FedMedian, FedTrimmedAvg, Krum, MultiKrum and Bulyan combine them robustly. The optimiser keeps its state
    (momentum, moments) from round to round. Entries of the model without a gradient are passed on unchanged.

    Args:
        strategy: combines the replies as they are; it must not subtract the weights that were sent.
        optimizer: name of a ``torch.optim`` class, upper or lower case alike.
        lr: its learning rate.
        optimizer_args: its other arguments, such as ``{"momentum": 0.9}``.

    Raises:
        StrategyError: if ``strategy`` does more than combine what clients send, or torch refuses the optimiser or its
            arguments.
    """

    def __init__(
        self,
        strategy: Strategy,
        optimizer: str = "sgd",
        lr: float = 0.1,
        optimizer_args: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(strategy, _NOT_A_COMBINATION):
            raise ArgumentError(
                "strategy",
                f"= {type(strategy).__name__!r}: does not combine gradients as they are, which FedSGD needs; allowed: "
                "FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan and others like them",
            )
        self.strategy = strategy
        self._optimizer_class = _optimizer_class(optimizer)
        if not isinstance(optimizer_args, Mapping | None) or "lr" in (optimizer_args or {}):
            raise ArgumentError(
                "optimizer_args", f"= {optimizer_args!r}: allowed: a table, without lr, which is its own"
            )
        self._optimizer_args = {"lr": lr, **(optimizer_args or {})}
        self._refuse_unusable_optimizer(lr, optimizer_args or {})
        self._sent = ArrayRecord()
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, and remember the weights at which clients compute the next gradient."""
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the gradients with the inner strategy and return the full new model."""
        combined, metrics = self.strategy.aggregate_train(server_round, replies)
        if combined is None:
            return None, metrics
        return self._step(combined.to_torch_state_dict()), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from round to round: the optimiser's state, and its parameters by name."""
        if self._optimizer is None:
            return {}
        parameters = {name: value.detach() for name, value in self._parameters.items()}
        return {"parameters": parameters, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        if state:
            self._make_optimizer(state["parameters"]).load_state_dict(state["optimizer"])

    def summary(self) -> None:
        """Log the optimiser, then the inner strategy."""
        log(INFO, "\t├──> FedSGD: %s %s", self._optimizer_class.__name__, self._optimizer_args)
        self.strategy.summary()

    def _step(self, gradient: Mapping[str, Tensor]) -> ArrayRecord:
        weights = self._sent.to_torch_state_dict()
        optimizer = self._optimizer or self._make_optimizer(weights)
        for name, value in gradient.items():
            if name not in self._parameters or value.shape != self._parameters[name].shape:
                raise AggregationError(f"the gradient of {name!r} does not fit the model: shape {list(value.shape)}")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
                parameter.grad = gradient[name].to(parameter.dtype) if name in gradient else None
        optimizer.step()
        stepped = {name: Array(self._parameters[name].detach()) for name in gradient}
        return ArrayRecord({**self._sent, **stepped})

    def _make_optimizer(self, weights: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        self._parameters = {n: nn.Parameter(w.clone()) for n, w in weights.items() if w.is_floating_point()}
        self._optimizer = self._optimizer_class(self._parameters.values(), **self._optimizer_args)
        return self._optimizer

    def _refuse_unusable_optimizer(self, lr: float, optimizer_args: Mapping[str, Any]) -> None:
        """Step a throw-away parameter: torch checks some arguments, and whether it needs a closure, only in a step."""
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        name = self._optimizer_class.__name__
        tried: tuple[tuple[str, Any, dict[str, Any]], ...] = (
            ("optimizer", name, {}),
            ("lr", lr, {"lr": lr}),
            ("optimizer_args", dict(optimizer_args), self._optimizer_args),
        )
        for argument, value, arguments in tried:
            try:
                self._optimizer_class([parameter], **arguments).step()
            except (TypeError, ValueError, RuntimeError) as error:
                reason = one_line(error)
                raise ArgumentError(argument, f"= {value!r}: refused by torch.optim.{name}: {reason}") from error
            if not parameter.isfinite().all():
                raise ArgumentError(argument, f"= {value!r}: a step of torch.optim.{name} is not finite")


_NOT_A_COMBINATION = (
    FedAdagrad,
    FedAdam,
    FedYogi,
    FedAvgM,
    FedProx,
    QFedAvg,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedSGD,
)


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in classes:
        hint = nearest(name.lower(), classes)
        raise ArgumentError("optimizer", f"= {name!r}: torch.optim has {', '.join(sorted(classes))}{hint}")
    return classes[name.lower()]
