"""The joint three-track diffusion transformer."""

from mgeldm.model.config import PRESETS, JointConfig, official_config
from mgeldm.model.transformer import JointTransformer

__all__ = ["PRESETS", "JointConfig", "JointTransformer", "official_config"]
