"""Errors of the strategies."""

from fl_sim.errors import UserError


class StrategyError(UserError):
    """A strategy that does not exist, has wrong arguments or does not fit another."""


class ArgumentError(StrategyError):
    """An argument that cannot be used: its name, then ``text``, the value and what is allowed.

    Code that took the argument from elsewhere, such as a file of settings, can put another name before ``text``.
    """

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(f"{argument} {text}")
        self.argument, self.text = argument, text
