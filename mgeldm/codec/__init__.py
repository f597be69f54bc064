"""The codec: the autoencoder between waveform and latents."""

from mgeldm.codec.autoencoder import AutoencoderCodec
from mgeldm.codec.base import Codec, CodecSpec
from mgeldm.codec.loading import DEFAULT_CODEC, load_codec

__all__ = ["DEFAULT_CODEC", "AutoencoderCodec", "Codec", "CodecSpec", "load_codec"]
