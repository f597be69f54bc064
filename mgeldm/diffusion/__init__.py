"""The diffusion process: how latents are noised, per-track timesteps and the training objective."""

from mgeldm.diffusion.conditions import training_conditions
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
    "training_conditions",
    "v_loss",
]
