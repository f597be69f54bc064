import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from manifests.shards import SHARDS_FOLDER, Sample, embedding_count
from manifests.songs import Song
from manifests.splits import Split, StemGain, Window
from manifests.units import Unit, parse_sidecar
from mgeldm.audio import Wave, fit, load
from mgeldm.codec import load_codec
from mgeldm.codec.long import encode_long, silence_latent
from mgeldm.embedder import load_embedder
from pipelines.encode import embed_prompts
from pipelines.encode_config import EncodeConfig, encoder_identity
from pipelines.encode_unit import UnitEncoder, UnitWork, latent_moments
from pipelines.encode_windows import WindowEncoder, WindowError, ahead, ahead_of, track_stems
from pipelines.song_signals import decode_song
from tests.support.models import write_codec, write_embedder
from tests.support.songs import measured_song
from tests.support.sounds import sound, write_sound

RATE = 16_000
HOP = 256
FRAME_S = HOP / RATE
EMBED_HOP_S = 0.1
FILES = {"drums": "drums.wav", "bass": "bass.flac", "vocals": "vocals.wav"}
DRUMS = Split(source=("drums",), submix=("bass", "vocals"), source_text="drums", submix_text="bass and vocals")
BASS = Split(source=("bass",), submix=("drums", "vocals"), source_text="bass", submix_text="drums and vocals")
VOCALS = Split(source=("vocals",), submix=("bass", "drums"), source_text="vocals", submix_text="bass and drums")
MIX = frozenset(FILES)
# float16 has 11 bits; latents here are below 2.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Song:
    """Four seconds; the vocals are shorter and begin with a second of silence. The mix exceeds full scale."""
    root = tmp_path_factory.mktemp("song")
    write_sound(root / FILES["drums"], sound("drums", seconds=4.0, rate=44_100, channels=2, level=1.5), 44_100, "FLOAT")
    write_sound(root / FILES["bass"], sound("bass", seconds=3.9, rate=48_000, level=0.8), 48_000)
    vocals = sound("vocals", seconds=3.0, rate=RATE, level=0.5)
    vocals[:, :RATE] = 0
    write_sound(root / FILES["vocals"], vocals, RATE)
    return measured_song(root, FILES)


@pytest.fixture(scope="module")
def encoder(tiny_models: tuple[Path, Path]) -> WindowEncoder:
    codec, embedder = tiny_models
    return WindowEncoder(EncodeConfig(codec=str(codec), embedder=str(embedder), embed_hop_s=EMBED_HOP_S, device="cpu"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def window(start_s: float, duration_s: float = 1.024, *splits: Split) -> Window:
    return Window(
        window_id=f"w{round(start_s * 1000):05d}-{round(duration_s * 1000)}",
        song_id="corpus/song",
        start_s=start_s,
        duration_s=duration_s,
        splits=splits or (DRUMS, VOCALS),
    )


def encoded(encoder: WindowEncoder, song: Song, *windows: Window) -> list[Sample]:
    found = list(encoder.samples([(song, windows)]))
    assert [part for part, _ in found] == list(windows)
    assert all(isinstance(sample, Sample) for _, sample in found)
    return [sample for _, sample in found if isinstance(sample, Sample)]


def whole_wave(song: Song, stems: frozenset[str]) -> Wave:
    """The sum of stems over the whole song as the codec is to hear it, computed apart from what is tested."""
    waves = {stem.stem_id: load(Path(song.root) / stem.path, RATE) for stem in song.stems}
    longest = max(wave.shape[1] for wave in waves.values())
    placed = {name: fit(wave, longest) for name, wave in waves.items()}
    gain = 1 / max(1.0, float(np.abs(np.sum(list(placed.values()), axis=0)).max()))
    total: Wave = (gain * np.sum([placed[stem] for stem in stems], axis=0)).astype(np.float32)
    return total


def test_latents_of_a_window_are_those_of_the_whole_song(encoder: WindowEncoder, song: Song) -> None:
    windows = [window(start) for start in (0.0, 0.512, 1.6, 2.9, 3.5)]
    samples = encoded(encoder, song, *windows)
    context = encoder.codec.spec.context // HOP
    for row, stems in enumerate(track_stems((DRUMS, VOCALS))):
        wave = torch.from_numpy(whole_wave(song, stems))
        whole = encode_long(encoder.codec, wave).numpy()
        with torch.inference_mode():
            plain = encoder.codec.encode(wave[None])[0].numpy()
        frames = whole.shape[1]
        assert frames == 250
        assert np.abs(plain - whole)[:, context:-context].max() < 1e-5
        for part, sample in zip(windows, samples, strict=True):
            start = round(part.start_s / FRAME_S)
            inside = min(64, frames - start)
            assert sample.latents.shape == (5, 8, 64)
            np.testing.assert_allclose(
                sample.latents[row, :, :inside], whole[:, start : start + inside], atol=TOLERANCE, rtol=0
            )
            low, high = max(start, context), min(start + 64, frames - context)
            np.testing.assert_allclose(
                sample.latents[row, :, low - start : high - start], plain[:, low:high], atol=TOLERANCE, rtol=0
            )
            # Without context the ends of a window would be others, which this test could tell.
            begin = start * HOP
            with torch.inference_mode():
                alone = encoder.codec.encode(wave[None, :, begin : begin + inside * HOP])[0].numpy()
            if stems == MIX and 0 < start < frames - 64:
                assert np.abs(alone - whole[:, start : start + inside]).max() > 20 * TOLERANCE


def test_the_gain_keeps_the_mix_in_range_and_is_told(encoder: WindowEncoder, song: Song) -> None:
    sample = encoded(encoder, song, window(0.0))[0]
    assert np.abs(whole_wave(song, MIX)).max() == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < sample.meta["gain"] < 0.95


def test_the_window_is_the_stretch_that_its_json_says(encoder: WindowEncoder, song: Song) -> None:
    sample = encoded(encoder, song, window(1.003, 1.0))[0]
    assert (sample.meta["start_s"], sample.meta["duration_s"]) == (63 * FRAME_S, 62 * FRAME_S)
    wave = whole_wave(song, MIX)[:, 63 * HOP : 125 * HOP]
    level = 10 * np.log10(np.square(wave, dtype=np.float64).mean())
    assert sample.meta["rms_dbfs"][0] == pytest.approx(level, abs=0.006)
    assert {key: sample.meta[key] for key in ("song_id", "corpus", "subset", "license", "version", "encoder")} == {
        "song_id": "corpus/song",
        "corpus": "corpus",
        "subset": "train",
        "license": "CC0-1.0",
        "version": "1",
        "encoder": encoder.encoder,
    }
    assert sample.meta["splits"][1] == {
        "source": ("vocals",),
        "submix": ("bass", "drums"),
        "source_text": "vocals",
        "submix_text": "bass and drums",
        "source_instruments": ["vocals"],
    }
    assert json.loads(json.dumps(sample.meta))["splits"][0]["submix"] == ["bass", "vocals"]


@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, 1.024), (1.28, 1.024), (3.2, 2.048), (0.48, 0.256)])
def test_embeddings_are_of_the_places_that_they_stand_for(
    encoder: WindowEncoder, song: Song, start_s: float, duration_s: float
) -> None:
    sample = encoded(encoder, song, window(start_s, duration_s))[0]
    spec = encoder.embedder.spec
    count = embedding_count(duration_s, spec.window_s, EMBED_HOP_S)
    assert count == {1.024: 6, 2.048: 16, 0.256: 1}[duration_s]
    assert sample.embeddings.shape == (5, count, 16)
    for row, stems in enumerate(track_stems((DRUMS, VOCALS))):
        wave = np.pad(whole_wave(song, stems), ((0, 0), (0, 4 * RATE)))
        begins = [round((start_s + hop * EMBED_HOP_S) * RATE) for hop in range(count)]
        with torch.inference_mode():
            expected = encoder.embedder.embed_audio(
                torch.from_numpy(np.concatenate([wave[:, begin : begin + spec.window] for begin in begins]))
            ).numpy()
        np.testing.assert_allclose(sample.embeddings[row], expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(sample.embeddings[row].astype(float), axis=1), 1, atol=2e-3)
        if stems == MIX and count > 1 and start_s < 3:
            assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 5 * TOLERANCE


def test_a_silent_stretch_has_the_latent_of_silence(encoder: WindowEncoder, song: Song) -> None:
    context = encoder.codec.spec.context / RATE
    sample = encoded(encoder, song, window(0.16, 0.64))[0]
    assert 0.8 + context < 1.0
    silence = silence_latent(encoder.codec).numpy()
    assert np.abs(silence).max() > 100 * TOLERANCE
    np.testing.assert_allclose(sample.latents[4], np.repeat(silence[:, None], 40, axis=1), atol=TOLERANCE, rtol=0)
    assert sample.meta["rms_dbfs"][4] is None
    assert None not in sample.meta["rms_dbfs"][:4]
    with torch.inference_mode():
        nothing = encoder.embedder.embed_audio(torch.zeros(1, encoder.embedder.spec.window)).numpy()
    np.testing.assert_allclose(sample.embeddings[4, :1], nothing, atol=TOLERANCE, rtol=0)
    # A window wholly behind the end of the song is silence, too.
    beyond = encoded(encoder, song, window(4.2, 0.64))[0]
    np.testing.assert_allclose(beyond.latents[0], sample.latents[4], atol=TOLERANCE, rtol=0)


def test_windows_of_other_lengths_stand_beside_each_other_and_none_is_shorter_than_a_frame(
    encoder: WindowEncoder, song: Song
) -> None:
    windows = [window(0.0, 0.5), window(0.0), window(0.8, 0.001), window(1.0, 0.5), window(2.0, 2.048)]
    samples = encoded(encoder, song, *windows)
    assert [sample.key for sample in samples] == [part.window_id for part in windows]
    assert [sample.latents.shape[2] for sample in samples] == [31, 64, 1, 31, 128]
    assert [sample.embeddings.shape[1] for sample in samples] == [1, 6, 1, 1, 16]
    assert samples[2].meta["duration_s"] == FRAME_S
    for part, sample in zip(windows, samples, strict=True):
        alone = encoded(encoder, song, part)[0]
        assert np.array_equal(alone.latents, sample.latents)
        assert np.array_equal(alone.embeddings, sample.embeddings)


def test_neither_cores_nor_neighbours_nor_batch_change_a_bit(
    tiny_models: tuple[Path, Path], encoder: WindowEncoder, song: Song, one_thread: None
) -> None:
    windows = [window(start) for start in (0.0, 1.0, 2.0)]
    expected = encoded(encoder, song, *windows)
    wider = WindowEncoder(replace(encoder.config, batch=7))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for samples in (
            encoded(encoder, song, *windows),
            [encoded(encoder, song, part)[0] for part in windows],
            encoded(wider, song, *windows),
        ):
            for sample, wanted in zip(samples, expected, strict=True):
                assert sample.latents.tobytes() == wanted.latents.tobytes()
                assert sample.embeddings.tobytes() == wanted.embeddings.tobytes()
        assert torch.get_num_threads() == threads


def test_a_set_of_stems_is_encoded_once_however_many_splits_name_it(
    encoder: WindowEncoder, song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    codec = encoder.codec.encode

    def counted(wave: torch.Tensor) -> torch.Tensor:
        calls.append(len(wave))
        return codec(wave)

    monkeypatch.setattr(encoder.forwards._codec, "_function", counted)
    swapped = Split(source=DRUMS.submix, submix=DRUMS.source, source_text="x", submix_text="y")
    sample = encoded(encoder, song, window(0.0, 0.5, DRUMS, swapped, BASS))[0]
    # Mix, drums and the rest, bass and the rest; a CPU takes one at a time.
    assert calls == [1] * 5
    assert np.array_equal(sample.latents[1], sample.latents[4])
    assert np.array_equal(sample.latents[2], sample.latents[3])


def work(song: Song, *windows: Window) -> UnitWork:
    unit = Unit(corpus="corpus", subset="train", songs=(song.song_id,))
    return UnitWork(unit, {song.song_id: song}, {song.song_id: windows})


def test_a_unit_becomes_a_shard_and_a_sidecar(encoder: WindowEncoder, song: Song, tmp_path: Path) -> None:
    worker = UnitEncoder(encoder.config, tmp_path)
    job = work(song, window(0.0), window(1.0), window(2.0, 0.5))
    sidecar = worker(job).sidecar
    name = job.name(encoder.encoder)
    assert sorted(path.name for path in (tmp_path / SHARDS_FOLDER).iterdir()) == [f"{name}.json", f"{name}.tar"]
    assert parse_sidecar(tmp_path, name) == sidecar
    assert (sidecar.shard, sidecar.plan, sidecar.encoder) == (f"{name}.tar", job.plan, encoder.encoder)
    assert [row.key for row in sidecar.rows] == [part.window_id for part in job.windows[song.song_id]]
    assert (sidecar.songs, sidecar.failures) == ((song.song_id,), ())
    assert sidecar.seconds == pytest.approx((64 + 64 + 31) * FRAME_S)
    samples = encoded(encoder, song, *job.windows[song.song_id])
    frames = np.concatenate([np.moveaxis(s.latents.astype(np.float64), 1, 0).reshape(8, -1) for s in samples], axis=1)
    assert sidecar.latent_count == frames.shape[1] == 5 * (64 + 64 + 31)
    mean, deviation = latent_moments([sidecar, sidecar], 8)
    np.testing.assert_allclose(mean, frames.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(deviation, frames.std(axis=1), atol=1e-9)
    content = (tmp_path / SHARDS_FOLDER / sidecar.shard).read_bytes()
    assert worker(job).sidecar == sidecar
    assert (tmp_path / SHARDS_FOLDER / sidecar.shard).read_bytes() == content


def test_moments_of_nothing_change_nothing() -> None:
    assert latent_moments([], 2) == ([0.0, 0.0], [1.0, 1.0])


def test_a_window_for_which_the_codec_gives_nan_is_a_failure_and_the_others_are_written(
    encoder: WindowEncoder, song: Song, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = UnitEncoder(encoder.config, tmp_path)
    codec = encoder.codec.encode

    def broken(wave: torch.Tensor) -> torch.Tensor:
        latents = codec(wave)
        return latents * 1e6 if latents.shape[-1] < 64 else latents

    monkeypatch.setattr(worker.windows.forwards._codec, "_function", broken)
    sidecar = worker(work(song, window(0.0), window(1.0, 0.5), window(2.0))).sidecar
    assert [row.key for row in sidecar.rows] == ["w00000-1024", "w02000-1024"]
    (failure,) = sidecar.failures
    assert (failure.window_id, failure.stage, failure.code) == ("w01000-500", "encode", "not_finite")
    assert failure.unit == Path(sidecar.shard).stem
    assert sidecar.seconds == pytest.approx(2.048)


def test_a_mono_embedder_hears_both_channels_of_a_stereo_codec(song: Song, tmp_path: Path) -> None:
    codec, embedder = write_codec(tmp_path / "c", audio_channels=2), write_embedder(tmp_path / "e")
    config = EncodeConfig(codec=str(codec), embedder=str(embedder), embed_hop_s=EMBED_HOP_S, device="cpu")
    encoder = WindowEncoder(config)
    signals, _ = decode_song(song, MIX, {RATE: 2})
    (sample,) = encoded(encoder, song, window(0.8))
    left, right = signals.cut(MIX, RATE, round(0.8 * RATE), encoder.embedder.spec.window).numpy()
    assert np.abs(left - right).max() > 0.01
    with torch.inference_mode():
        both, one = encoder.embedder.embed_audio(torch.from_numpy(np.stack([(left + right) / 2, left]))).numpy()
    np.testing.assert_allclose(sample.embeddings[0, 0], both, atol=TOLERANCE, rtol=0)
    assert np.abs(both - one).max() > 2 * TOLERANCE


def test_codec_and_embedder_may_have_other_rates(song: Song, tmp_path: Path, tiny_models: tuple[Path, Path]) -> None:
    embedder = write_embedder(tmp_path / "e", sample_rate=24_000)
    config = EncodeConfig(codec=str(tiny_models[0]), embedder=str(embedder), embed_hop_s=EMBED_HOP_S, device="cpu")
    encoder = WindowEncoder(config)
    signals, _ = decode_song(song, MIX, {RATE: 1, 24_000: 1})
    (sample,) = encoded(encoder, song, window(1.6))
    with torch.inference_mode():
        cut = signals.cut(MIX, 24_000, round(1.8 * 24_000), encoder.embedder.spec.window)
        expected = encoder.embedder.embed_audio(cut).numpy()
    np.testing.assert_allclose(sample.embeddings[0, 2:3], expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        sample.latents[0],
        encode_long(encoder.codec, signals.cut(MIX, RATE, 0, 4 * RATE)).numpy()[:, 100:164],
        atol=TOLERANCE,
        rtol=0,
    )


def test_the_encoder_is_known_by_all_that_decides_what_it_gives(tmp_path: Path, encoder: WindowEncoder) -> None:
    config, codec, embedder = encoder.config, encoder.codec, encoder.embedder
    other_codec = load_codec(str(write_codec(tmp_path / "c", audio_channels=2)))
    other_embedder = load_embedder(str(write_embedder(tmp_path / "e", window_s=0.25)))
    identities = [
        encoder_identity(config, codec, embedder),
        encoder_identity(replace(config, embed_hop_s=0.2), codec, embedder),
        encoder_identity(config, other_codec, embedder),
        encoder_identity(config, codec, other_embedder),
        encoder_identity(replace(config, precision="bf16"), codec, embedder),
        encoder_identity(replace(config, precision="fp16"), codec, embedder),
    ]
    assert len(set(identities)) == 6
    assert identities[0] == encoder.encoder
    same = replace(
        config, batch=3, windows_per_shard=7, retry_failed=True, prompt_template="{}", device="auto", compile=True
    )
    assert encoder_identity(same, codec, embedder) == identities[0]


def test_a_text_that_says_nothing_to_the_embedder_gets_zeros(
    encoder: WindowEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(encoder.config, prompt_template="{}")
    found = embed_prompts(encoder.embedder, ["bass and drums", "zither and bass", "zither", "drums"], config)
    with torch.inference_mode():
        expected = encoder.embedder.embed_text(["bass and drums", "bass", "drums"]).numpy()
    np.testing.assert_allclose(found["bass and drums"], expected[0], atol=1e-6)
    np.testing.assert_allclose(found["zither and bass"], expected[1], atol=1e-6)
    np.testing.assert_allclose(found["drums"], expected[2], atol=1e-6)
    assert not found["zither"].any()
    assert "1 texts mean nothing to the embedder, such as 'zither'" in caplog.text
    templated = embed_prompts(encoder.embedder, ["drums"], encoder.config)
    with torch.inference_mode():
        sentence = encoder.embedder.embed_text(["the sound of drums"]).numpy()
    np.testing.assert_allclose(templated["drums"], sentence[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_hop_s": 0.0}, "embed_hop_s 0.0 must be above 0"),
        ({"embed_hop_s": float("nan")}, "embed_hop_s nan"),
        ({"windows_per_shard": 0}, "windows_per_shard 0 .* at least 1"),
        ({"batch": 0}, "batch 0 must be at least 1"),
        ({"prompt_template": "the sound"}, "prompt_template 'the sound' has no {}"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncodeConfig(**change)


def test_gains_of_the_plan_are_heard_and_told(encoder: WindowEncoder, song: Song) -> None:
    plain = window(1.5)
    gains_db = {"bass": -6.0, "drums": 3.0, "vocals": 0.0}
    louder = replace(plain, gains=tuple(StemGain(stem_id=name, gain_db=gain) for name, gain in gains_db.items()))
    one, other = encoded(encoder, song, plain, louder)
    assert one.meta["stem_gains_db"] == {}
    assert other.meta["stem_gains_db"] == gains_db
    headroom_db = 20 * np.log10(other.meta["gain"] / one.meta["gain"])
    assert headroom_db <= 0
    # Row 2 is the drums, row 4 the vocals.
    for row, gain_db in ((2, 3.0), (4, 0.0)):
        change = other.meta["rms_dbfs"][row] - one.meta["rms_dbfs"][row]
        assert change == pytest.approx(gain_db + headroom_db, abs=0.02)
    mix = sum(10 ** (gain / 20) * whole_wave(song, frozenset([name])) for name, gain in gains_db.items())
    context = encoder.codec.spec.context
    start, frames = round(1.5 / FRAME_S) * HOP, 64 * HOP
    heard = mix[:, start - context : start + frames + context]
    assert headroom_db == pytest.approx(-20 * np.log10(max(1.0, np.abs(heard).max())), abs=0.01)
    with torch.inference_mode():
        wave = torch.from_numpy(np.float32(10 ** (headroom_db / 20)) * heard.astype(np.float32))
        expected = encoder.codec.encode(wave[None])[0, :, context // HOP : context // HOP + 64].numpy()
    np.testing.assert_allclose(other.latents[0], expected, atol=TOLERANCE, rtol=0)


def test_windows_of_a_long_song_are_read_alone_and_are_those_of_the_whole(
    encoder: WindowEncoder, tmp_path: Path
) -> None:
    for name, path in FILES.items():
        write_sound(tmp_path / path, sound(name, seconds=45.0, rate=44_100, level=0.2), 44_100)
    song = measured_song(tmp_path, FILES)
    stems = tuple(
        replace(stem, size=(tmp_path / stem.path).stat().st_size, mtime_ns=(tmp_path / stem.path).stat().st_mtime_ns)
        for stem in song.stems
    )
    song = replace(song, stems=stems)
    few = [window(20.0), window(30.0, 1.024, BASS)]
    many = [window(float(start)) for start in range(0, 44, 2)]
    some, all_of_it = encoded(encoder, song, *few), encoded(encoder, song, *many)
    np.testing.assert_allclose(some[0].latents, all_of_it[10].latents, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(some[0].embeddings, all_of_it[10].embeddings, atol=TOLERANCE, rtol=0)
    assert [sample.tobytes() for sample in (some[0].latents, some[1].latents)] == [
        sample.latents.tobytes() for sample in encoded(encoder, song, *few)
    ]


def test_a_song_that_is_loud_elsewhere_has_one_gain_however_little_is_planned(
    encoder: WindowEncoder, tmp_path: Path
) -> None:
    for name, path in FILES.items():
        wave = sound(name, seconds=45.0, rate=44_100, level=0.2)
        wave[..., 40 * 44_100 : 41 * 44_100] *= 4.9
        write_sound(tmp_path / path, wave, 44_100)
    song = measured_song(tmp_path, FILES)
    (few,) = encoded(encoder, song, window(20.0))
    (same, *_) = encoded(encoder, song, *(window(float(start)) for start in (20, *range(0, 18, 2), *range(22, 44, 2))))
    assert few.meta["gain"] == same.meta["gain"] < 0.99
    np.testing.assert_array_equal(few.latents, same.latents)


@pytest.mark.parametrize("where", ["torch.stack", "pipelines.song_signals.resample_on"])
def test_memory_that_is_short_before_the_models_costs_no_other_song(
    encoder: WindowEncoder, song: Song, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    module, name = where.rsplit(".", 1)
    function, calls = getattr(sys.modules[module], name), []

    def scarce(*arguments: Any) -> torch.Tensor:
        calls.append(name)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return function(*arguments)

    parts = [window(0.0, 0.5), window(1.0, 0.5)]
    other = [replace(part, window_id=f"other-{part.window_id}", song_id="corpus/other") for part in parts]
    songs = [(song, tuple(parts)), (replace(song, song_id="corpus/other"), tuple(other))]
    monkeypatch.setattr(where, scarce)
    found = dict(encoder.samples(songs))
    lost = [part for part, sample in found.items() if isinstance(sample, WindowError)]
    assert list(found) == [*parts, *other]
    assert {part.song_id for part in lost} == {song.song_id}
    assert {found[part].code for part in lost} == {"out_of_memory"}  # type: ignore[union-attr]


def test_a_batch_that_does_not_fit_is_halved(
    encoder: WindowEncoder, song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [window(start, 0.5) for start in (0.0, 0.6, 1.2, 1.8)]
    expected = encoded(encoder, song, *parts)
    stack = torch.stack

    def small(waves: Any, *rest: Any) -> torch.Tensor:
        if len(waves) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return stack(waves, *rest)

    monkeypatch.setattr(encoder.forwards, "batch", 8)
    monkeypatch.setattr("torch.stack", small)
    for sample, other in zip(encoded(encoder, song, *parts), expected, strict=True):
        np.testing.assert_allclose(sample.latents, other.latents, atol=TOLERANCE, rtol=0)


def test_a_signal_that_is_too_much_for_the_device_is_a_failure_of_its_windows(
    encoder: WindowEncoder, song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = encoder.codec.encode

    def small(wave: torch.Tensor) -> torch.Tensor:
        if wave.shape[-1] > 100 * HOP:
            raise torch.OutOfMemoryError("out of memory")
        return codec(wave)

    monkeypatch.setattr(encoder.forwards._codec, "_function", small)
    parts = [window(0.0, 0.5), window(0.5, 2.048), window(2.6, 0.5)]
    found = dict(encoder.samples([(song, tuple(parts))]))
    assert isinstance(found[parts[1]], WindowError)
    assert (found[parts[1]].stage, found[parts[1]].code) == ("encode", "out_of_memory")
    assert all(isinstance(found[part], Sample) for part in (parts[0], parts[2]))


def test_work_runs_ahead_in_order_and_no_further_than_it_should() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = ahead(pool, lambda number: number * number, items(), 4)
        assert next(results) == (0, 0)
        assert begun == [0, 1, 2, 3, 4]
        assert list(results) == [(number, number * number) for number in range(1, 10)]
    begun.clear()
    made = ahead_of(items(), 2)
    assert next(made) == 0
    assert begun == [0, 1, 2]
    assert list(made) == list(range(1, 10))
    assert list(ahead_of(iter([1]), 2)) == [1]
