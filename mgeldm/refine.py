"""Refining what was extracted with what is known of it: the mix. Off unless asked for."""

import torch
from torch import Tensor

from mgeldm.piecewise import Piecewise

FFT, HOP = 2048, 512
PIECE_FRAMES = 256


def wiener(mix: Tensor, source: Tensor, submix: Tensor) -> tuple[Tensor, Tensor]:
    """Source and submix as shares of the mix's spectrogram: a soft mask of the powers of the two estimates.

    Phases and fine detail come from the mix; what neither estimate holds is shared equally.

    Args:
        mix: ``[channels, T]``.
        source: Estimate, the same shape.
        submix: Estimate, the same shape.

    Returns:
        Source and submix; their sum is the mix.
    """
    window = torch.hann_window(FFT, dtype=mix.dtype, device=mix.device)

    def spectrum(wave: Tensor) -> Tensor:
        # Zeros beyond the ends, so that there is no shortest length.
        return torch.stft(wave, FFT, HOP, window=window, pad_mode="constant", return_complex=True)

    a, b = (spectrum(wave).abs().square() + 1e-12 for wave in (source, submix))
    masked = spectrum(mix) * (a / (a + b))
    refined = torch.istft(masked, FFT, HOP, window=window, length=mix.shape[-1])
    return refined, mix - refined


def consistent(mix: Tensor, source: Tensor, submix: Tensor) -> tuple[Tensor, Tensor]:
    """Source and submix that add up to the mix: what is missing is shared equally. All ``[channels, T]``."""
    shifted = source + (mix - source - submix) / 2
    return shifted, mix - shifted


def refining(wanted: str, make_consistent: bool) -> Piecewise | None:
    """A stream of mix, source and submix ``[3, channels, n]`` to refined source and submix ``[2, channels, n]``.

    None where nothing is asked for.
    """
    if wanted == "none" and not make_consistent:
        return None
    function = wiener if wanted == "wiener" else consistent  # masks that add up to 1 are consistent by themselves
    return Piecewise(
        lambda tracks: torch.stack(function(*tracks)),
        unit_in=HOP,
        unit_out=HOP,
        # A spectrum that is cut by an end of its piece has a part in FFT samples.
        context=FFT // HOP if wanted == "wiener" else 0,
        chunk=PIECE_FRAMES,
    )
