"""Tests compute on little tensors, where torch's threads mostly wait for one another."""

import torch

torch.set_num_threads(1)
