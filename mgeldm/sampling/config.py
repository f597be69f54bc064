"""What a person may choose about sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from manifests.errors import ConfigError

Sampler = Literal["ddim", "dpm++2m", "heun"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "dpm++2m", "heun")

OVERLAP = 0.25
"""Share of the crop that the next chunk of long sound has in common with the last, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the model is sampled."""

    sampler: Sampler = "dpm++2m"
    """"ddim" (the paper), "dpm++2m" (second order at its cost) or "heun" (second order, two evaluations a step)."""
    steps: int = 30
    """Noise levels along the way (the paper: ddim with 250)."""
    guidance: float | tuple[float, ...] = 2.0
    """Scale of classifier-free guidance, or one for each track; 1 is none."""
    rescale: float = 0.0
    """Share, 0 to 1, by which guided velocities get back the spread they had without guidance (arXiv 2305.08891)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guide only at noise levels from the first to the second (arXiv 2404.07724)."""
    resample: int = 0
    """0: given tracks stay clean, each track having its own timestep. U from 1: RePaint instead, the paper's
    comparison (arXiv 2201.09865): one timestep for all, given tracks noised with the rest, each step taken U times."""
    overlap: float = OVERLAP
    """Share of the crop, 0 to less than 1, that each chunk of long sound has in common with the last: half of it is
    held as it was, and over the rest the last passes into the next. 0: chunks know nothing of one another, and those of
    one sound are sampled together."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler {self.sampler!r} is none of {', '.join(SAMPLERS)}")
        for name in ("steps", "seed", "resample"):
            if not isinstance(value := getattr(self, name), Integral):
                raise ConfigError(f"sampling {name} {value!r} must be a whole number")
        if not isinstance(self.guidance, Real | Sequence):
            raise ConfigError(f"guidance {self.guidance!r} must be a number of at least 0, or one for each track")
        for name, value in (("guidance", self.scales), ("rescale", [self.rescale]), ("overlap", [self.overlap])):
            if not all(isinstance(number, Real) for number in value):
                raise ConfigError(f"{name} {getattr(self, name)!r} must be made of numbers")
        if self.steps < 1 or self.seed < 0:
            raise ConfigError(f"sampling steps {self.steps} must be at least 1, and seed {self.seed} at least 0")
        if not self.scales or not all(0 <= scale < math.inf for scale in self.scales):
            raise ConfigError(f"guidance {self.guidance} must be a number of at least 0, or one for each track")
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"rescale {self.rescale} must lie in 0 .. 1")
        pair = isinstance(self.interval, Sequence) and len(self.interval) == 2
        if (
            not pair
            or not all(isinstance(level, Real) for level in self.interval)
            or not 0 <= self.interval[0] <= self.interval[1] <= 1
        ):
            raise ConfigError(f"guidance interval {self.interval} must be two levels, rising, in 0 .. 1")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap {self.overlap} must be a share of the crop: from 0 to less than 1")
        if self.resample < 0 or (self.resample and self.sampler != "ddim"):
            raise ConfigError(
                f"resample {self.resample} with {self.sampler}: it must be at least 0, and goes with sampler ddim only"
            )

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of guidance: one for all tracks, or one for each."""
        return tuple(self.guidance) if isinstance(self.guidance, Sequence) else (self.guidance,)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network, which is what sampling costs; a guided one counts once."""
        if self.sampler == "heun":
            return 2 * self.steps - 1  # the last step ends at level 0, where there is nothing to evaluate
        return self.steps * max(1, self.resample)
