"""The guard against steps that would ruin the weights: those that are not finite, and sudden leaps of the gradient."""

import logging
import math
from dataclasses import dataclass

from manifests.errors import ConfigError

logger = logging.getLogger(__name__)

DIVERGED = "training has diverged; begin anew, in a new --out, with a lower learning rate or a longer warm-up"
LEARNED = 100
"""Steps until the usual norm is known well enough to call one a spike."""
_DECAY = 0.99


@dataclass(slots=True)
class Guard:
    """Decides of each step whether the weights take it in, and ends a run that has only steps that they must not."""

    spike: float
    """A gradient norm of so many times the usual one is a spike; 0 lets every finite one pass."""
    patience: int
    """The run ends after so many skipped steps in a row."""
    usual: float = 0.0
    """Moving mean of the norms that passed."""
    passed: int = 0
    skipped: int = 0
    """Steps that were skipped, in all."""
    in_a_row: int = 0
    _last: str = ""
    """What the last skipped step was like."""

    def passes(self, step: int, loss: float, norm: float) -> bool:
        """Whether the weights may take the step in."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        leap = bool(self.spike) and self.passed >= LEARNED and norm > self.spike * self.usual
        if finite and not leap:
            # A plain mean at first, so that the beginning is forgotten in time.
            share = max(1 - _DECAY, 1 / (self.passed + 1))
            self.usual += share * (norm - self.usual)
            self.passed += 1
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        usual = f", usually about {self.usual:.3g}" if self.passed else ""
        self._last = f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}{usual}"
        logger.warning("%s; it is skipped", self._last)
        return False

    def check(self) -> None:
        """End a run that gets nowhere. Raises ConfigError when too many steps in a row did not pass."""
        if self.in_a_row >= self.patience:
            raise ConfigError(f"{self._last}; {self.in_a_row} steps in a row were skipped: {DIVERGED}")

    def state_dict(self) -> dict[str, float]:
        """Everything to go on from."""
        return {key: getattr(self, key) for key in ("usual", "passed", "skipped", "in_a_row")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a saved state."""
        self.usual = float(state["usual"])
        self.passed, self.skipped, self.in_a_row = (int(state[key]) for key in ("passed", "skipped", "in_a_row"))
