"""Defences by name: those built in, those of entry points ``fl_sim.defences``, or any by its dotted path."""

from fl_sim.config import SettingsError
from fl_sim.defences.defence import Defence
from fl_sim.registry import Registry

DEFENCES: Registry[Defence] = Registry(
    kind="defence",
    base=Defence,
    built_in={
        "none": "fl_sim.defences.defence:NoDefence",
        "clip-noise": "fl_sim.defences.clip_noise:ClipNoise",
        "dp-sgd": "fl_sim.defences.dp_sgd:DPSGD",
        "secure-aggregation": "fl_sim.defences.secure_aggregation:SecureAggregation",
        "signs": "fl_sim.defences.signs:Signs",
        "stochastic-quantisation": "fl_sim.defences.stochastic_quantisation:StochasticQuantisation",
        "top-k": "fl_sim.defences.top_k:TopK",
        "unshared-time-mlp": "fl_sim.defences.unshared_time_mlp:UnsharedTimeMLP",
    },
    group="fl_sim.defences",
    error=SettingsError,
)

create = DEFENCES.create
