"""Networks: built from a configuration, their parameters, the optimiser that trains them.

Both tasks, diffusion and classification, stand on this package; it imports nothing of the project but
``fl_sim.errors`` and ``fl_sim.registry``. A configuration is a JSON table in the form of diffusers: ``_class_name``
names the network, the other keys are its arguments.
"""

from fl_sim.network.classifiers import CLASSIFIERS
from fl_sim.network.configuration import ConfigError
from fl_sim.network.ema import ema_decays, ema_shares
from fl_sim.network.factory import FACTORY, factory_path, trust, trusted
from fl_sim.network.local_optimizer import LocalOptimizer
from fl_sim.network.lora import LORA, LoRA, adapt
from fl_sim.network.network import (
    build_model,
    dropout_of,
    image_shape,
    in_channels,
    num_classes,
    outline,
    trainable_names,
)
from fl_sim.network.parameters import count_parameters, matching_names, misfit, trainable_parameters, weight_gradient
from fl_sim.network.safetensors_file import read_safetensors
from fl_sim.network.training_mode import set_training_mode
from fl_sim.network.training_task import TrainingTask
from fl_sim.network.unet import MODEL_CLASSES, unet_config

__all__ = [
    "CLASSIFIERS",
    "FACTORY",
    "LORA",
    "MODEL_CLASSES",
    "ConfigError",
    "LoRA",
    "LocalOptimizer",
    "TrainingTask",
    "adapt",
    "build_model",
    "count_parameters",
    "dropout_of",
    "ema_decays",
    "ema_shares",
    "factory_path",
    "image_shape",
    "in_channels",
    "matching_names",
    "misfit",
    "num_classes",
    "outline",
    "read_safetensors",
    "set_training_mode",
    "trainable_names",
    "trainable_parameters",
    "trust",
    "trusted",
    "unet_config",
    "weight_gradient",
]
