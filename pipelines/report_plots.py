"""What the report draws and plays: figures as inline SVG, recordings with a player, a spectrogram and their level.

Figures take their colours from the page, so that they suit light and dark. All bytes depend on the data alone.
"""

import base64
import hashlib
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import soundfile
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from manifests.errors import AudioError
from mgeldm import audio

Floats = npt.NDArray[np.float64]

EXCERPT_S = 60.0
"""At most this much of a recording is shown, so that a page about long songs can still be opened."""
MEL_BANDS = 96
DYNAMIC_RANGE_DB = 80.0
_TOP_HZ = 16000.0
_BLOCK = 1 << 18
_FLOOR_HZ = 30.0
_WINDOW_S = 0.05
_COLUMNS = 700
_CURVE_BINS = 400
_COLOURS = "magma"
# Stand-ins that the page's own colours replace.
_INK, _LINE, _ACCENT, _WARM = "#010203", "#020304", "#030405", "#040506"
_PAGE_COLOURS = {_INK: "var(--muted)", _LINE: "var(--line)", _ACCENT: "var(--accent)", _WARM: "var(--warm)"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mgeldm",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Spectrogram:
    """Power in mel bands over time."""

    decibels: Floats
    """``[MEL_BANDS, columns]``; a full-scale sine is near 0 dB; NaN where a band lies above the Nyquist frequency."""
    seconds: float
    top_hz: float
    """Upper edge of the highest band."""


def bars(values: Mapping[str, float], axis: str, *, share: bool = False) -> Markup:
    """Horizontal bars, one a name, first on top, each with its figure; ``share``: values in [0, 1] shown in percent."""
    names, widths = [shorten(name) for name in values], list(values.values())
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(height=0.5 + 0.21 * len(names))
        drawn = axes.barh(range(len(names)), widths, height=0.72, color=_ACCENT)
        figures = [f"{value:.0%}" if share else f"{value:,.6g}" for value in widths]
        axes.bar_label(drawn, figures, padding=3, color=_INK)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.14 * (max(widths, default=0) or 1))
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not share))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}" if share else f"{x:,.6g}"))
        axes.set_xlabel(axis)
        return _svg(figure, f"bar chart: {axis}")


def columns(counts: Mapping[int, int], axis: str, count: str) -> Markup:
    """A histogram from counts by the lower edge of bins of width 1; ``count`` says what is counted.

    At most about 30 bins are shown: where there are more, several become one.
    """
    low, high = min(counts), max(counts) + 1
    width = max(1, -(-(high - low) // 30))
    edges = np.arange(low, high + width, width)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(height=2.4)
        axes.hist(list(counts), bins=edges, weights=list(counts.values()), color=_ACCENT, rwidth=0.9)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(axis)
        axes.set_ylabel(count)
        return _svg(figure, f"histogram: {axis}")


def curve(name: str, training: Mapping[int, float], validation: Mapping[int, float]) -> Markup:
    """A figure over steps: raw values faint, smoothed ones on top, validation as a marked line. Values are finite."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(height=2.4)
        if training:
            steps, values = _arrays(training)
            smooth = smoothed(values)
            plain = smooth is values
            axes.plot(*_thinned(steps, values), color=_ACCENT, alpha=1 if plain else 0.3, lw=1.6 if plain else 0.8)
            if not plain:
                axes.plot(*_thinned(steps, smooth), color=_ACCENT, lw=1.8, label="training, smoothed")
            elif validation:
                axes.lines[0].set_label("training")
        if validation:
            axes.plot(*_arrays(validation), color=_WARM, lw=1.6, marker="o", ms=3.5, label="validation")
        if spans_decades([*training.values(), *validation.values()]):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("step")
        axes.set_ylabel(shorten(name))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=9, labelcolor=_INK)
        return _svg(figure, f"curve of {name} over steps")


def smoothed(values: Floats) -> Floats:
    """Centred moving mean over a twentieth of the curve; the same array if it is short or smooth already."""
    if len(values) < 20 or np.abs(np.diff(values)).sum() <= 2 * np.ptp(values):
        return values
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low), dtype=np.float64)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits: all positive, and the middle 96 % spread over a factor above 20."""
    if min(values) <= 0:
        return False
    low, high = np.quantile(values, [0.02, 0.98])
    return bool(high > 20 * low)


def analyse(wave: audio.Wave, rate: int, top_hz: float) -> Spectrogram:
    """Mel spectrogram (HTK scale, triangles of height 1) of ``wave [channels, frames]`` up to ``top_hz``.

    The mean power of the channels is shown. Hann window of about 50 ms, at most about 700 columns.
    """
    size = 1 << round(np.log2(max(16.0, _WINDOW_S * rate)))
    window = np.hanning(size + 1)[:-1]
    hop = max(size // 4, -(-wave.shape[1] // _COLUMNS))
    power = np.zeros((size // 2 + 1, -(-wave.shape[1] // hop)))
    for channel in np.pad(wave, ((0, 0), (size // 2, size // 2))):
        pieces = np.lib.stride_tricks.sliding_window_view(channel, size)[: wave.shape[1] : hop]
        spectrum = np.fft.rfft(pieces * window, axis=1) * (2 / window.sum())
        power += np.square(np.abs(spectrum)).T / wave.shape[0]
    edges = from_mel(np.linspace(to_mel(_FLOOR_HZ), to_mel(top_hz), MEL_BANDS + 2))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.fft.rfftfreq(size, 1 / rate)[None]
    triangles = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
    bands = 10 * np.log10(np.maximum(triangles @ power, 1e-20))
    bands[middle[:, 0] > rate / 2] = np.nan
    return Spectrogram(bands, wave.shape[1] / rate, top_hz)


def spectrogram(shown: Spectrogram, top_db: float, seconds: float, name: str) -> Markup:
    """Draw a spectrogram with colours from ``top_db - 80`` to ``top_db``, on a time axis of ``seconds``."""
    bottom, top = float(to_mel(_FLOOR_HZ)), float(to_mel(shown.top_hz))
    half_band = (top - bottom) / (MEL_BANDS + 1) / 2
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(height=1.9)
        axes.imshow(
            shown.decibels,
            origin="lower",
            aspect="auto",
            interpolation="none",
            cmap=_COLOURS,
            vmin=top_db - DYNAMIC_RANGE_DB,
            vmax=top_db,
            extent=(0, shown.seconds, bottom + half_band, top - half_band),
        )
        ticks = [hz for hz in (100, 500, 1000, 2000, 4000, 8000, 16000) if hz <= shown.top_hz]
        axes.yaxis.set_major_locator(FixedLocator([float(to_mel(hz)) for hz in ticks]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda _, place: str(ticks[place or 0])))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(0, seconds)
        axes.set_ylim(bottom, top)
        axes.grid(visible=False)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("frequency (Hz)")
        return _svg(figure, f"spectrogram of {name}")


@dataclass(frozen=True, slots=True)
class Recording:
    """The beginning of a recording, finite samples."""

    role: str
    name: str
    wave: audio.Wave
    rate: int
    sound: str
    """Data URI of the player."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One recording as the page shows it: a player, a picture and its level, or only a note why there is none."""

    role: str
    name: str
    note: str = ""
    sound: str = ""
    level: str = ""
    picture: Markup = field(default_factory=Markup)


def excerpt(role: str, name: str, path: Path) -> Recording:
    """Read the first `EXCERPT_S` of a file; what had to be changed stands in ``note``.

    Raises AudioError (a ValueError) when the file cannot be decoded, holds no samples, or no player could play it.
    """
    info = audio.probe(path)
    wave = audio.read(path, frames=math.ceil(EXCERPT_S * info.sample_rate))
    if not wave.shape[1]:
        raise AudioError(f"{path}: the file holds no samples", "empty")
    notes = []
    if info.frames is not None and info.frames > wave.shape[1]:
        notes.append(f"First {EXCERPT_S:g} s of {info.frames / info.sample_rate:,.1f} s.")
    broken = int((~np.isfinite(wave)).sum())
    if broken:
        notes.append(f"{broken:,} samples are NaN or infinite and are shown as zeros.")
        wave = np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0)
    if np.abs(wave).max() > 1:
        notes.append("Peaks above full scale are clipped in the player.")
    if wave.shape[0] > 2:
        notes.append(f"{wave.shape[0]} channels are played as their mean.")
    try:
        sound = flac(audio.to_channels(wave, 1) if wave.shape[0] > 2 else wave, info.sample_rate)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: {info.sample_rate} Hz cannot be written as FLAC ({error})") from None
    return Recording(role, name, wave, info.sample_rate, sound, " ".join(notes))


def clips(items: Sequence[Recording | Clip]) -> tuple[list[Clip], float]:
    """Show recordings side by side, with one scale of time, frequency and colour; also the level of the top colour.

    Clips among ``items`` (those that could not be read) stay as they are.
    """
    sound = [item for item in items if isinstance(item, Recording)]
    top_hz = max(1000.0, min(_TOP_HZ, max((item.rate / 2 for item in sound), default=0.0)))
    seconds = max((item.wave.shape[1] / item.rate for item in sound), default=0.0)
    analysed = [analyse(item.wave, item.rate, top_hz) for item in sound]
    loudest = max((float(np.nanmax(one.decibels)) for one in analysed), default=0.0)
    # Below -100 dB there is silence only, and 0 dB shows it as black.
    top_db = 5.0 * math.ceil(loudest / 5) if loudest > -100 else 0.0
    drawn = iter(analysed)
    shown = [item if isinstance(item, Clip) else _clip(item, next(drawn), top_db, seconds) for item in items]
    return shown, top_db


def _clip(item: Recording, shown: Spectrogram, top_db: float, seconds: float) -> Clip:
    channels, frames = item.wave.shape
    rms = math.sqrt(float(np.square(item.wave, dtype=np.float64).mean()))
    kind = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    peak = _dbfs(float(np.abs(item.wave).max()))
    level = (f"peak {peak}", f"RMS {_dbfs(rms)}", f"{frames / item.rate:.1f} s", f"{item.rate / 1000:g} kHz {kind}")
    return Clip(
        role=item.role,
        name=item.name,
        note=item.note,
        sound=item.sound,
        level=" · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in level),
        picture=spectrogram(shown, top_db, seconds, f"{item.role} {item.name}"),
    )


def flac(wave: audio.Wave, rate: int) -> str:
    """``[channels, frames]`` as a data URI of 16-bit FLAC, which has, unlike Vorbis, the same bytes each time."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, wave.shape[0], "PCM_16", format="FLAC") as sound:
        for begin in range(0, wave.shape[1], _BLOCK):
            sound.write(np.clip(wave[:, begin : begin + _BLOCK].T, -1, 1))
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour_scale() -> str:
    """The spectrogram colours from quiet to loud, as a CSS gradient."""
    colours = matplotlib.colormaps[_COLOURS](np.linspace(0, 1, 9), bytes=True)
    return f"linear-gradient(to right, {', '.join('#' + bytes(colour[:3]).hex() for colour in colours)})"


def to_mel(hz: float | Floats) -> Floats:
    """Hertz to mel (HTK)."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hz) / 700))


def from_mel(mel: float | Floats) -> Floats:
    """Mel (HTK) to hertz."""
    return np.asarray(700 * (10 ** (np.asarray(mel) / 2595) - 1))


def shorten(text: str, limit: int = 24) -> str:
    """One line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _dbfs(amplitude: float) -> str:
    level = f"{20 * math.log10(amplitude):.1f}" if amplitude else "-∞"
    return f"{level} dBFS".replace("-", "\N{MINUS SIGN}")


def _axes(height: float) -> tuple[Figure, Axes]:
    # 374 SVG units wide: text stays readable when the page scales a figure to a phone or to half a screen.
    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, figure.add_subplot()


def _arrays(points: Mapping[int, float]) -> tuple[Floats, Floats]:
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def _thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest point of each of 400 bins, so that a long curve keeps its outline and a page stays small."""
    if len(steps) <= 2 * _CURVE_BINS:
        return steps, values
    kept: list[int] = []
    for part in np.array_split(np.arange(len(steps)), _CURVE_BINS):
        kept += sorted({int(part[values[part].argmin()]), int(part[values[part].argmax()])})
    return steps[kept], values[kept]


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Letters that matplotlib's own font lacks: the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*; ", "", body).replace("xlink:href=", "href=")
    for stand_in, colour in _PAGE_COLOURS.items():
        body = body.replace(f": {stand_in}", f": {colour}")
    # Ids are global in a page: those that nothing refers to go, the rest get the figure's own prefix.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    prefix = hashlib.sha256(body.encode("utf-8", "backslashreplace")).hexdigest()[:10]
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", body)
    return Markup('<svg role="img" aria-label="{}" {}>').format(label, Markup(view[0] if view else "")) + Markup(body)
