"""MGE-LDM: joint latent diffusion over mix, submix and source (Chae & Lee, arXiv 2505.23305)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgeldm.joint import MGELDM

__version__ = "0.1.0"
__all__ = ["MGELDM", "__version__"]


def __getattr__(name: str) -> Any:
    # torch is imported only when the model is asked for, so that `mgeldm --help` answers at once.
    if name == "MGELDM":
        from mgeldm.joint import MGELDM

        return MGELDM
    raise AttributeError(f"module 'mgeldm' has no attribute {name!r}")
