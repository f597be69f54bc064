"""How encode is configured, and what makes one encoder another."""

import math
from dataclasses import dataclass
from typing import Literal

from manifests.atomic import content_hash
from manifests.errors import ConfigError
from manifests.shards import SAMPLE_VERSION
from mgeldm.codec import Codec
from mgeldm.embedder import Embedder

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """How windows become latents and embeddings."""

    codec: str = "default"
    """Folder or hub id of a codec, or "default" for the one shipped with the package."""
    embedder: str = "default"
    """Folder or hub id of an embedder, or "default"."""
    embed_hop_s: float = 1.28
    """Distance of the audio embeddings within a window."""
    prompt_template: str = "the sound of {}"
    """Text embeddings are of this, with the split's text in place of {}."""
    windows_per_shard: int = 256
    """A shard takes whole songs until it holds this many windows."""
    batch: int = 16
    """Most signals in one forward of the codec on a GPU; halved where memory runs out. A CPU takes one on each core."""
    precision: Precision = "fp32"
    """Arithmetic of codec and embedder (autocast). Another precision is another encoder: it makes other shards."""
    compile: bool = False
    """Compile the codec (torch.compile): a minute at the start of each worker, then faster forwards."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    retry_failed: bool = False
    """Encode units with failures again, though their shards are sealed."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.embed_hop_s) and self.embed_hop_s > 0):
            raise ConfigError(f"embed_hop_s {self.embed_hop_s} must be above 0")
        if self.windows_per_shard < 1 or self.batch < 1:
            raise ConfigError(f"windows_per_shard {self.windows_per_shard} and batch {self.batch} must be at least 1")
        if "{}" not in self.prompt_template:
            raise ConfigError(f"prompt_template {self.prompt_template!r} has no {{}} where the text goes")

    def prompt(self, text: str) -> str:
        """What the embedder reads for a text of a split."""
        return self.prompt_template.replace("{}", text)


def encoder_identity(config: EncodeConfig, codec: Codec, embedder: Embedder) -> str:
    """Hash over all that decides what a sample holds, apart from the plan and the audio."""
    decides = {
        "sample": SAMPLE_VERSION,
        "codec": codec.identity,
        "embedder": embedder.identity,
        "embed_hop_s": config.embed_hop_s,
    }
    return content_hash(decides if config.precision == "fp32" else decides | {"precision": config.precision})
