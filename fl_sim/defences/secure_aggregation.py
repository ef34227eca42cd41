"""Secure aggregation (Bonawitz et al. 2017, ACM CCS), modelled by what the server sees of it."""

from typing import ClassVar

from fl_sim.defences.defence import Defence


class SecureAggregation(Defence):
    """The server sees only the sum of a round's updates.

    The protocol masks each update, and the masks cancel in the sum. So clients train and the server aggregates as
    without it, and only what the server sees is different. That alone is modelled: no update is masked here.
    """

    name: ClassVar[str] = "secure-aggregation"
    sum_only: ClassVar[bool] = True
