"""Finding an embedder: the one shipped with the package, or a folder."""

from functools import lru_cache
from pathlib import Path

from mgeldm.embedder.dual import DualEncoder

DEFAULT_EMBEDDER = "default"
_SHIPPED = Path(__file__).parent / "labels-16k"


@lru_cache(maxsize=2)
def load_embedder(name: str = DEFAULT_EMBEDDER) -> DualEncoder:
    """The embedder at the folder ``name``, or the shipped one for "default". Raises CheckpointError."""
    return DualEncoder.load(_SHIPPED if name == DEFAULT_EMBEDDER else Path(name))
