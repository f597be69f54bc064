"""Windows of songs -> samples: decoding ahead, every signal through the models once, rows put together again."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import torch

from manifests.shards import SAMPLE_VERSION, Array, Sample, embedding_count
from manifests.songs import Song
from manifests.splits import Split, Window
from mgeldm.measure import decibels
from pipelines.encode_config import EncodeConfig, encoder_identity
from pipelines.forwards import Forwards
from pipelines.song_signals import Decoding, SongSignals, is_within_full_scale, needed_spans

SONGS_AHEAD = 1
"""Songs that are decoded while one is encoded; each is held in memory."""

_NOT_FINITE = "latents or embeddings are NaN, infinite or beyond the range of float16"
_NO_ROOM = "the device's memory is too small for the song at the rates of codec and embedder; use another device"
_NO_MEMORY = "the device's memory is too small for one signal of this length; split with shorter windows"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Stretch:
    """The sum of some stems over some latent frames: what is encoded once, however many splits name it."""

    start: int
    frames: int
    stems: frozenset[str]
    gains: tuple[tuple[str, float], ...] = ()
    """Factors on stems, of those that the plan turned up or down."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a stretch."""

    latents: Array
    """``[C, L]``"""
    embeddings: Array
    """``[W, D]``"""
    rms_dbfs: float | None
    """None for digital silence."""


@dataclass(frozen=True, slots=True)
class WindowError:
    """Why a window could not be encoded."""

    stage: str
    code: str
    message: str


@dataclass(slots=True)
class _SongInWork:
    song: Song
    windows: tuple[Window, ...]
    decoding: Decoding
    results: dict[Stretch, Encoded | None] = field(default_factory=dict)
    """None where the device's memory is too small for even one signal."""


@dataclass(frozen=True, slots=True)
class _Job:
    owner: _SongInWork
    signals: SongSignals
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class _Rows:
    """A window whose rows are awaited."""

    owner: _SongInWork
    window: Window
    rows: tuple[Stretch, ...]
    gain: float
    error: WindowError | None = None

    @property
    def ready(self) -> bool:
        return all(row in self.owner.results for row in self.rows)


class WindowEncoder:
    """Encodes the windows of songs. Models are loaded once, so build one a process.

    On a CPU a sample's bytes depend on its song, the plan of the song and the models alone: every core takes one signal
    at a time. A GPU takes batches over windows and songs, which decide the last bits.
    """

    def __init__(self, config: EncodeConfig) -> None:
        """Load the models. Raises CheckpointError and ConfigError."""
        self.config = config
        self.forwards = Forwards(
            config.codec,
            config.embedder,
            config.device,
            batch=config.batch,
            precision=config.precision,
            compiled=config.compile,
        )
        self.codec, self.embedder, self.clock = self.forwards.codec, self.forwards.embedder, self.forwards.clock
        self.encoder = encoder_identity(config, self.codec, self.embedder)
        # At a rate that both take, the embedder hears the mean of the codec's channels.
        self._rates = {self.embedder.spec.sample_rate: 1} | {self.codec.spec.sample_rate: self.codec.spec.channels}

    def samples(
        self, songs: Iterable[tuple[Song, tuple[Window, ...]]], only: Collection[str] | None = None
    ) -> Iterator[tuple[Window, Sample | WindowError]]:
        """The sample of each window, or why there is none, in the order of songs and windows.

        Songs come with all windows that the plan has of them: they decide what of a song is read, and its gain. All of
        these windows are encoded, or ``only`` those with such ids.
        """
        waiting: deque[_Rows] = deque()
        depth = 2 * torch.get_num_threads()
        with one_core_each(self.forwards.device) as (decoders, encoders):
            jobs = batches(self._jobs(songs, only, decoders, waiting), self.forwards.batch)
            for batch, encoded in ahead(encoders, self._encode, jobs, depth if decoders is encoders else 1):
                for job, result in zip(batch, encoded, strict=True):
                    job.owner.results[job.stretch] = result
                while waiting and waiting[0].ready:
                    yield self._finished(waiting.popleft())
        yield from map(self._finished, waiting)

    def _jobs(
        self,
        songs: Iterable[tuple[Song, tuple[Window, ...]]],
        only: Collection[str] | None,
        decoders: Executor,
        waiting: deque[_Rows],
    ) -> Iterator[_Job]:
        """Every signal that the windows need, once; each window is put among the waiting before its own."""
        for owner in ahead_of((self._begin(song, windows, decoders) for song, windows in songs), SONGS_AHEAD):
            try:
                signals, errors = owner.decoding.result()
            except torch.OutOfMemoryError:
                for window in owner.windows:
                    if only is None or window.window_id in only:
                        waiting.append(_Rows(owner, window, (), 1.0, WindowError("encode", "out_of_memory", _NO_ROOM)))
                continue
            known: set[Stretch] = set()
            for window in owner.windows:
                if only is not None and window.window_id not in only:
                    continue
                if broken := sorted(mix_stems(window.splits) & errors.keys()):
                    error = errors[broken[0]]
                    waiting.append(_Rows(owner, window, (), 1.0, WindowError("decode", error.code, str(error))))
                    continue
                gain, rows = self._rows(window, signals)
                waiting.append(_Rows(owner, window, rows, gain))
                for stretch in rows:
                    if stretch not in known:
                        known.add(stretch)
                        yield _Job(owner, signals, stretch)

    def _begin(self, song: Song, windows: tuple[Window, ...], pool: Executor) -> _SongInWork:
        """Begin to decode what the windows of a song need."""
        used = {stem for window in windows for stem in mix_stems(window.splits)}
        spans = None
        if is_within_full_scale(song, used):
            spans = needed_spans((self._reach(window) for window in windows), song.duration_s)
        decoding = Decoding(pool, song, used, self._rates, spans, self.forwards.device, self.clock)
        return _SongInWork(song, windows, decoding)

    def _reach(self, window: Window) -> tuple[float, float]:
        """From where to where the latents and embeddings of a window hear the song, in seconds."""
        context = self.codec.spec.context / self.codec.spec.sample_rate
        length = max(window.duration_s + context, self.embedder.spec.window_s)
        return window.start_s - context, window.start_s + length

    def _rows(self, window: Window, signals: SongSignals) -> tuple[float, tuple[Stretch, ...]]:
        """The gain of the window, and the rows of its sample on the codec's grid of frames."""
        spec = self.codec.spec
        start, frames = spec.frames(window.start_s), max(1, spec.frames(window.duration_s))
        gains, gain = {stem.stem_id: 10 ** (stem.gain_db / 20) for stem in window.gains}, signals.gain
        if gains:
            # Stems that were turned up must not drive the window's mix beyond full scale.
            heard = (start * spec.hop - spec.context, frames * spec.hop + 2 * spec.context)
            stems = mix_stems(window.splits)
            headroom = 1 / max(1.0, float(signals.cut(stems, spec.sample_rate, *heard, gains).abs().max()))
            gains, gain = {name: headroom * gains.get(name, 1.0) for name in stems}, headroom * gain
        return gain, tuple(
            Stretch(start, frames, stems, tuple(sorted((name, gains[name]) for name in stems & gains.keys())))
            for stems in track_stems(window.splits)
        )

    def _encode(self, jobs: Sequence[_Job]) -> list[Encoded | None]:
        """Stretches of one length, encoded with the codec's context on both sides, which is trimmed off.

        None for one that is too much for the device even by itself.
        """
        spec, frames = self.codec.spec, jobs[0].stretch.frames
        hop, context = spec.hop, spec.context // spec.hop
        try:
            with self.clock("mix"):
                begins = [(job.stretch.start - context) * hop for job in jobs]
                longer = (frames + 2 * context) * hop
                waves = torch.stack(
                    [self._cut(job, spec.sample_rate, begin, longer) for job, begin in zip(jobs, begins, strict=True)]
                )
                inner = waves[..., context * hop : (context + frames) * hop]
                levels = inner.double().square().mean(dim=(1, 2)).sqrt().tolist()
                windows = [self._embedder_windows(job) for job in jobs]
            latents = self.forwards.latents(waves)[..., context : context + frames]
            embeddings = self.forwards.embeddings(torch.cat(windows))
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                return [None]
            if self.forwards.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(jobs) // 2
            return [*self._encode(jobs[:half]), *self._encode(jobs[half:])]
        parts = embeddings.split([len(part) for part in windows])
        return [
            Encoded(values.numpy(), vectors.numpy(), decibels(level))
            for values, vectors, level in zip(latents, parts, levels, strict=True)
        ]

    def _embedder_windows(self, job: _Job) -> torch.Tensor:
        """``[W, T]``: what the embedder hears, from each hop into the stretch on."""
        stretch, hop = job.stretch, self.config.embed_hop_s
        begin, seconds = self.codec.spec.seconds(stretch.start), self.codec.spec.seconds(stretch.frames)
        spec = self.embedder.spec
        count = embedding_count(seconds, spec.window_s, hop)
        starts = [round((begin + number * hop) * spec.sample_rate) for number in range(count)]
        # One cut for all: they overlap.
        cut = self._cut(job, spec.sample_rate, starts[0], starts[-1] - starts[0] + spec.window)
        mono = cut.mean(dim=0) if len(cut) > 1 else cut[0]
        return torch.stack([mono[start - starts[0] : start - starts[0] + spec.window] for start in starts])

    def _cut(self, job: _Job, rate: int, start: int, frames: int) -> torch.Tensor:
        return job.signals.cut(job.stretch.stems, rate, start, frames, dict(job.stretch.gains))

    def _finished(self, waiting: _Rows) -> tuple[Window, Sample | WindowError]:
        window = waiting.window
        if waiting.error:
            return window, waiting.error
        rows = [row for row in (waiting.owner.results[row] for row in waiting.rows) if row]
        if len(rows) < len(waiting.rows):
            return window, WindowError("encode", "out_of_memory", _NO_MEMORY)
        latents, embeddings = np.stack([row.latents for row in rows]), np.stack([row.embeddings for row in rows])
        if not (np.isfinite(latents).all() and np.isfinite(embeddings).all()):
            return window, WindowError("encode", "not_finite", _NOT_FINITE)
        meta = self._meta(waiting, [row.rms_dbfs for row in rows])
        return window, Sample(key=window.window_id, latents=latents, embeddings=embeddings, meta=meta)

    def _meta(self, waiting: _Rows, levels: Sequence[float | None]) -> dict[str, Any]:
        song, spec, mix = waiting.owner.song, self.codec.spec, waiting.rows[0]
        instruments = {stem.stem_id: stem.instrument for stem in song.stems}
        return {
            "version": SAMPLE_VERSION,
            "encoder": self.encoder,
            "song_id": song.song_id,
            "corpus": song.corpus,
            "subset": song.subset,
            "license": song.license,
            "start_s": spec.seconds(mix.start),
            "duration_s": spec.seconds(mix.frames),
            "gain": waiting.gain,
            "stem_gains_db": {stem.stem_id: stem.gain_db for stem in waiting.window.gains},
            "rms_dbfs": [None if level is None else round(level, 2) for level in levels],
            "splits": [
                {**asdict(split), "source_instruments": sorted({instruments[stem] for stem in split.source})}
                for split in waiting.window.splits
            ],
        }


def mix_stems(splits: Sequence[Split]) -> frozenset[str]:
    """Every stem of the splits: the window's mix."""
    return frozenset(stem for split in splits for stem in (*split.source, *split.submix))


def track_stems(splits: Sequence[Split]) -> list[frozenset[str]]:
    """Stem sets of a sample's rows: mix, then submix and source of each split."""
    return [mix_stems(splits), *(frozenset(side) for split in splits for side in (split.submix, split.source))]


@contextmanager
def one_core_each(device: torch.device) -> Iterator[tuple[Executor, Executor]]:
    """Pools for decoding and for encoding, with a thread for each core that torch may use; each computes on one core.

    The number of cores that share a sum decides its last bits, so that a shard's bytes would depend on the machine. On
    a CPU both pools are one; a GPU is fed by one thread.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(cores))
            yield pool, pool if device.type == "cpu" else stack.enter_context(ThreadPoolExecutor(1))
    finally:
        torch.set_num_threads(cores)


def ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[tuple[T, R]]:
    """``(item, function(item))`` in order; the pool is ``count`` items ahead of who takes them."""
    running: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        running.append((item, pool.submit(function, item)))
        if len(running) > count:
            first, result = running.popleft()
            yield first, result.result()
    for item, result in running:
        yield item, result.result()


def ahead_of(items: Iterable[T], count: int) -> Iterator[T]:
    """The items, of which ``count`` more have been made when one is given."""
    iterator = iter(items)
    made = deque(islice(iterator, count))
    for item in iterator:
        made.append(item)
        yield made.popleft()
    yield from made


def batches(jobs: Iterable[_Job], size: int) -> Iterator[list[_Job]]:
    """Runs of at most ``size`` jobs whose stretches have one length."""
    for _, group in groupby(jobs, key=lambda job: job.stretch.frames):
        while run := list(islice(group, size)):
            yield run
