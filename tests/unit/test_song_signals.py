import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from manifests.roots import state
from manifests.songs import Song
from mgeldm.audio import Wave, fit, load
from pipelines import song_signals
from pipelines.song_signals import decode_song, is_within_full_scale, needed_spans
from tests.support.songs import measured_song
from tests.support.sounds import sound, write_sound

FILES = {"drums": "drums.flac", "bass": "sub folder/bass.wav", "vocals": "vocals.m4a"}
RATES = {16_000: 1, 22_050: 2}


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Song:
    """Three stems of other rates, channels and lengths; read only."""
    root = tmp_path_factory.mktemp("song")
    write_sound(root / FILES["drums"], sound("drums", seconds=2.0, rate=16_000), 16_000)
    write_sound(root / FILES["bass"], sound("bass", seconds=1.5, rate=44_100, channels=2), 44_100)
    write_sound(root / FILES["vocals"], sound("vocals", seconds=1.0, rate=48_000, channels=2), 48_000)
    return measured_song(root, FILES)


@pytest.fixture
def own(song: Song, tmp_path: Path) -> Song:
    """The song in a folder that a test may change."""
    shutil.copytree(song.root, tmp_path / "own")
    return replace(song, root=str(tmp_path / "own"))


def reference(song: Song, rate: int, channels: int) -> dict[str, Wave]:
    waves = {stem.stem_id: load(Path(song.root) / stem.path, rate, channels) for stem in song.stems}
    longest = max(wave.shape[1] for wave in waves.values())
    return {name: fit(wave, longest) for name, wave in waves.items()}


def test_stems_are_decoded_to_every_rate_at_one_length(song: Song) -> None:
    signals, errors = decode_song(song, FILES, RATES)
    assert errors == {}
    for rate, channels in RATES.items():
        expected = reference(song, rate, channels)
        assert signals.pieces[0].waves[rate].keys() == expected.keys()
        assert {wave.shape for wave in signals.pieces[0].waves[rate].values()} == {(channels, 2 * rate)}
        for name, wave in expected.items():
            assert np.array_equal(signals.pieces[0].waves[rate][name].numpy(), wave)
            assert signals.pieces[0].waves[rate][name].dtype == torch.float32


def test_only_the_stems_that_are_asked_for_are_decoded(song: Song) -> None:
    signals, _ = decode_song(song, ["bass"], {8_000: 1})
    assert {name: wave.shape for name, wave in signals.pieces[0].waves[8_000].items()} == {"bass": (1, 12_000)}


def test_a_cut_is_the_sum_of_stems_with_silence_outside(song: Song) -> None:
    signals, _ = decode_song(song, FILES, RATES)
    waves = reference(song, 22_050, 2)
    total = waves["bass"] + waves["drums"]
    for start, frames in ((0, 44_100), (1000, 77), (-500, 1000), (44_000, 1000), (-10, 50_000)):
        cut = signals.cut({"drums", "bass"}, 22_050, start, frames)
        padded = np.pad(total, ((0, 0), (20_000, 20_000)))
        assert cut.shape == (2, frames)
        assert np.array_equal(cut, padded[:, 20_000 + start : 20_000 + start + frames])
    for start in (-1000, 44_100, 10**9, -(10**9)):
        assert not signals.cut({"drums"}, 22_050, start, 1000).any()
    assert not signals.cut(set(), 22_050, 0, 100).any()


def test_the_mix_is_submix_and_source(song: Song) -> None:
    signals, _ = decode_song(song, FILES, RATES)
    for rate in RATES:
        mix, submix, source = (
            signals.cut(stems, rate, 0, 2 * rate) for stems in (FILES, ["drums", "vocals"], ["bass"])
        )
        assert np.abs(mix).max() > 0.1
        np.testing.assert_allclose(mix, submix + source, atol=1e-6)


def test_the_order_of_stems_does_not_change_a_bit(song: Song) -> None:
    one, _ = decode_song(song, list(FILES), RATES)
    two, _ = decode_song(song, list(FILES)[::-1], RATES)
    assert one.gain == two.gain
    assert np.array_equal(one.cut(list(FILES), 16_000, 0, 32_000), two.cut(list(FILES)[::-1], 16_000, 0, 32_000))


def test_a_stem_begins_where_the_song_says(song: Song) -> None:
    stems = tuple(replace(stem, offset_frames=(stem.sample_rate or 0) // 2) for stem in song.stems)
    signals, _ = decode_song(replace(song, stems=stems), FILES, {16_000: 1})
    late = signals.cut({"drums"}, 16_000, 0, 40_000)
    assert not late[:, :8_000].any()
    assert np.array_equal(late[:, 8_000:], reference(song, 16_000, 1)["drums"])


def test_a_mix_beyond_full_scale_is_turned_down_as_a_whole(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)[None].astype(np.float32)
    for name, level in (("drums", 0.9), ("bass", 0.7)):
        write_sound(tmp_path / f"{name}.wav", level * tone, 16_000, "FLOAT")
    song = measured_song(tmp_path, {"drums": "drums.wav", "bass": "bass.wav"})
    signals, _ = decode_song(song, ["drums", "bass"], {16_000: 1, 32_000: 2})
    assert signals.gain == pytest.approx(1 / 1.6, rel=1e-3)
    for rate in (16_000, 32_000):
        assert np.abs(signals.cut({"drums", "bass"}, rate, 0, 2 * rate)).max() == pytest.approx(1.0, rel=2e-3)
        assert np.abs(signals.cut({"bass"}, rate, 0, 2 * rate)).max() == pytest.approx(0.7 / 1.6, rel=2e-3)
    alone, _ = decode_song(song, ["drums"], {16_000: 1})
    assert alone.gain == 1.0


def damage_removed(path: Path) -> None:
    path.unlink()


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_text(path: Path) -> None:
    path.write_text("this is no music\n" * 100)


def damage_emptied(path: Path) -> None:
    path.write_bytes(b"")


def damage_one_sample(path: Path) -> None:
    wave, rate = soundfile.read(path, dtype="int16")
    wave[17] += 1
    soundfile.write(path, wave, rate)


def damage_rate(path: Path) -> None:
    wave, _ = soundfile.read(path, dtype="int16")
    soundfile.write(path, wave, 22_050)


def damage_shortened(path: Path) -> None:
    wave, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, wave[:-1], rate)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (damage_removed, "missing"),
        (damage_truncated, "truncated"),
        (damage_text, "unreadable"),
        (damage_emptied, "empty"),
        (damage_one_sample, "changed"),
        (damage_rate, "changed"),
        (damage_shortened, "changed"),
    ],
)
def test_a_stem_that_is_not_what_was_scanned_is_an_error_and_the_others_are_decoded(
    own: Song, damage: Callable[[Path], None], code: str
) -> None:
    damage(Path(own.root) / FILES["drums"])
    signals, errors = decode_song(own, FILES, RATES)
    assert {name: error.code for name, error in errors.items()} == {"drums": code}
    assert "drums.flac" in str(errors["drums"])
    assert "\n" not in str(errors["drums"])
    assert signals.pieces[0].waves[16_000].keys() == {"bass", "vocals"}
    assert signals.cut({"bass", "vocals"}, 16_000, 0, 100).shape == (1, 100)


def test_samples_that_are_not_finite_are_a_change(tmp_path: Path) -> None:
    wave = sound("a", seconds=1.0)
    write_sound(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    song = measured_song(tmp_path, {"a": "a.wav"})
    wave[0, 100] = np.nan
    write_sound(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    assert decode_song(song, ["a"], {16_000: 1})[1]["a"].code == "changed"


def test_a_path_that_leaves_the_root_is_not_opened(own: Song) -> None:
    stems = (replace(own.stems[0], path="../own/drums.flac"), *own.stems[1:])
    _, errors = decode_song(replace(own, stems=stems), FILES, RATES)
    assert {name: error.code for name, error in errors.items()} == {"drums": "outside_root"}


def test_a_song_of_which_nothing_can_be_decoded_has_no_signals(own: Song) -> None:
    shutil.rmtree(own.root)
    signals, errors = decode_song(own, FILES, RATES)
    assert {error.code for error in errors.values()} == {"missing"}
    assert (sorted(errors), signals.gain) == (sorted(FILES), 1.0)


LONG_FILES = {"drums": "drums.wav", "bass": "bass.flac", "vocals": "vocals.ogg"}


@pytest.fixture(scope="module")
def long_song(tmp_path_factory: pytest.TempPathFactory) -> Song:
    """A minute in three stems, one of which begins 2.5 s late; file states are those of now."""
    root = tmp_path_factory.mktemp("long")
    for (name, path), rate in zip(LONG_FILES.items(), (44_100, 22_050, 16_000), strict=True):
        write_sound(root / path, sound(name, seconds=57.0, rate=rate, level=0.2), rate)
    return with_states(measured_song(root, LONG_FILES, {"bass": round(2.5 * 22_050)}))


def with_states(song: Song) -> Song:
    stems = []
    for stem in song.stems:
        size, moment = state(song.root, stem.path) or (None, None)
        stems.append(replace(stem, size=size, mtime_ns=moment))
    return replace(song, stems=tuple(stems))


def test_spans_are_the_whole_seconds_around_what_is_needed() -> None:
    assert needed_spans([(10.0, 12.0), (40.2, 41.9), (11.0, 14.2)], 100.0) == ((9, 15), (39, 43))
    # Beside each other they are one; before the song nothing is read.
    assert needed_spans([(-3.0, 4.0), (5.1, 6.0)], 100.0) == ((0, 7),)
    assert needed_spans([(0.0, 51.0)], 100.0) is None
    assert needed_spans([(0.0, 5.0)], 29.0) is None
    assert needed_spans([(-9.0, -3.0), (200.0, 203.0)], 100.0) == ((199, 204),)


def test_whether_a_mix_stays_within_full_scale_is_told_by_the_manifest(song: Song) -> None:
    def told(peaks: list[float | None], stems: list[str] | None = None, **changes: Any) -> bool:
        quiet = tuple(replace(stem, peak_dbfs=peak) for stem, peak in zip(song.stems, peaks, strict=True))
        return is_within_full_scale(replace(song, stems=quiet, **changes), stems or list(FILES))

    assert told([-10.0, -10.0, -10.0])  # 3 x 0.316
    assert not told([-9.0, -9.0, -9.0])
    assert told([-9.0, -9.0, -9.0], ["bass", "drums"])
    assert not told([-30.0, -30.0, None])
    loud, mixture = [-3.0, -3.0, -3.0], replace(song.stems[0], peak_dbfs=-0.1)
    assert told(loud, mixture_audio=mixture, sum_residual_db=-50.0, sum_gain_db=0.0)
    assert not told(loud, mixture_audio=mixture, sum_residual_db=-30.0, sum_gain_db=0.0)
    assert not told(loud, mixture_audio=mixture, sum_residual_db=-50.0, sum_gain_db=-6.0)  # mastered down
    assert not told(loud, ["bass", "drums"], mixture_audio=mixture, sum_residual_db=-50.0, sum_gain_db=0.0)


def test_a_part_of_a_song_is_the_same_part_of_the_whole(long_song: Song, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {16_000: 1, 48_000: 2}
    whole, _ = decode_song(long_song, LONG_FILES, rates)
    read: list[tuple[str, int, int | None]] = []
    decode = song_signals.audio.interleaved

    def watched(path: Path, stream: int | None = None, start: int = 0, frames: int | None = None) -> Iterator[Wave]:
        read.append((Path(path).name, start, frames))
        return decode(path, stream, start, frames)

    monkeypatch.setattr(song_signals.audio, "interleaved", watched)
    spans = ((1, 6), (30, 33), (55, 61))
    part, errors = decode_song(long_song, LONG_FILES, rates, spans)
    assert errors == {}
    # A lossy file gives the very samples only when it is read from its beginning.
    assert [entry for entry in read if entry[0] == "vocals.ogg"] == [("vocals.ogg", 0, None)]
    assert [entry for entry in read if entry[0] == "drums.wav"] == [
        ("drums.wav", 44_100 * begin, 44_100 * (end - begin)) for begin, end in spans
    ]
    assert [entry[1:] for entry in read if entry[0] == "bass.flac"] == [
        (0, round(3.5 * 22_050)),
        (round(27.5 * 22_050), 3 * 22_050),
        (round(52.5 * 22_050), 6 * 22_050),
    ]
    for rate in rates:
        for begin, seconds in ((1.5, 4.0), (30.5, 2.0), (55.5, 5.0), (58.0, 3.0)):
            start, frames = round(begin * rate), round(seconds * rate)
            one, other = (signals.cut(LONG_FILES, rate, start, frames) for signals in (whole, part))
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=2e-5)
            assert np.abs(one[:, : rate // 2].numpy()).max() > 0.05 or begin > 57


def test_a_file_that_was_touched_is_read_and_proven_as_a_whole_with_the_same_result(
    long_song: Song, tmp_path: Path
) -> None:
    shutil.copytree(long_song.root, tmp_path / "own")
    copied = replace(long_song, root=str(tmp_path / "own"))
    (tmp_path / "own" / "drums.wav").touch()
    spans = ((1, 6), (30, 33))
    one, _ = decode_song(long_song, LONG_FILES, {16_000: 1}, spans)
    other, errors = decode_song(copied, LONG_FILES, {16_000: 1}, spans)
    assert errors == {}
    assert np.array_equal(one.cut(LONG_FILES, 16_000, 16_000, 80_000), other.cut(LONG_FILES, 16_000, 16_000, 80_000))
    damage_one_sample(tmp_path / "own" / "drums.wav")
    _, errors = decode_song(copied, LONG_FILES, {16_000: 1}, spans)
    assert {name: error.code for name, error in errors.items()} == {"drums": "changed"}


def test_single_stems_can_be_turned_up(song: Song) -> None:
    signals, _ = decode_song(song, FILES, RATES)
    loud = signals.cut(["drums", "bass"], 16_000, 0, 16_000, {"bass": 2.0})
    plain = signals.cut(["drums"], 16_000, 0, 16_000) + 2 * signals.cut(["bass"], 16_000, 0, 16_000)
    np.testing.assert_allclose(loud.numpy(), plain.numpy(), atol=1e-6)
