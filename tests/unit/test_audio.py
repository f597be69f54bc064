import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
import soundfile

from manifests.errors import AudioError
from mgeldm import audio
from tests.support.breaking import Place, coded, flac_saying, sparse_rf64, sparse_wav, wav_of_bytes
from tests.support.sounds import sound, write_sound, write_streams

RATE = 16_000


def error_of(path: Path, action: Callable[[Path], object] = audio.read) -> AudioError:
    with pytest.raises(AudioError) as caught:
        action(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0), ("DOUBLE", 0)]
)
def test_wav_files_of_every_depth_are_read_to_their_precision(tmp_path: Path, subtype: str, step: float) -> None:
    wave = sound("depth", channels=2)
    path = write_sound(tmp_path / "a.wav", wave, RATE, subtype)
    read = audio.read(path)
    assert (str(read.dtype), read.shape) == ("float32", wave.shape)
    assert np.abs(read - wave).max() <= step
    assert audio.probe(path) == audio.AudioInfo(RATE, 2, wave.shape[1])


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_sample_rates_are_kept_and_resampled_to_the_exact_length(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate * 2 + 1) / rate
    wave = np.sin(2 * np.pi * 440 * time).astype(np.float32)[None]
    path = write_sound(tmp_path / "a.wav", wave, rate, "FLOAT")
    assert audio.probe(path).sample_rate == rate
    loaded = audio.load(path, RATE)
    assert loaded.shape == (1, -(-wave.shape[1] * RATE // rate))
    expected = np.sin(2 * np.pi * 440 * np.arange(loaded.shape[1]) / RATE)
    assert np.abs(loaded[0] - expected)[500:-500].max() < 1e-5


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a", "a.ogg", "a.mp3", "a.opus", "a.aiff"])
def test_partial_reads_are_the_same_samples_as_a_whole_read(tmp_path: Path, name: str) -> None:
    rate = 48_000 if name == "a.opus" else 44_100
    path = write_sound(tmp_path / name, sound("partial", seconds=5, rate=rate, channels=2), rate)
    whole = audio.read(path)
    assert abs(whole.shape[1] - 5 * rate) <= 2048
    for start, frames in (
        (0, 1),
        (1, 1000),
        (rate - 7, 20),
        (rate + 1, 5000),
        (2 * rate, None),
        (4 * rate + 13, 90_000),
    ):
        part = audio.read(path, start=start, frames=frames)
        expected = whole[:, start:] if frames is None else whole[:, start : start + frames]
        assert part.shape == expected.shape
        # Decoders of MP3, Vorbis and Opus may differ by rounding after a seek.
        assert np.abs(part - expected).max() <= (0 if name in ("a.wav", "a.flac", "a.m4a", "a.aiff") else 1e-4)
    assert audio.read(path, start=whole.shape[1] + 5, frames=10).shape == (2, 0)


def test_a_container_with_coarse_time_stamps_is_read_exactly(tmp_path: Path) -> None:
    wave = sound("matroska", seconds=4, rate=44_100, channels=2)
    write_streams(tmp_path / "a.mka", [wave], 44_100, "pcm_f32le")
    whole = audio.read(tmp_path / "a.mka")
    assert np.array_equal(audio.read(tmp_path / "a.mka", start=100_001, frames=5000), whole[:, 100_001:105_001])
    assert np.abs(whole - wave).max() < 1e-4


def test_streams_of_a_container_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "song.stem.mp4"
    waves = [sound("stream", index, rate=44_100, channels=1 + index, seconds=2) for index in range(2)]
    write_streams(path, waves, 44_100)
    for index, wave in enumerate(waves):
        assert audio.probe(path, index) == audio.AudioInfo(44_100, 1 + index, None)
        read = audio.read(path, index)[:, : wave.shape[1]]
        assert np.corrcoef(read[0], wave[0])[0, 1] > 0.98
    assert "has 2 audio streams, stream 2" in str(error_of(path, lambda p: audio.read(p, 2)))


def test_blocks_are_bounded_and_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 10_000)
    for name in ("a.wav", "a.m4a"):
        path = write_sound(tmp_path / name, sound("blocks", rate=44_100, channels=2), 44_100)
        parts = list(audio.blocks(path))
        assert max(part.size for part in parts) <= 10_000
        assert len(parts) > 20
        assert np.array_equal(np.concatenate(parts, axis=1), audio.read(path))


def test_one_sample_and_many_channels_are_no_special_case(tmp_path: Path) -> None:
    wave = np.linspace(-0.5, 0.5, 6, dtype=np.float32)[:, None]
    path = write_sound(tmp_path / "a.wav", wave, 44_100, "FLOAT")
    assert np.array_equal(audio.read(path), wave)
    assert audio.load(path, RATE).shape == (1, 1)
    assert audio.load(path, RATE, 2).shape == (2, 1)


def test_channels_are_brought_to_a_number_by_their_mean() -> None:
    wave = np.array([[1, 0], [0, 0.5], [0.5, 1]], np.float32)
    assert audio.to_channels(wave, 3) is wave
    assert audio.to_channels(wave, 1).tolist() == [[0.5, 0.5]]
    assert audio.to_channels(wave, 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert audio.to_channels(wave[:1], 2).tolist() == [[1, 0], [1, 0]]


def test_fit_cuts_or_pads_with_zeros_at_the_end() -> None:
    wave = np.array([[1, 2, 3]], np.float32)
    assert audio.fit(wave, 2).tolist() == [[1, 2]]
    assert audio.fit(wave, 5).tolist() == [[1, 2, 3, 0, 0]]
    assert audio.resample(wave[:, :0], 44_100, RATE).shape == (1, 0)
    assert [audio.resampled_frames(n, 44_100, RATE) for n in (0, 1, 44_100, 44_101)] == [0, 1, 16_000, 16_001]


@pytest.mark.parametrize(("name", "step"), [("a.wav", 0.0), ("a.flac", 2**-23)])
def test_saved_audio_is_read_back(tmp_path: Path, name: str, step: float) -> None:
    wave = sound("save", channels=2)
    audio.save(tmp_path / "new" / name, wave, RATE)
    assert np.abs(audio.read(tmp_path / "new" / name) - wave).max() <= step
    assert os.listdir(tmp_path / "new") == [name]


def test_files_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    text, wrong, zero, playlist = (tmp_path / name for name in ("text.wav", "text.m4a", "zero.wav", "list.m4a"))
    text.write_text("this is no audio at all\n" * 50)
    wrong.write_text("neither is this\n" * 50)
    zero.touch()
    other = write_sound(tmp_path / "other.m4a", sound("other"), RATE)
    playlist.write_text(f"ffconcat version 1.0\nfile {other.name}\n")
    loop = tmp_path / "loop.wav"
    loop.symlink_to(loop)
    (tmp_path / "folder.wav").mkdir()
    for path, code in {
        text: "unreadable",
        wrong: "unreadable",
        playlist: "unreadable",
        zero: "empty",
        loop: "unreadable",
        tmp_path / "folder.wav": "unreadable",
        tmp_path / "none.wav": "missing",
        text / "below.wav": "missing",
        tmp_path / f"{'x' * 300}.wav": "unreadable",
        tmp_path / "nul\0.wav": "unreadable",
    }.items():
        assert error_of(path).code == code
        assert error_of(path, audio.probe).code == code


def test_odd_sample_rates_are_refused(tmp_path: Path) -> None:
    for rate in (1, 3_999, 2_000_000):
        path = write_sound(tmp_path / "a.wav", sound("odd", seconds=0.1), rate)
        assert f"a sample rate of {rate} Hz" in str(error_of(path, audio.probe))


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.aiff", "a.m4a", "a.mp3"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_cut_file_is_truncated_and_what_came_before_is_yielded(tmp_path: Path, name: str, share: float) -> None:
    path = write_sound(tmp_path / name, sound("cut", seconds=20, rate=44_100, level=0.5), 44_100)
    whole = audio.read(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    parts: list[audio.Wave] = []
    assert error_of(path, lambda p: parts.extend(audio.blocks(p))).code == "truncated"
    if name != "a.flac":  # libsndfile gives nothing of the block in which FLAC breaks off
        joined = np.concatenate(parts, axis=1)
        assert share - 0.1 < joined.shape[1] / whole.shape[1] < share + 0.02
        assert np.array_equal(joined[:, : -RATE // 10], whole[:, : joined.shape[1] - RATE // 10])


def test_a_container_cut_between_two_packets_is_truncated(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.m4a", sound("packets", seconds=10, rate=44_100), 44_100)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[len(packets) // 2].pos])
    assert error_of(path).code == "truncated"


@pytest.mark.parametrize("size", [3, 20, 30, 60, 120])
def test_a_file_cut_in_its_header_cannot_be_read(tmp_path: Path, size: int) -> None:
    for name in ("a.flac", "a.wav", "a.m4a"):
        path = write_sound(tmp_path / name, sound("header", seconds=1, rate=44_100), 44_100)
        path.write_bytes(path.read_bytes()[:size])
        assert error_of(path).code in ("unreadable", "truncated", "empty")


def test_a_wav_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", sound("pipe"), RATE)
    data = bytearray(path.read_bytes())
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        data[4:8] = data[40:44] = size.to_bytes(4, "little")
        path.write_bytes(data)
        assert audio.read(path).shape == (1, 48_000)


def test_a_flac_of_unknown_length_says_so(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", sound("unknown"), RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert "does not say how long" in str(error_of(path))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("odd\nstate"),
        ValueError("bad value"),
        SystemError("returned NULL"),
        KeyError("x"),
        OSError(5, "I/O"),
    ],
)
def test_what_a_library_raises_unforeseen_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for name, module, function in (("a.wav", soundfile, "SoundFile"), ("a.m4a", av, "open")):
        path = write_sound(tmp_path / name, sound("unforeseen", seconds=0.5), RATE)
        monkeypatch.setattr(module, function, fail)
        assert error_of(path).code == "unreadable"
        assert error_of(path, audio.probe).code == "unreadable"


def test_lack_of_memory_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "a.wav", sound("memory", seconds=0.5), RATE)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(soundfile, "SoundFile", fail)
    with pytest.raises(MemoryError):
        audio.read(path)


def test_a_file_that_vanishes_while_it_is_opened_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "a.wav", sound("vanish", seconds=0.5), RATE)
    opened = audio.open_regular

    def vanish(name: Path) -> BinaryIO:
        path.unlink()
        return opened(name)

    monkeypatch.setattr(audio, "open_regular", vanish)
    assert error_of(path).code == "missing"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(error_of(tmp_path / "pipe.wav").code), daemon=True)
    thread.start()
    thread.join(5)
    assert seen == ["unreadable"]


def test_a_file_of_days_is_not_begun(tmp_path: Path) -> None:
    for path, write in ((tmp_path / "a.wav", sparse_wav), (tmp_path / "b.wav", sparse_rf64)):
        write(path, Place(tmp_path, tmp_path))
        for action in (audio.probe, audio.read):
            assert error_of(path, action).code == "unreadable"
            assert "hours by its header, 24 can be used" in str(error_of(path, action))


def test_a_file_that_goes_on_is_read_as_far_as_its_header_says_but_not_to_its_end(tmp_path: Path) -> None:
    for name, data, frames in (("a.wav", wav_of_bytes(16_000), 8_000), ("a.flac", flac_saying(1_000, 20), 1_000)):
        path = tmp_path / name
        path.write_bytes(data)
        assert audio.probe(path).frames == frames
        assert audio.read(path, frames=frames).shape == (1, frames)
        assert error_of(path).code == "longer"
        assert f"bytes follow the {frames} frames" in str(error_of(path))


def test_ogg_without_its_last_page_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    whole = coded(".ogg")
    for data, code in (
        (whole, None),
        (whole + b"junk" * 100, None),
        (whole[: whole.rindex(b"OggS")], "truncated"),
        (whole[:-1], "truncated"),
    ):
        path.write_bytes(data)
        assert (error_of(path).code if code else audio.read(path).shape[1]) == (code or 32_000)
