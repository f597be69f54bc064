"""Every corpus through the scan: streams, channels and mixtures are measured where the corpus has them."""

from pathlib import Path

import pytest

from manifests.corpora import corpus_names
from manifests.songs import Song, read_songs
from pipelines.scan import scan
from tests.support.listings import listed
from tests.support.scans import LOCAL
from tests.support.sounding import SECONDS, SOUNDING, write_sounding
from tests.support.trees import make_tree


def scanned(name: str, place: Path) -> Song:
    """The song of `SOUNDING`; the others of the tree are empty files."""
    song, root = SOUNDING[name], make_tree(name, place / "root")
    write_sounding(root, song)
    scan([(name, root)], place / "songs.parquet", runner=LOCAL)
    (found,) = [row for row in read_songs(place / "songs.parquet") if row.song_id == f"{name}/{song.song}"]
    return found


@pytest.mark.parametrize("name", corpus_names())
def test_every_corpus_is_measured_as_its_authors_promise(name: str, tmp_path: Path) -> None:
    song, found = SOUNDING[name], scanned(name, tmp_path)
    assert [problem.code for problem in found.problems] == ([] if song.stems else ["mixture_only"])
    assert len({stem.fingerprint for stem in found.stems}) == len(song.stems), "no stem is measured for another"
    for stem in found.stems:
        assert (stem.sample_rate, stem.channels) == (song.rate, song.channels)
        # AAC pads to whole packets.
        assert stem.frames == pytest.approx(SECONDS * song.rate, abs=1024)
        assert stem.peak_dbfs == pytest.approx(-20, abs=1)
        assert stem.active().any()
    assert (found.mixture_audio is None) == (song.mixture is None)
    promised = listed(name, tmp_path / "root")[song.song].residual_db
    if promised is not None:
        assert found.sum_residual_db is not None
        assert found.sum_residual_db < promised
        assert found.sum_lag_s == 0


def test_the_mean_of_two_channels_is_their_sum_at_half_the_gain(tmp_path: Path) -> None:
    found = scanned("ikala", tmp_path)
    assert found.sum_gain_db == pytest.approx(-6.02, abs=0.01)
    assert [stem.channel for stem in found.stems] == [0, 1]
