"""Finding a codec: the one shipped with the package, or a folder."""

from functools import lru_cache
from pathlib import Path

from mgeldm.codec.autoencoder import AutoencoderCodec

DEFAULT_CODEC = "default"
_SHIPPED = Path(__file__).parent / "oobleck-16k-mono"


@lru_cache(maxsize=2)
def load_codec(name: str = DEFAULT_CODEC) -> AutoencoderCodec:
    """The codec at the folder ``name``, or the shipped one for "default". Raises CheckpointError."""
    return AutoencoderCodec.load(_SHIPPED if name == DEFAULT_CODEC else Path(name))
