"""The DDIM sampler (Song et al. 2020, arXiv 2010.02502): a deterministic map from latents to images."""

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from fl_sim.diffusion.network import predict
from fl_sim.diffusion.prediction import determines_x0


class DDIMSampler:
    """G(z), the images that a network makes of latents z ~ N(0, I) (arXiv 2010.02502, eq. 12 with sigma = 0).

    It takes ``steps`` evenly spaced timesteps of the schedule, at most T, and leaves out those at which x_t and target
    do not determine the image (``determines_x0``). ``clip``: x0 is clipped to [-1, 1] in every step. ``labels`` int64
    [N]: the classes of the images, where the network takes them.
    """

    def __init__(
        self, model: nn.Module, scheduler: DDPMScheduler, steps: int, *, clip: bool, labels: Tensor | None = None
    ) -> None:
        self.model = model
        self.labels = labels
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
        """Images [N,C,H,W] for latents [N,C,H,W]; differentiable in them."""
        x_t = latents
        for timestep in self.timesteps:
            at = timestep.to(x_t.device).expand(len(x_t))
            prediction = predict(self.model, x_t, at, self.labels)
            x_t = self._scheduler.step(prediction, timestep, x_t, return_dict=False)[0]
        return x_t
