"""Secure aggregation (Bonawitz et al. 2017, ACM CCS), as what it leaves the server to see."""

from typing import ClassVar

from fl_sim.defences.defence import Defence


class SecureAggregation(Defence):
    """The server sees the sum of a round's updates alone.

    The protocol's masks cancel in the sum, so that nothing but the view changes: the clients train and the server
    aggregates as without it. That is modelled here; no update is masked.
    """

    name: ClassVar[str] = "secure-aggregation"
    sum_only: ClassVar[bool] = True
