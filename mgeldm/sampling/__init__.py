"""Sampling: starting noise, guidance, solvers, and the inpainting that all tasks are."""

from mgeldm.sampling.config import OVERLAP, SAMPLERS, Sampler, SamplingConfig
from mgeldm.sampling.guidance import VelocityModel, guided_v
from mgeldm.sampling.inpainting import Progress, sample
from mgeldm.sampling.noise import noise_for

__all__ = [
    "OVERLAP",
    "SAMPLERS",
    "Progress",
    "Sampler",
    "SamplingConfig",
    "VelocityModel",
    "guided_v",
    "noise_for",
    "sample",
]
