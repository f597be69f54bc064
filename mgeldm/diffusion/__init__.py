"""The diffusion process: schedule, per-track timesteps and training objective."""

from mgeldm.diffusion.objective import track_losses, v_loss
from mgeldm.diffusion.schedule import TAU_MIN, alpha, beta, corrupt, eps_from_v, v_target, x0_from_v
from mgeldm.diffusion.timesteps import TimestepPatterns

__all__ = [
    "TAU_MIN",
    "TimestepPatterns",
    "alpha",
    "beta",
    "corrupt",
    "eps_from_v",
    "track_losses",
    "v_loss",
    "v_target",
    "x0_from_v",
]
