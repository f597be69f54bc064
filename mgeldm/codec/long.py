"""Encoding and decoding signals of any length in bounded memory."""

import torch

from mgeldm.codec.base import Codec

CHUNK_FRAMES = 128


@torch.inference_mode()
def encode_long(codec: Codec, wave: torch.Tensor) -> torch.Tensor:
    """Whole signal ``[channels, T]`` -> latents ``[C, ceil(T / hop)]``, chunk by chunk with the codec's context.

    Beyond the ends the codec hears silence.
    """
    spec = codec.spec
    hop, context = spec.hop, spec.context // spec.hop
    frames = max(1, -(-wave.shape[-1] // hop))
    padded = torch.nn.functional.pad(wave, (spec.context, spec.context + frames * hop - wave.shape[-1]))
    parts = []
    for begin in range(0, frames, CHUNK_FRAMES):
        count = min(CHUNK_FRAMES, frames - begin)
        chunk = padded[:, begin * hop : (begin + count + 2 * context) * hop]
        parts.append(codec.encode(chunk[None])[0, :, context : context + count])
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def decode_long(codec: Codec, latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[C, L]`` -> ``[channels, L * hop]``, chunk by chunk with context on both sides."""
    hop, context = codec.spec.hop, codec.spec.decode_context // codec.spec.hop
    parts = []
    for begin in range(0, latents.shape[-1], CHUNK_FRAMES):
        end = min(begin + CHUNK_FRAMES, latents.shape[-1])
        low, high = max(0, begin - context), min(latents.shape[-1], end + context)
        wave = codec.decode(latents[None, :, low:high])[0]
        parts.append(wave[:, (begin - low) * hop : (end - low) * hop])
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def silence_latent(codec: Codec) -> torch.Tensor:
    """The codec's answer to digital silence away from edges, ``[C]``, on the CPU."""
    spec = codec.spec
    frames = 2 * (spec.context // spec.hop) + 1
    device = next(codec.parameters()).device if isinstance(codec, torch.nn.Module) else torch.device("cpu")
    latents = codec.encode(torch.zeros(1, spec.channels, frames * spec.hop, device=device))
    return latents[0, :, frames // 2].float().cpu()
