"""The embedder: the joint text/audio encoder that conditions each track."""

from mgeldm.embedder.base import Embedder, EmbedderSpec
from mgeldm.embedder.clap import ClapEmbedder
from mgeldm.embedder.dual import DualConfig, DualEncoder
from mgeldm.embedder.loading import DEFAULT_EMBEDDER, load_embedder

__all__ = ["DEFAULT_EMBEDDER", "ClapEmbedder", "DualConfig", "DualEncoder", "Embedder", "EmbedderSpec", "load_embedder"]
