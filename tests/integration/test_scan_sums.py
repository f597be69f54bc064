"""What a scan tells of a song as a whole: its stems against its mixture, its sketch, sources in channels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.corpora import SongListing, StemListing
from manifests.sketches import unpack
from manifests.songs import Problem, Song
from mgeldm import audio
from mgeldm.measure import ActivityConfig, measure
from pipelines import scan as scan_module
from pipelines.song_signals import decode_song
from tests.support.scans import codes, scanned
from tests.support.sounds import sound, write_sound
from training.waveforms import read_stem

RATE = 16_000
LABELS = ("drums", "bass", "piano")


class Listed:
    """A corpus of the one song it is given."""

    name = "listed"
    license = "CC0-1.0"

    def __init__(self, listing: SongListing) -> None:
        self.listing = listing

    def songs(self, root: Path) -> list[SongListing]:
        return [self.listing]


@pytest.fixture
def stems(tmp_path: Path) -> dict[str, audio.Wave]:
    """Three stems, written as ``root/<label>.wav``."""
    waves = {label: sound(label, seconds=2, rate=RATE, channels=2) for label in LABELS}
    for label, wave in waves.items():
        write_sound(tmp_path / "root" / f"{label}.wav", wave, RATE, "FLOAT")
    return waves


LISTING = SongListing(
    song="song",
    subset="train",
    stems=tuple(StemListing(stem_id=label, path=f"{label}.wav", label=label) for label in LABELS),
    mixture="mix.wav",
    residual_db=-30.0,
)


@pytest.fixture
def song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Scans a listing of the root."""

    def scan_listing(listing: SongListing = LISTING) -> Song:
        monkeypatch.setattr(scan_module, "get_corpus", lambda name: Listed(listing))
        return scanned("listed", tmp_path / "root")["song"]

    return scan_listing


def write_mixture(root: Path, wave: audio.Wave, rate: int = RATE) -> None:
    write_sound(root / "mix.wav", wave, rate, "FLOAT")


def test_a_mixture_that_is_the_sum_has_no_residual(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", 0.5 * sum(stems.values()))
    row = song()
    assert row.problems == ()
    assert (row.sum_gain_db, row.sum_lag_s) == (pytest.approx(-6.0206, abs=1e-4), 0.0)
    assert row.sum_residual_db < -100
    found = measure(tmp_path / "root" / "mix.wav", None, ActivityConfig())
    assert row.mixture_audio is not None
    assert (row.mixture_audio.stem_id, row.mixture_audio.label, row.mixture_audio.path) == (
        "mixture",
        "mixture",
        "mix.wav",
    )
    assert row.mixture_audio.fingerprint == found.fingerprint
    assert row.mixture_audio.lufs == pytest.approx(found.lufs, abs=1e-6)
    level, _ = unpack(row.sketch)
    square = np.square(audio.read(tmp_path / "root" / "mix.wav").astype(np.float64)).mean(axis=0)
    assert np.abs(level - 10 * np.log10(square.reshape(20, -1).mean(axis=1))).max() <= 0.251


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_late_mixture_is_misaligned(tmp_path: Path, stems: dict[str, audio.Wave], song, rate: int) -> None:  # type: ignore[no-untyped-def]
    mixture = audio.resample(np.pad(sum(stems.values()), ((0, 0), (480, 0))), RATE, rate)
    write_mixture(tmp_path / "root", mixture, rate)
    row = song()
    # The mixture of the second case is upsampled, and said to be.
    assert [code for code, _ in codes(row)] == ["narrow_band"] * (rate != RATE) + ["misaligned"]
    assert "30.0 ms" in row.problems[-1].detail
    assert row.sum_lag_s == pytest.approx(0.03, abs=1 / rate)
    assert row.sum_residual_db < -40


def test_a_mixture_with_more_in_it_differs_where_the_corpus_promises_a_sum(
    tmp_path: Path, stems: dict[str, audio.Wave], song, readers: list[str]
) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", sum(stems.values()) + sound("more", seconds=2, rate=RATE, channels=2))
    row = song()
    assert codes(row) == [("sum_differs", None)]
    assert -10 < row.sum_residual_db < -2
    readers.clear()
    assert song() == row
    assert readers == []
    kept = song(replace(LISTING, residual_db=None))
    assert (codes(kept), kept.sum_residual_db) == ([], row.sum_residual_db)
    assert len(readers) == 4


def test_a_mixture_with_left_and_right_exchanged_differs(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "root"
    stems["piano"][1] = 0
    write_sound(root / "piano.wav", stems["piano"], RATE, "FLOAT")
    write_mixture(root, sum(stems.values()))
    assert codes(song()) == []
    write_mixture(root, sum(stems.values())[::-1])
    row = song()
    assert codes(row) == [("sum_differs", None)]
    a, b = sum(stems.values()).astype(np.float64), sum(stems.values())[::-1].astype(np.float64)
    gain = (a * b).sum() / np.square(a).sum()
    expected = 10 * np.log10(np.square(b - gain * a).sum() / np.square(b).sum())
    assert row.sum_residual_db == pytest.approx(expected, abs=0.01)


def test_a_stem_of_opposite_channels_is_missed_in_the_mixture(
    tmp_path: Path, stems: dict[str, audio.Wave], song
) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "root"
    rest = stems["drums"] + stems["bass"]
    stems["piano"][1] = -stems["piano"][0]
    write_sound(root / "piano.wav", stems["piano"], RATE, "FLOAT")
    write_mixture(root, rest)
    assert codes(song()) == [("sum_differs", None)]
    # One where it is, and at another rate.
    mixture = audio.resample(rest + stems["piano"], RATE, 44_100)
    write_mixture(root, mixture, 44_100)
    row = song()
    assert ("sum_differs", None) not in codes(row)
    assert row.sum_residual_db < -40


def test_a_mono_stem_stands_in_both_channels(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "root"
    write_sound(root / "bass.wav", stems["bass"][:1], RATE, "FLOAT")
    rest = stems["drums"] + stems["piano"]
    write_mixture(root, rest + stems["bass"][:1])
    row = song()
    assert (codes(row), row.sum_residual_db < -100) == ([], True)
    left_only = rest.copy()
    left_only[0] += 2 * stems["bass"][0]
    write_mixture(root, left_only)
    assert codes(song()) == [("sum_differs", None)]


def test_with_a_mono_mixture_means_are_compared(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", sum(stems.values()).mean(axis=0, keepdims=True))
    row = song()
    assert (codes(row), row.sum_residual_db < -100) == ([], True)


def test_with_a_stem_of_three_channels_means_are_compared(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    piano = np.concatenate([stems["piano"], stems["piano"].mean(axis=0, keepdims=True)])
    write_sound(tmp_path / "root" / "piano.wav", piano, RATE, "FLOAT")
    write_mixture(tmp_path / "root", sum(stems.values()))
    row = song()
    assert (codes(row), row.sum_residual_db < -100) == ([], True)


def test_a_mixture_upside_down_is_told(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", -0.5 * sum(stems.values()))
    row = song()
    assert codes(row) == [("misaligned", None)]
    assert "polarity inverted" in row.problems[0].detail
    assert (row.sum_gain_db, row.sum_lag_s) == (pytest.approx(-6.0206, abs=1e-4), 0.0)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_stereo_stem_that_is_not_finite_leaves_the_sum_unjudged(
    tmp_path: Path, stems: dict[str, audio.Wave], song
) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", sum(stems.values()))
    stems["bass"][1, 100:102] = np.inf, -np.inf
    write_sound(tmp_path / "root" / "bass.wav", stems["bass"], RATE, "FLOAT")
    row = song()
    assert codes(row) == [("not_finite", "bass")]
    assert row.sum_residual_db is None


def test_a_broken_stem_leaves_the_sum_unjudged(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", sum(stems.values()))
    path = tmp_path / "root" / "bass.wav"
    data = path.read_bytes()
    for broken, code in ((data[: len(data) // 2], "truncated"), (b"no audio", "unreadable")):
        path.write_bytes(broken)
        row = song()
        assert codes(row)[0] == (code, "bass")
        assert (row.sum_gain_db, row.sum_lag_s, row.sum_residual_db) == (None, None, None)
        assert row.mixture_audio is not None
        assert len(row.sketch) == 40


def test_a_changed_mixture_is_measured_again(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", sum(stems.values()))
    assert song().sum_gain_db == pytest.approx(0, abs=1e-6)
    write_mixture(tmp_path / "root", 0.25 * sum(stems.values()))
    assert song().sum_gain_db == pytest.approx(-12.0412, abs=1e-4)
    (tmp_path / "root" / "mix.wav").write_bytes(b"no audio")
    row = song()
    assert (codes(row), row.mixture, row.mixture_audio) == ([("mixture_unreadable", None)], None, None)
    assert row.sum_residual_db is None


def test_without_a_mixture_the_sum_of_the_stems_is_sketched(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    row = song(replace(LISTING, mixture=None))
    level, _ = unpack(row.sketch)
    square = np.square(sum(wave.mean(axis=0) for wave in stems.values()))
    assert np.abs(level - 10 * np.log10(square.reshape(20, -1).mean(axis=1))).max() <= 0.251


def test_a_song_of_a_mixture_alone_has_its_length(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    write_mixture(tmp_path / "root", stems["bass"])
    row = song(replace(LISTING, stems=(), problems=(Problem(code="mixture_only"),)))
    assert codes(row) == [("mixture_only", None)]
    assert (row.sample_rate, row.frames, row.duration_s, len(row.sketch)) == (RATE, 2 * RATE, 2.0, 40)


def test_notes_of_what_is_wrong_with_the_sound(tmp_path: Path, stems: dict[str, audio.Wave], song) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "root"
    loud = np.clip(3 * np.sin(np.arange(2 * RATE) / 20), -1, 1).astype(np.float32)[None]
    write_sound(root / "drums.wav", loud, RATE, "FLOAT")
    write_sound(root / "bass.wav", stems["drums"] * 0 + stems["bass"] + np.float32(0.05), RATE, "FLOAT")
    narrow = audio.resample(0.1 * np.random.default_rng(0).standard_normal((2, 8_000)).astype(np.float32), 4_000, RATE)
    write_sound(root / "piano.wav", narrow, RATE, "FLOAT")
    row = song(replace(LISTING, mixture=None))
    assert codes(row) == [("clipped", "drums"), ("dc_offset", "bass"), ("narrow_band", "piano")]
    write_sound(root / "piano.wav", stems["drums"], RATE, "FLOAT")
    write_sound(root / "drums.wav", stems["drums"], RATE, "FLOAT")
    row = song(replace(LISTING, mixture=None))
    assert codes(row) == [("dc_offset", "bass"), ("repeated_stem", "piano")]


def test_sources_in_channels_are_decoded_once_and_each_is_a_stem(tmp_path: Path, song, readers: list[str]) -> None:  # type: ignore[no-untyped-def]
    wave = np.concatenate([sound("left", seconds=2, rate=RATE), sound("right", seconds=2, rate=RATE)])
    write_sound(tmp_path / "root" / "both.wav", wave, RATE, "FLOAT")
    sources = [
        StemListing(stem_id=label, path="both.wav", label=label, channel=channel)
        for channel, label in enumerate(("vocals", "piano", "bass"))
    ]
    listing = replace(LISTING, stems=tuple(sources), mixture="both.wav")
    row = song(listing)
    assert codes(row) == [("unreadable", "bass")]
    assert "has 2 channels, channel 2 was asked for" in row.problems[0].detail
    row = song(replace(listing, stems=tuple(sources[:2])))
    assert row.problems == ()
    assert [stem.channels for stem in (*row.stems, row.mixture_audio)] == [1, 1, 2]
    assert row.sum_gain_db == pytest.approx(-6.0206, abs=1e-4)
    assert row.sum_residual_db < -100
    assert readers == ["root/both.wav"] * 2
    signals, errors = decode_song(row, ["vocals", "piano"], {RATE: 1})
    assert errors == {}
    for channel, stem in enumerate(row.stems):
        assert np.array_equal(signals.pieces[0].waves[RATE][stem.stem_id][0], wave[channel])
        assert np.array_equal(read_stem(row, stem, 0.5, 8_000, RATE)[0], wave[channel, 8_000:16_000])
