"""The error of this room."""


class StrategyError(ValueError):
    """A strategy that does not exist, has wrong arguments or does not fit another; the message is one line."""
