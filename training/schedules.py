"""The course of the learning rate: a factor on its peak for each step, counted from 0."""

import math
from typing import Literal

Schedule = Literal["inverse_sqrt", "cosine", "wsd"]


def factor(schedule: Schedule, step: int, *, warmup: int, steps: int, decay_share: float) -> float:
    """Factor on the peak: linear up to 1 over ``warmup`` steps, then as the schedule says.

    "inverse_sqrt" (the paper) is ``sqrt(warmup / step)`` and knows no end; "cosine" falls to 0 at ``steps`` along half
    a wave; "wsd" (warm-up, stable, decay) stays at 1 and falls to 0 over the last ``decay_share`` of the steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "inverse_sqrt":
        return math.sqrt(warmup / (step + 1))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    return min(1.0, max(0.0, (steps - step) / max(1.0, decay_share * steps)))


def needs_end(schedule: Schedule) -> bool:
    """Whether the number of steps decides the rate before the end."""
    return schedule != "inverse_sqrt"
