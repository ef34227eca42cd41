"""How close a reconstruction is to its original, and which belongs to which.

Every metric takes two batches float [N,C,H,W] in [0, 1] and returns one value per pair, float64 [N]. Here are those
that much else is built on; all of them by name are in registry.py.
"""

from experiments.metrics.assignment import assign
from experiments.metrics.metric import Metric, MetricUnavailableError
from experiments.metrics.pixel_error import flat_psnr, mse, psnr

__all__ = ["Metric", "MetricUnavailableError", "assign", "flat_psnr", "mse", "psnr"]
