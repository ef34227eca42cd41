"""The timesteps behind an update, read off the gradients of the layers that see nothing else."""
