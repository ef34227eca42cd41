"""The DDIM sampler (Song et al. 2020, arXiv 2010.02502): a deterministic map from latents to images."""

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fl_sim.diffusion.network import predict
from fl_sim.diffusion.prediction import determines_x0


class DDIMSampler:
    """G(z), the images that a network makes of latents z ~ N(0, I) (arXiv 2010.02502, eq. 12 with sigma = 0).

    It takes ``steps`` evenly spaced timesteps of the schedule, at most T, and leaves out those at which x_t and target
    do not determine the image (``determines_x0``). ``clip``: x0 is clipped to [-1, 1] in every step. ``labels`` int64
    [N]: the classes of the images, where the network takes them. ``recompute``: a backward pass runs every step again
    in place of keeping what it computed (gradient checkpointing, arXiv 1604.06174), so that its memory is that of one
    step, for a forward pass more; the bits are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: DDPMScheduler,
        steps: int,
        *,
        clip: bool,
        labels: Tensor | None = None,
        recompute: bool = False,
    ) -> None:
        self.model = model
        self.labels = labels
        self.recompute = recompute
        self._scheduler = DDIMScheduler(
            num_train_timesteps=scheduler.config.num_train_timesteps,
            trained_betas=scheduler.betas.tolist(),
            prediction_type=scheduler.config.prediction_type,
            clip_sample=clip,
            timestep_spacing="trailing",
        )
        self._scheduler.set_timesteps(min(steps, scheduler.config.num_train_timesteps))
        self.timesteps = self._scheduler.timesteps[determines_x0(scheduler, self._scheduler.timesteps)]

    def __call__(self, latents: Tensor) -> Tensor:
        """Images [N,C,H,W] for latents [N,C,H,W]; differentiable in them and in the network's weights."""
        x_t = latents
        for timestep in self.timesteps:
            seen = x_t, timestep.to(x_t.device).expand(len(x_t)), self.labels
            if self.recompute:
                prediction = checkpoint(predict, self.model, *seen, use_reentrant=False)
            else:
                prediction = predict(self.model, *seen)
            x_t = self._scheduler.step(prediction, timestep, x_t, return_dict=False)[0]
        return x_t
