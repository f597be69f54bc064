"""The diffusion process: how latents are noised, per-track timesteps and the training objective."""

from mgeldm.diffusion.objective import track_losses, v_loss
from mgeldm.diffusion.schedule import PROCESSES, RECTIFIED_FLOW, TAU_MIN, Objective, Process, V
from mgeldm.diffusion.timesteps import SubsetPatterns, TimestepPatterns

__all__ = [
    "PROCESSES",
    "RECTIFIED_FLOW",
    "TAU_MIN",
    "Objective",
    "Process",
    "SubsetPatterns",
    "TimestepPatterns",
    "V",
    "track_losses",
    "v_loss",
]
