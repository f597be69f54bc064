"""Encoding and decoding signals of any length in bounded memory, at once or as they come."""

import torch

from mgeldm.codec.base import Codec
from mgeldm.piecewise import Piecewise

CHUNK_FRAMES = 128


def encoding(codec: Codec) -> Piecewise:
    """Takes blocks of a signal ``[channels, n]``, gives latents ``[C, frames]``; beyond the ends is silence."""
    spec = codec.spec
    return Piecewise(
        lambda wave: codec.encode(wave[None])[0],
        unit_in=spec.hop,
        unit_out=1,
        context=spec.context // spec.hop,
        chunk=CHUNK_FRAMES,
        in_silence=True,
    )


def decoding(codec: Codec) -> Piecewise:
    """Takes latents ``[C, n]``, gives waves ``[channels, frames * hop]``."""
    spec = codec.spec
    return Piecewise(
        lambda latents: codec.decode(latents[None])[0],
        unit_in=1,
        unit_out=spec.hop,
        context=spec.decode_context // spec.hop,
        chunk=CHUNK_FRAMES,
    )


@torch.inference_mode()
def encode_long(codec: Codec, wave: torch.Tensor) -> torch.Tensor:
    """Whole signal ``[channels, T]``, T > 0 -> latents ``[C, ceil(T / hop)]``, chunk by chunk with the codec's context.

    Beyond the ends the codec hears silence.
    """
    return _whole(encoding(codec), wave)


@torch.inference_mode()
def decode_long(codec: Codec, latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[C, L]``, L > 0 -> ``[channels, L * hop]``, chunk by chunk with context on both sides."""
    return _whole(decoding(codec), latents)


@torch.inference_mode()
def silence_latent(codec: Codec) -> torch.Tensor:
    """The codec's answer to digital silence away from edges, ``[C]``, on the CPU."""
    spec = codec.spec
    frames = 2 * (spec.context // spec.hop) + 1
    device = next(codec.parameters()).device if isinstance(codec, torch.nn.Module) else torch.device("cpu")
    latents = codec.encode(torch.zeros(1, spec.channels, frames * spec.hop, device=device))
    return latents[0, :, frames // 2].float().cpu()


def _whole(pieces: Piecewise, signal: torch.Tensor) -> torch.Tensor:
    return torch.cat([*pieces.push(signal), *pieces.finish()], dim=-1)
