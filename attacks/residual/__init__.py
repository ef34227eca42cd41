"""The residual attack; its public import path is ``attacks.residual:Residual``."""

from attacks.residual.attack import Residual

__all__ = ["Residual"]
